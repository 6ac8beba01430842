//go:build ignore

// The shortcut of frames of established connections past bridge and packet filter; see shortcut.go. `make shortcut` makes shortcut.o of it.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// MARK_ESTABLISHED is markEstablished of rules.go.
#define MARK_ESTABLISHED 1
#define SECOND 1000000000ull

// A flow is one direction of a connection, with all that the filter judges a frame of it by.
struct flow {
	__u32 in; // the port of the bridge that it comes by
	__u8 to[ETH_ALEN], from[ETH_ALEN];
	__u32 source[4], destination[4];
	__u16 source_port, destination_port;
	__u16 ethertype;
	__u8 protocol, zero;
} __attribute__((aligned(8)));

// A way is where the bridge last sent a frame of a flow.
struct way {
	__u32 out; // a port of the bridge; 0: more than one
	__u32 generation;
	__u64 seen; // by the clock that begins when the machine does, in nanoseconds
	__u32 size; // the longest packet that was let through; what is longer may be too long
	__u32 zero;
	struct flow of; // the kernel may give an entry to another flow while it is read
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct flow);
	__type(value, struct way);
} ways SEC(".maps");

// generation is one more whenever ways may have changed: what was seen before is not believed.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} generation SEC(".maps");

// read says which flow a frame is of, and how long its packet is on the wire. It answers 0 for what always goes the long way: all but unicast TCP and UDP without options and
// fragments, and of TCP what begins or ends a connection.
static __always_inline int read(struct __sk_buff *skb, __u32 in, struct flow *f)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	void *transport;
	__u32 headers;

	if (skb->vlan_present || (void *)(eth + 1) > end || eth->h_dest[0] & 1)
		return 0;
	f->in = in;
	__builtin_memcpy(f->to, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(f->from, eth->h_source, ETH_ALEN);
	f->ethertype = eth->h_proto;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff) ||
		    (!skb->gso_size && bpf_ntohs(ip->tot_len) + sizeof(*eth) > skb->len))
			return 0;
		f->source[0] = ip->saddr;
		f->destination[0] = ip->daddr;
		f->protocol = ip->protocol;
		transport = ip + 1;
		headers = sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 6 ||
		    (!skb->gso_size && bpf_ntohs(ip->payload_len) + sizeof(*ip) + sizeof(*eth) > skb->len))
			return 0;
		__builtin_memcpy(f->source, &ip->saddr, 16);
		__builtin_memcpy(f->destination, &ip->daddr, 16);
		f->protocol = ip->nexthdr;
		transport = ip + 1;
		headers = sizeof(*ip);
	} else {
		return 0;
	}
	if (f->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;
		if ((void *)(tcp + 1) > end || !tcp->ack || tcp->syn || tcp->fin || tcp->rst || tcp->urg || tcp->doff < 5)
			return 0;
		headers += tcp->doff * 4;
		f->source_port = tcp->source;
		f->destination_port = tcp->dest;
	} else if (f->protocol == IPPROTO_UDP) {
		struct udphdr *udp = transport;
		if ((void *)(udp + 1) > end)
			return 0;
		headers += sizeof(*udp);
		f->source_port = udp->source;
		f->destination_port = udp->dest;
	} else {
		return 0;
	}
	return skb->gso_size ? headers + skb->gso_size : skb->len - sizeof(*eth);
}

static __always_inline int same(struct flow *a, struct flow *b)
{
	__u64 *x = (void *)a, *y = (void *)b, other = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*a) / sizeof(*x); i++)
		other |= x[i] ^ y[i];
	return !other;
}

static __always_inline int fresh(struct way *w, __u32 now_is, __u64 now)
{
	return w->generation == now_is && now - w->seen < SECOND;
}

// unkai_take sends a frame that comes in by a port where the last ones of its flow went, if that was just now.
SEC("tc")
int unkai_take(struct __sk_buff *skb)
{
	struct flow f = {};
	__u32 zero = 0, size = read(skb, skb->ifindex, &f), *g;
	struct way *found, w;

	if (!size)
		return TC_ACT_UNSPEC;
	g = bpf_map_lookup_elem(&generation, &zero);
	if (!g)
		return TC_ACT_UNSPEC;
	skb->tc_index = *g; // for unkai_learn
	found = bpf_map_lookup_elem(&ways, &f);
	if (!found)
		return TC_ACT_UNSPEC;
	w = *found;
	if (!same(&w.of, &f) || !w.out || size > w.size || !fresh(&w, *g, bpf_ktime_get_ns()))
		return TC_ACT_UNSPEC;
	return bpf_redirect(w.out, 0);
}

// unkai_learn sees the frames that bridge and filter let out by a port.
SEC("tc")
int unkai_learn(struct __sk_buff *skb)
{
	struct flow f = {};
	struct way is = {}, *found, was;
	__u32 zero = 0, *g;

	if (skb->mark != MARK_ESTABLISHED || !skb->ingress_ifindex)
		return TC_ACT_UNSPEC;
	is.size = read(skb, skb->ingress_ifindex, &f);
	if (!is.size)
		return TC_ACT_UNSPEC;
	g = bpf_map_lookup_elem(&generation, &zero);
	if (!g || skb->tc_index != (__u16)*g)
		return TC_ACT_UNSPEC; // it came in before something changed: it may have been judged by what was before
	is.out = skb->ifindex;
	is.generation = *g;
	is.seen = bpf_ktime_get_ns();
	is.of = f;
	found = bpf_map_lookup_elem(&ways, &f);
	if (found) {
		was = *found;
		if (same(&was.of, &f) && fresh(&was, is.generation, is.seen)) {
			if (was.out != is.out)
				is.out = 0; // it is flooded
			if (was.size > is.size)
				is.size = was.size;
		}
	}
	bpf_map_update_elem(&ways, &f, &is, BPF_ANY);
	return TC_ACT_UNSPEC;
}

// It calls nothing that the kernel keeps for programs under the GPL.
char LICENSE[] SEC("license") = "Apache-2.0";

// SOURCE is the digest of this file: a test compares them.
char DIGEST[] SEC(".source") = SOURCE;
