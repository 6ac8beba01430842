package linuxnet

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/unkai-cloud/unkai/core/network"
)

// Names inside a segment's namespace. Ports of a bridge are told apart by the
// first letter of their names, so that a router's leg needs no change of rules.
const (
	bridgeName = "br"
	vxlanName  = "vx"
	uplinkName = "up" // to a bridge of the host, for a provider network
	tapPrefix  = "t"
	legPrefix  = "g" // of a router
	tableName  = "unkai"
)

// What the prerouting chain writes on a packet about the connection it belongs
// to, for the bridge's own chains, which cannot ask connection tracking. Before
// that a guest's packets bear its tag, by which its connections are counted.
const (
	markEstablished = 1
	markInvalid     = 2
)

const (
	metadataV4 = "169.254.169.254"
	metadataV6 = "fe80::a9fe:a9fe"
)

// A guard is everything the packet filter of one segment depends on.
type guard struct {
	BridgeMAC string
	DHCPv4    bool // answered here, so no request may go further
	DHCPv6    bool
	RA        bool
	Metadata  bool
	Exits     []exitLeg
	Ports     []guardedPort
}

// An exitLeg is a leg of a router whose home is this host, and the hardware address by which other hosts mean it.
type exitLeg struct{ Exit, MAC string }

// A guardedPort is a guest's tap, and what may pass it.
type guardedPort struct {
	Tap     string
	Open    bool // no port security: nothing is filtered
	Sources []source
	Own     []netip.Addr // its addresses, by which it is answered
	policy
}

// A source is a hardware address a guest may send from, and the addresses that
// may go with it.
type source struct {
	MAC      string
	Prefixes []netip.Prefix
}

// A policy is the sum of a port's security groups.
type policy struct {
	Stateful bool // replies pass
	Rules    []network.FilterRule
}

// render writes the packet filter of a segment for nft(8), which replaces what
// was there in one transaction. Base chains have the policy accept and end in an
// explicit drop instead: nft hooks a new base chain in, empty, a moment before
// the transaction commits, and an empty chain with policy drop would lose the
// packets of that moment, while the old chain still protects them.
func (g guard) render() string {
	w := &script{sets: map[string]string{}, chains: map[string]bool{}}
	ports := slices.Clone(g.Ports)
	slices.SortFunc(ports, func(a, b guardedPort) int { return strings.Compare(a.Tap, b.Tap) })

	w.open("chain prerouting")
	w.line("type filter hook prerouting priority dstnat; policy accept;")
	g.exits(w)
	w.tag(ports)
	w.dispatch("iifname", ports, func(p guardedPort) string {
		if p.Open {
			return "goto common"
		}
		return "goto guarded"
	})
	w.line(`iifname "%s*" drop`, tapPrefix)
	w.close()
	g.common(w)
	w.guarded(slices.DeleteFunc(slices.Clone(ports), func(p guardedPort) bool { return p.Open }))

	// Ports with the same groups, which most of a network's have, share chains.
	egress := func(p guardedPort) string { return "jump egress_" + w.policy(p) }
	ingress := func(p guardedPort) string { return "goto ingress_" + w.policy(p) }
	w.open("chain forwarding")
	w.line("type filter hook forward priority filter; policy accept;")
	w.line(`oifname "%s" arp daddr ip %s drop`, vxlanName, metadataV4)
	// A router has the same addresses on every host, and each tells its own guests.
	w.line(`iifname "%s*" oifname %q ether daddr ff:ff:ff:ff:ff:ff arp operation reply drop`, legPrefix, vxlanName)
	w.line(`iifname "%s*" oifname %q icmpv6 type nd-neighbor-advert ether daddr 33:33:00:00:00:01 drop`, legPrefix, vxlanName)
	w.dispatch("iifname", ports, egress)
	w.dispatch("oifname", ports, ingress)
	w.line(`oifname "%s*" drop`, tapPrefix)
	w.close()
	for _, port := range ports {
		name := w.policy(port)
		if w.chains[name] {
			continue
		}
		w.chains[name] = true
		g.egress(w, name, port)
		g.ingress(w, name, port)
	}

	var out strings.Builder
	v4, v6 := guestSets(ports)
	fmt.Fprintf(&out, inetTable, tableName, markEstablished, markInvalid, metadataV4, metadataV6, v4, v6)
	fmt.Fprintf(&out, "table bridge %s {\n", tableName)
	names := make([]string, 0, len(w.sets))
	for name := range w.sets {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		out.WriteString(w.sets[name])
	}
	out.WriteString(w.body.String())
	out.WriteString("}\n")
	return out.String()
}

// inetTable tells the bridge what connection tracking knows of its packets
// (br_netfilter shows them to this hook), and lets guests reach nothing in the
// namespace but the metadata service. It hears nobody but this host's guests at
// their addresses: each address that it hears of it would keep.
const inetTable = `table arp %[1]s {
	set guests {
		type ipv4_addr%[6]s
	}
	chain input {
		type filter hook input priority filter; policy accept;
		arp saddr ip 0.0.0.0 accept
		arp saddr ip @guests accept
		drop
	}
}
table inet %[1]s {
	set guests4 {
		type ipv4_addr%[6]s
	}
	set guests6 {
		type ipv6_addr%[7]s
	}
	chain tracking {
		type filter hook prerouting priority mangle; policy accept;
		ct state established,related meta mark set %[2]d
		ct state invalid meta mark set %[3]d
	}
	chain input {
		type filter hook input priority filter; policy accept;
		ip saddr @guests4 ip daddr %[4]s tcp dport 80 accept
		ip6 saddr @guests6 ip6 daddr %[5]s tcp dport 80 accept
		ip6 saddr @guests6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
		ip6 saddr :: icmpv6 type nd-neighbor-solicit accept
		drop
	}
}
`

// guestSets lists the ports' own addresses, as elements of a set for each family.
func guestSets(ports []guardedPort) (v4, v6 string) {
	var all4, all6 []string
	for _, port := range ports {
		for _, addr := range port.Own {
			if addr.Is4() {
				all4 = append(all4, addr.String())
			} else {
				all6 = append(all6, addr.String())
			}
		}
	}
	elements := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		slices.Sort(list)
		return "\n\t\telements = " + inline(slices.Compact(list))
	}
	return elements(all4), elements(all6)
}

// flowTable bounds how many connections one guest may have begun, and all that comes from elsewhere: the
// kernel tracks a limited number for everybody in the namespace. It depends on no port and is loaded once,
// so that it goes on counting when rules change. A connection is counted when its first packet comes.
const flowTable = `table inet %[1]s_flows {
	set guests {
		type mark
		size 65535
		flags dynamic
	}
	set others {
		type mark
		size 65535
		flags dynamic
	}
	chain counting {
		type filter hook prerouting priority mangle - 10; policy accept;
		ct state != new accept
		ct status & confirmed == confirmed accept
		meta mark 0 add @others { meta mark ct count over %[3]d } drop
		meta mark != 0 add @guests { meta mark ct count over %[2]d } drop
	}
}
`

// tag gives the packets of each port a mark of its own that stays the same. Should two ever share one, they
// share what each may have.
func (w *script) tag(ports []guardedPort) {
	if len(ports) == 0 {
		return
	}
	tags := make([]string, len(ports))
	for i, port := range ports {
		digest := sha256.Sum256([]byte(port.Tap))
		tags[i] = fmt.Sprintf("%q : 0x%08x", port.Tap, binary.BigEndian.Uint32(digest[:])&^0xff|0x100)
	}
	w.line("meta mark set iifname map { %s }", strings.Join(tags, ", "))
}

// exits leads frames that other hosts send to a router's home to the router's leg. The leg's own address is
// on every host, so that from there it leads nowhere else.
func (g guard) exits(w *script) {
	if len(g.Exits) == 0 {
		return
	}
	legs := make([]string, len(g.Exits))
	for i, leg := range g.Exits {
		legs[i] = leg.Exit + " : " + leg.MAC
	}
	slices.Sort(legs)
	w.line("iifname %q ether daddr set ether daddr map { %s }", vxlanName, strings.Join(legs, ", "))
}

// common is the way of every frame that a guest may send: what the host itself
// answers is turned to the bridge, whoever it was addressed to.
func (g guard) common(w *script) {
	w.open("chain common")
	if g.DHCPv4 {
		w.line("meta protocol ip udp dport 67 goto to_host")
	}
	if g.DHCPv6 {
		w.line("meta protocol ip6 udp dport 547 goto to_host")
	}
	if g.RA {
		w.line("icmpv6 type nd-router-solicit goto to_host")
	}
	if g.Metadata {
		w.line("ip daddr %s tcp dport 80 goto to_host", metadataV4)
		w.line("ip6 daddr %s tcp dport 80 goto to_host", metadataV6)
	}
	w.line("ip daddr %s drop", metadataV4)
	w.line("accept")
	w.close()
	w.open("chain to_host")
	w.line("meta pkttype set host ether daddr set %s accept", g.BridgeMAC)
	w.close()
}

// guarded holds each port to its own addresses. Single addresses of all ports
// stand in three sets, so that a port more is an element more; only networks
// that a port may use need rules of its own.
func (w *script) guarded(ports []guardedPort) {
	var macs, v4, v6 []string
	var advertisers, wide []guardedPort
	for _, port := range ports {
		for _, source := range port.Sources {
			macs = append(macs, fmt.Sprintf("%q . %s", port.Tap, source.MAC))
			for _, prefix := range merge(source.Prefixes) {
				element := fmt.Sprintf("%q . %s . %s", port.Tap, source.MAC, prefix.Addr())
				switch {
				case !prefix.IsSingleIP():
					if !slices.ContainsFunc(wide, func(p guardedPort) bool { return p.Tap == port.Tap }) {
						wide = append(wide, port)
					}
				case prefix.Addr().Is4():
					v4 = append(v4, element)
				default:
					v6 = append(v6, element)
				}
			}
		}
		advertisers = append(advertisers, port)
	}
	w.define("macs", "ifname . ether_addr", macs)
	w.define("senders4", "ifname . ether_addr . ipv4_addr", v4)
	w.define("senders6", "ifname . ether_addr . ipv6_addr", v6)

	w.open("chain guarded")
	w.line("ether type != { ip, arp, ip6 } drop")
	w.line("iifname . ether saddr != @macs drop")
	w.line("iifname . arp saddr ether . arp saddr ip @senders4 accept")
	w.line("arp saddr ip 0.0.0.0 iifname . arp saddr ether @macs accept") // a probe (RFC 5227)
	w.line("ip saddr 0.0.0.0 udp sport 68 udp dport 67 goto common")
	w.line("ip6 saddr :: icmpv6 type { mld-listener-report, nd-router-solicit, nd-neighbor-solicit, mld2-listener-report } goto common")
	w.dispatch("icmpv6 type nd-neighbor-advert iifname", advertisers, func(p guardedPort) string { return "jump advertiser_" + p.Tap })
	w.line("iifname . ether saddr . ip saddr @senders4 goto common")
	w.line("iifname . ether saddr . ip6 saddr @senders6 goto common")
	w.dispatch("iifname", wide, func(p guardedPort) string { return "goto wide_" + p.Tap })
	w.line("drop")
	w.close()
	for _, port := range advertisers {
		w.advertiser(port)
	}
	for _, port := range wide {
		w.wide(port)
	}
}

// advertiser lets a port say of its own addresses only that it has them. A
// fragment that hides the address does not match, and is dropped.
func (w *script) advertiser(port guardedPort) {
	var all []netip.Prefix
	for _, source := range port.Sources {
		all = append(all, source.Prefixes...)
	}
	w.open("chain advertiser_" + port.Tap)
	for _, prefix := range merge(all) {
		if prefix.Addr().Is6() {
			w.line("%sreturn", target(prefix))
		}
	}
	w.line("drop")
	w.close()
}

// wide lets a port use networks.
func (w *script) wide(port guardedPort) {
	w.open("chain wide_" + port.Tap)
	for _, source := range port.Sources {
		own := "ether saddr " + source.MAC
		v4, v6 := networks(source.Prefixes)
		if len(v4) > 0 {
			w.line("%s ether type arp arp saddr ether %s arp saddr ip %s accept", own, source.MAC, inline(v4))
			w.line("%s ip saddr %s goto common", own, inline(v4))
		}
		if len(v6) > 0 {
			w.line("%s ip6 saddr %s goto common", own, inline(v6))
		}
	}
	w.line("drop")
	w.close()
}

// networks lists the prefixes that are more than one address.
func networks(prefixes []netip.Prefix) (v4, v6 []string) {
	for _, prefix := range merge(prefixes) {
		switch {
		case prefix.IsSingleIP():
		case prefix.Addr().Is4():
			v4 = append(v4, prefix.String())
		default:
			v6 = append(v6, prefix.String())
		}
	}
	return v4, v6
}

// egress decides what may leave a guest. It comes after fragments are put
// together, so that none hides what it is.
func (g guard) egress(w *script, name string, port guardedPort) {
	w.open("chain egress_" + name)
	defer w.close()
	if port.Open {
		w.line("return")
		return
	}
	w.line("ether type arp return")
	w.line("meta protocol ip udp sport 67 udp dport 68 drop")
	w.line("meta protocol ip6 udp sport 547 udp dport 546 drop")
	w.line("icmpv6 type { nd-router-advert, nd-redirect } drop")
	w.line("icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert, mld2-listener-report } return")
	w.line("meta protocol ip udp sport 68 udp dport 67 return")
	w.line("meta protocol ip6 udp sport 546 udp dport 547 return")
	port.policy.render(w, false, "return")
}

// ingress decides what may reach a guest.
func (g guard) ingress(w *script, name string, port guardedPort) {
	w.open("chain ingress_" + name)
	defer w.close()
	if port.Open {
		w.line("accept")
		return
	}
	w.line("ether type arp accept")
	w.line("icmpv6 type { mld-listener-query, nd-neighbor-solicit, nd-neighbor-advert } accept")
	if !g.RA {
		w.line("icmpv6 type nd-router-advert accept")
	}
	if !g.DHCPv4 {
		w.line("meta protocol ip udp sport 67 udp dport 68 accept")
	}
	if !g.DHCPv6 {
		w.line("meta protocol ip6 udp sport 547 udp dport 546 accept")
	}
	port.policy.render(w, true, "accept")
}

// render writes a port's rules for one direction; what passes gets the verdict.
func (p policy) render(w *script, ingress bool, verdict string) {
	if p.Stateful {
		w.line("meta mark %d %s", markEstablished, verdict)
		w.line("meta mark %d drop", markInvalid)
	}
	seen := map[string]bool{}
	for _, rule := range p.Rules {
		if rule.Ingress != ingress {
			continue
		}
		match, ok := w.match(rule)
		if !ok || seen[match] {
			continue
		}
		seen[match] = true
		w.line("%s %s", match, verdict)
	}
	w.line("drop")
}

// match writes a rule's condition; false if the rule can never match. A rule
// that makes no sense is such a rule: nft would refuse it, and with it the
// filter of everybody in the network.
func (w *script) match(rule network.FilterRule) (string, bool) {
	if rule.Protocol < 0 || rule.Protocol > 255 {
		return "", false
	}
	protocol, header, side := "ip", "ip", "daddr"
	if rule.V6 {
		protocol, header = "ip6", "ip6"
	}
	if rule.Ingress {
		side = "saddr"
	}
	words := []string{"meta protocol " + protocol}
	if rule.Remote != nil {
		remote := remotes(rule)
		if len(remote) == 0 {
			return "", false
		}
		words = append(words, fmt.Sprintf("%s %s @%s", header, side, w.set(remote, rule.V6)))
	}
	if rule.Protocol != 0 {
		words = append(words, fmt.Sprintf("meta l4proto %d", rule.Protocol))
		switch {
		case isICMP(rule.Protocol):
			if rule.PortMin > 255 || rule.PortMax > 255 {
				return "", false
			}
			if rule.PortMin >= 0 {
				words = append(words, fmt.Sprintf("@th,0,8 %d", rule.PortMin))
			}
			if rule.PortMax >= 0 {
				words = append(words, fmt.Sprintf("@th,8,8 %d", rule.PortMax))
			}
		case hasPorts(rule.Protocol) && (rule.PortMin >= 0 || rule.PortMax >= 0):
			low, high := portRange(rule)
			if low > high || high > 65535 {
				return "", false
			}
			words = append(words, fmt.Sprintf("th dport %d-%d", low, high))
		}
	}
	return strings.Join(words, " "), true
}

func isICMP(protocol int) bool { return protocol == 1 || protocol == 58 }

// hasPorts: DCCP, TCP, UDP, SCTP and UDP-Lite begin with two port numbers.
func hasPorts(protocol int) bool {
	return slices.Contains([]int{6, 17, 33, 132, 136}, protocol)
}

func portRange(rule network.FilterRule) (low, high int) {
	low, high = rule.PortMin, rule.PortMax
	if low < 0 {
		low = 0
	}
	if high < 0 {
		high = 65535
	}
	return low, high
}

// remotes is a rule's remote of the rule's own family, in the fewest prefixes.
func remotes(rule network.FilterRule) []netip.Prefix {
	var own []netip.Prefix
	for _, prefix := range rule.Remote {
		if prefix.Addr().Is6() == rule.V6 {
			own = append(own, prefix)
		}
	}
	return merge(own)
}

// merge sorts prefixes and joins those that touch: nft refuses overlaps.
func merge(prefixes []netip.Prefix) []netip.Prefix {
	var set netipx.IPSetBuilder
	for _, prefix := range prefixes {
		if prefix.IsValid() {
			set.AddPrefix(prefix)
		}
	}
	merged, err := set.IPSet()
	if err != nil { // it says so of invalid prefixes only
		return nil
	}
	return merged.Prefixes()
}

// set names a set of addresses. Rules about the same remotes share it.
func (w *script) set(prefixes []netip.Prefix, v6 bool) string {
	kind, flags := "ipv4_addr", ""
	if v6 {
		kind = "ipv6_addr"
	}
	elements := make([]string, len(prefixes))
	for i, prefix := range prefixes {
		elements[i] = address(prefix)
		if !prefix.IsSingleIP() {
			flags = "; flags interval"
		}
	}
	name := "remote_" + sum([]byte(strings.Join(elements, ", ")))
	w.define(name, kind+flags, elements)
	return name
}

// define writes a set.
func (w *script) define(name, kind string, elements []string) {
	text := fmt.Sprintf("\tset %s {\n\t\ttype %s\n", name, kind)
	if len(elements) > 0 {
		text += fmt.Sprintf("\t\telements = { %s }\n", strings.Join(elements, ", "))
	}
	w.sets[name] = text + "\t}\n"
}

// target matches the target address of a neighbour advertisement (RFC 4861,
// section 4.4), which not every nft has a word for.
func target(prefix netip.Prefix) string {
	if prefix.Bits() == 0 {
		return ""
	}
	number := new(big.Int).SetBytes(prefix.Addr().AsSlice())
	number.Rsh(number, uint(128-prefix.Bits()))
	return fmt.Sprintf("@th,64,%d 0x%x ", prefix.Bits(), number)
}

// address spells a prefix of one address without its length.
func address(prefix netip.Prefix) string {
	if prefix.IsSingleIP() {
		return prefix.Addr().String()
	}
	return prefix.String()
}

func inline(elements []string) string { return "{ " + strings.Join(elements, ", ") + " }" }

// A script is nft's input under construction.
type script struct {
	body   strings.Builder
	sets   map[string]string // by name
	chains map[string]bool   // written
}

func (w *script) open(what string) { fmt.Fprintf(&w.body, "\t%s {\n", what) }
func (w *script) close()           { w.body.WriteString("\t}\n") }
func (w *script) line(format string, args ...any) {
	fmt.Fprintf(&w.body, "\t\t"+format+"\n", args...)
}

// dispatch sends each port's packets where verdict says.
func (w *script) dispatch(key string, ports []guardedPort, verdict func(guardedPort) string) {
	if len(ports) == 0 {
		return
	}
	branches := make([]string, len(ports))
	for i, port := range ports {
		branches[i] = fmt.Sprintf("%q : %s", port.Tap, verdict(port))
	}
	w.line("%s vmap { %s }", key, strings.Join(branches, ", "))
}

// policy names what a port's groups add up to.
func (w *script) policy(port guardedPort) string {
	if port.Open {
		return "open"
	}
	text, err := json.Marshal(port.policy)
	if err != nil {
		panic(err) // it is made of numbers and prefixes
	}
	return sum(text)
}

// sum is short and tells texts apart.
func sum(text []byte) string {
	digest := sha256.Sum256(text)
	return hex.EncodeToString(digest[:8])
}
