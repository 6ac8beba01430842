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
	__u32 segment; // likewise of those that are cut into segments only later: the bridge does not look how long these are
	struct flow of;
	__u64 sum; // of all the rest: the kernel may give an entry to another flow while it is read
};

// A packet is what one frame says of itself.
struct packet {
	struct flow flow;
	__u32 size, segment; // one of them is 0
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

enum kind {
	LONG, // it always goes the long way
	TURN, // likewise, and begins or ends the connection that it is of
	PLAIN,
};

// read says which flow a frame is of, and how long its packet is on the wire, if it is unicast TCP or UDP without options and fragments, and as long as it says.
static __always_inline enum kind read(struct __sk_buff *skb, __u32 in, struct packet *p)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct flow *f = &p->flow;
	void *transport;
	__u32 headers, length = skb->len - sizeof(*eth), says; // bytes of the packet
	enum kind kind = PLAIN;

	if (skb->vlan_present || (void *)(eth + 1) > end || eth->h_dest[0] & 1)
		return LONG;
	f->in = in;
	__builtin_memcpy(f->to, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(f->from, eth->h_source, ETH_ALEN);
	f->ethertype = eth->h_proto;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 4 || ip->ihl != 5 || ip->frag_off & bpf_htons(0x3fff))
			return LONG;
		says = bpf_ntohs(ip->tot_len);
		f->source[0] = ip->saddr;
		f->destination[0] = ip->daddr;
		f->protocol = ip->protocol;
		transport = ip + 1;
		headers = sizeof(*ip);
	} else if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > end || ip->version != 6)
			return LONG;
		says = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		__builtin_memcpy(f->source, &ip->saddr, 16);
		__builtin_memcpy(f->destination, &ip->daddr, 16);
		f->protocol = ip->nexthdr;
		transport = ip + 1;
		headers = sizeof(*ip);
	} else {
		return LONG;
	}
	if (skb->gso_size) // it is longer than the field can say, perhaps
		says = length;
	if (f->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = transport;
		if ((void *)(tcp + 1) > end || tcp->doff < 5)
			return LONG;
		if (tcp->syn || tcp->fin || tcp->rst)
			kind = TURN;
		else if (!tcp->ack || tcp->urg)
			return LONG;
		headers += tcp->doff * 4;
		f->source_port = tcp->source;
		f->destination_port = tcp->dest;
	} else if (f->protocol == IPPROTO_UDP) {
		struct udphdr *udp = transport;
		if ((void *)(udp + 1) > end ||
		    (!skb->gso_size && (bpf_ntohs(udp->len) < sizeof(*udp) || headers + bpf_ntohs(udp->len) > says)))
			return LONG;
		headers += sizeof(*udp);
		f->source_port = udp->source;
		f->destination_port = udp->dest;
	} else {
		return LONG;
	}
	if (headers > says || says > length)
		return LONG;
	if (skb->gso_size)
		p->segment = headers + skb->gso_size;
	else
		p->size = length;
	return kind;
}

// sum is not by chance that of a way half of which is another's.
static __always_inline __u64 sum(struct way *w)
{
	__u64 *x = (void *)w, is = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*w) / sizeof(*x) - 1; i++) {
		is = (is ^ x[i]) * 0x9e3779b97f4a7c15ull;
		is ^= is >> 32;
	}
	return is;
}

static __always_inline int same(struct flow *a, struct flow *b)
{
	__u64 *x = (void *)a, *y = (void *)b, other = 0;

#pragma unroll
	for (int i = 0; i < sizeof(*a) / sizeof(*x); i++)
		other |= x[i] ^ y[i];
	return !other;
}

// find copies the last way of a flow, however long ago it was seen.
static __always_inline int find(struct flow *f, struct way *w)
{
	struct way *found = bpf_map_lookup_elem(&ways, f);

	if (!found)
		return 0;
	*w = *found;
	return w->sum == sum(w) && same(&w->of, f);
}

// fresh tells a way that was seen within a second, and since ways last changed.
static __always_inline int fresh(struct way *w, __u32 now_is, __u64 now)
{
	return w->generation == now_is && now - w->seen < SECOND;
}

// turn has tracking see what comes next of a connection, from either side, when it ends, or perhaps only seems to: the answer to a reset that is none tells it so.
static __always_inline void turn(struct flow *f)
{
	struct way w;
	struct flow back = {};

	if (!find(f, &w))
		return;
	back.in = w.out;
	__builtin_memcpy(back.to, f->from, ETH_ALEN);
	__builtin_memcpy(back.from, f->to, ETH_ALEN);
	__builtin_memcpy(back.source, f->destination, 16);
	__builtin_memcpy(back.destination, f->source, 16);
	back.source_port = f->destination_port;
	back.destination_port = f->source_port;
	back.ethertype = f->ethertype;
	back.protocol = f->protocol;
	bpf_map_delete_elem(&ways, &back);
	bpf_map_delete_elem(&ways, f);
}

// current is the generation, 0 if there is none. Read once: what is compared and what is written down must be the same.
static __always_inline __u32 current(void)
{
	__u32 zero = 0;
	volatile __u32 *g = bpf_map_lookup_elem(&generation, &zero);

	return g ? *g : 0;
}

// unkai_take sends a frame that comes in by a port where the last ones of its flow went, if that was just now.
SEC("tc")
int unkai_take(struct __sk_buff *skb)
{
	struct packet p = {};
	enum kind kind = read(skb, skb->ifindex, &p);
	struct way w;
	__u32 now_is;

	if (kind == TURN)
		turn(&p.flow);
	if (kind != PLAIN)
		return TC_ACT_UNSPEC;
	now_is = current();
	skb->tc_index = now_is; // for unkai_learn
	if (!find(&p.flow, &w) || !fresh(&w, now_is, bpf_ktime_get_ns()) || !w.out || p.size > w.size || p.segment > w.segment)
		return TC_ACT_UNSPEC;
	return bpf_redirect(w.out, 0);
}

// unkai_learn sees the frames that bridge and filter let out by a port.
SEC("tc")
int unkai_learn(struct __sk_buff *skb)
{
	struct packet p = {};
	struct way is = {}, was;

	if (skb->mark != MARK_ESTABLISHED || !skb->ingress_ifindex || read(skb, skb->ingress_ifindex, &p) != PLAIN)
		return TC_ACT_UNSPEC;
	is.generation = current();
	if (skb->tc_index != (__u16)is.generation)
		return TC_ACT_UNSPEC; // it came in before something changed: it may have been judged by what was before
	is.out = skb->ifindex;
	is.seen = bpf_ktime_get_ns();
	is.size = p.size;
	is.segment = p.segment;
	is.of = p.flow;
	if (find(&p.flow, &was) && fresh(&was, is.generation, is.seen)) {
		if (was.out != is.out)
			is.out = 0; // it is flooded
		if (was.size > is.size)
			is.size = was.size;
		if (was.segment > is.segment)
			is.segment = was.segment;
	}
	is.sum = sum(&is);
	bpf_map_update_elem(&ways, &p.flow, &is, BPF_ANY);
	return TC_ACT_UNSPEC;
}

// It calls nothing that the kernel keeps for programs under the GPL.
char LICENSE[] SEC("license") = "Apache-2.0";

// SOURCE is the digest of this file: a test compares them.
char DIGEST[] SEC(".source") = SOURCE;
