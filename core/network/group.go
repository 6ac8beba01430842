package network

import (
	"context"
	"net/netip"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Group is a security group: rules that say what may pass a port.
type Group struct {
	resource.Meta

	Description string
	Tags        []string
	Stateful    bool // answers to what was let through pass by themselves
	Default     bool // the group that a project's ports get unless they say otherwise
	Shared      bool // every project may use it
}

// DefaultGroupName is what each project's default group is called.
const DefaultGroupName = "default"

var groupFields = common(fields[Group]{
	"description": {text: func(g *Group) []string { return []string{g.Description} }, by: true, sparse: true},
	"tag":         {text: func(g *Group) []string { return g.Tags }, by: true},
	"stateful":    {text: func(g *Group) []string { return oneBool(g.Stateful) }, by: true, single: true},
	"shared":      {text: func(g *Group) []string { return oneBool(g.Shared) }, by: true, single: true},
})

var groups = state.NewTable[Group]("security-group",
	facets(groupFields),
	state.Index("tail", func(g *Group) state.Key { return state.KeyOf(g.ID.Tail()) }),
	state.Unique("default", func(g *Group) state.Key {
		if !g.Default {
			return ""
		}
		return state.KeyOf(g.ProjectID)
	}),
	state.Tally("project", func(g *Group) (state.Key, state.Amounts) { return state.KeyOf(g.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"security-group.create": identity.Member, "security-group.read": identity.Reader,
	"security-group.update": identity.Member, "security-group.delete": identity.Member,
})

var groupNoun = noun[Group]{
	tallied: true,
	name:    "security-group", title: "Security group", table: groups, fields: groupFields,
	shown: func(tx *state.Tx, a *identity.Actor, g *Group) bool {
		return g.Shared || sharedWith(tx, g.ID, a.ProjectID)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		return append(sharedSpans(tx, SharedGroup, a.ProjectID), span{index: "by", key: facet(resource.ID{}, "shared", "true")})
	},
}

func init() {
	groupNoun.add, groupNoun.change, groupNoun.remove = addGroup, changeGroup, removeGroup
}

// Groups gives other domains and the native API a look at every security group.
func Groups() *state.Table[Group] { return groups }

func addGroup(ctx context.Context, tx *state.Tx, g *Group) error {
	if err := mayCreate(ctx, "security-group.create", g.ProjectID); err != nil {
		return err
	}
	if _, err := ensureDefaultGroup(tx, g.ProjectID); err != nil {
		return err
	}
	if strings.EqualFold(g.Name, DefaultGroupName) {
		return fault.Errorf(fault.Conflict, "Default security group already exists.").WithCode("default-group-exists")
	}
	g.Default, g.Shared = false, false
	if err := checkTexts(&g.Meta, g.Description, g.Tags); err != nil {
		return err
	}
	if err := checkQuota(tx, g.ProjectID, "security-group"); err != nil {
		return err
	}
	if err := groups.Put(tx, g); err != nil {
		return err
	}
	return addEgress(tx, g)
}

// addEgress lets everything out, which is how a new group begins.
func addEgress(tx *state.Tx, g *Group) error {
	for _, v6 := range []bool{false, true} {
		r := &Rule{Meta: resource.Meta{ID: tx.NewID(), ProjectID: g.ProjectID}, GroupID: g.ID, V6: v6, Protocol: AnyProtocol}
		if err := rules.Put(tx, r); err != nil {
			return err
		}
	}
	return nil
}

// ensureDefaultGroup gives a project's default group, and makes it if there is none yet: it lets everything
// out, and in what comes from its own members.
func ensureDefaultGroup(tx *state.Tx, projectID resource.ID) (*Group, error) {
	if projectID.IsZero() {
		return nil, nil
	}
	if g, ok := groups.Lookup(tx, "default", state.KeyOf(projectID)); ok {
		return g, nil
	}
	g := &Group{Meta: resource.Meta{ID: tx.NewID(), ProjectID: projectID, Name: DefaultGroupName},
		Description: "Default security group", Stateful: true, Default: true}
	if err := groups.Put(tx, g); err != nil {
		return nil, err
	}
	if err := addEgress(tx, g); err != nil {
		return nil, err
	}
	for _, v6 := range []bool{false, true} {
		r := &Rule{Meta: resource.Meta{ID: tx.NewID(), ProjectID: projectID}, GroupID: g.ID, Ingress: true, V6: v6,
			Protocol: AnyProtocol, RemoteGroup: g.ID}
		if err := rules.Put(tx, r); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// EnsureDefaultGroup makes the acting project's default group if there is none yet.
func (s *Service) EnsureDefaultGroup(ctx context.Context) error {
	a := identity.ActorOf(ctx)
	tx, err := s.State.View(ctx)
	if err != nil || a.ProjectID.IsZero() || !a.Has("reader") {
		return err
	}
	if _, ok := groups.Lookup(tx, "default", state.KeyOf(a.ProjectID)); ok {
		return nil
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		_, err := ensureDefaultGroup(tx, a.ProjectID)
		return err
	})
}

func changeGroup(ctx context.Context, tx *state.Tx, was, now *Group) error {
	if was.Default && now.Name != was.Name || !was.Default && strings.EqualFold(now.Name, DefaultGroupName) {
		return fault.Errorf(fault.Conflict, "The name of the default security group cannot be changed or taken.").WithCode("default-group-exists")
	}
	if was.Stateful != now.Stateful {
		for p := range ports.Peek(tx, "group", state.Range{Prefix: state.KeyOf(was.ID)}) {
			return fault.Errorf(fault.Conflict, "Security Group %s in use: port %s.", was.ID, p.ID).WithCode("security-group-in-use")
		}
	}
	if err := checkTexts(&now.Meta, now.Description, now.Tags); err != nil {
		return err
	}
	return groups.Put(tx, now)
}

func removeGroup(ctx context.Context, tx *state.Tx, g *Group) error {
	if g.Default && !identity.ActorOf(ctx).Admin() {
		return fault.Errorf(fault.Conflict, "Insufficient rights for removing default security group.").WithCode("default-group-kept")
	}
	return dropGroup(tx, g)
}

// dropGroup deletes a group with its rules, and the rules of others that are about its members.
func dropGroup(tx *state.Tx, g *Group) error {
	for p := range ports.Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		return fault.Errorf(fault.Conflict, "Security Group %s in use: port %s.", g.ID, p.ID).WithCode("security-group-in-use")
	}
	doomed := append(rules.IDs(tx, "group", state.KeyOf(g.ID)), rules.IDs(tx, "remote-group", state.KeyOf(g.ID))...)
	for _, id := range doomed {
		if err := rules.Delete(tx, id); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	if err := dropShares(tx, g.ID); err != nil {
		return err
	}
	return groups.Delete(tx, g.ID)
}

// GroupIDs finds a project's security groups by name or by ID. A name that several have is refused.
func GroupIDs(ctx context.Context, tx *state.Tx, projectID resource.ID, namesOrIDs []string) ([]resource.ID, error) {
	ids := []resource.ID{}
	for _, s := range namesOrIDs {
		g, err := GroupByName(ctx, tx, projectID, s)
		if err != nil {
			return nil, err
		}
		ids = append(ids, g.ID)
	}
	return ids, nil
}

// GroupByName finds one security group that a project can use, by its ID or its name.
func GroupByName(ctx context.Context, tx *state.Tx, projectID resource.ID, nameOrID string) (*Group, error) {
	if id, err := resource.ParseID(nameOrID); err == nil {
		if g, ok := groups.Find(tx, id); ok && (g.ProjectID == projectID || g.Shared || sharedWith(tx, g.ID, projectID)) {
			return g, nil
		}
	}
	if nameOrID == DefaultGroupName {
		return ensureDefaultGroup(tx, projectID)
	}
	var found *Group
	for g := range groups.Each(tx, "by", facet(projectID, "name", nameOrID)) {
		if found != nil {
			return nil, fault.Errorf(fault.Conflict, "Multiple security groups matches found for name '%s', use an ID to be more specific.", nameOrID).
				WithCode("security-group-ambiguous")
		}
		found = g
	}
	if found == nil {
		return nil, groupNoun.missing(nameOrID)
	}
	return found, nil
}

// A Rule lets some packets pass the ports of a group.
type Rule struct {
	resource.Meta

	Description   string
	Tags          []string
	GroupID       resource.ID
	Ingress       bool
	V6            bool
	Protocol      int    // IP protocol number; AnyProtocol for any
	ProtocolLabel string // as its owner spelled it: a name or a number; "" for any
	PortMin       int    // for ICMP the type; meaningful with HasMin
	PortMax       int    // for ICMP the code; meaningful with HasMax
	HasMin        bool
	HasMax        bool
	RemotePrefix  netip.Prefix // invalid: not about a prefix
	RemoteGroup   resource.ID
	RemoteSet     resource.ID // an address group
}

// AnyProtocol is a Rule's Protocol when it is about all.
const AnyProtocol = -1

// Protocols that have ports, and those that have types and codes (IANA "Protocol Numbers").
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoDCCP   = 33
	protoICMPv6 = 58
	protoSCTP   = 132
	protoUDPL   = 136
)

var ruleFields = common(fields[Rule]{
	"description": {text: func(r *Rule) []string { return []string{r.Description} }, by: true, sparse: true},
	"tag":         {text: func(r *Rule) []string { return r.Tags }, by: true},
	"group":       {text: func(r *Rule) []string { return oneID(r.GroupID) }, index: "group", key: idKey},
	"ingress":     {text: func(r *Rule) []string { return oneBool(r.Ingress) }, by: true, single: true},
	"v6":          {text: func(r *Rule) []string { return oneBool(r.V6) }, by: true, single: true},
	"protocol":    {text: func(r *Rule) []string { return []string{r.ProtocolLabel} }, by: true, single: true},
	"port-min": {text: func(r *Rule) []string { return bound(r.PortMin, r.HasMin) }, by: true,
		order: func(a, b *Rule) int { return a.PortMin - b.PortMin }},
	"port-max": {text: func(r *Rule) []string { return bound(r.PortMax, r.HasMax) }, by: true,
		order: func(a, b *Rule) int { return a.PortMax - b.PortMax }},
	"remote-prefix": {text: func(r *Rule) []string { return prefixText(r.RemotePrefix) }, by: true},
	"remote-group":  {text: func(r *Rule) []string { return oneID(r.RemoteGroup) }, index: "remote-group", key: idKey},
	"remote-set":    {text: func(r *Rule) []string { return oneID(r.RemoteSet) }, index: "remote-set", key: idKey},
})

func bound(n int, has bool) []string {
	if !has {
		return []string{""}
	}
	return []string{strconv.Itoa(n)}
}

func prefixText(p netip.Prefix) []string {
	if !p.IsValid() {
		return []string{""}
	}
	return []string{p.String()}
}

func nonZero(id resource.ID) state.Key {
	if id.IsZero() {
		return ""
	}
	return state.KeyOf(id)
}

var rules = state.NewTable[Rule]("security-group-rule",
	facets(ruleFields),
	state.Index("group", func(r *Rule) state.Key { return state.KeyOf(r.GroupID) }),
	state.Index("remote-group", func(r *Rule) state.Key { return nonZero(r.RemoteGroup) }),
	state.Index("remote-set", func(r *Rule) state.Key { return nonZero(r.RemoteSet) }),
	state.Unique("same", sameRule),
	state.Tally("project", func(r *Rule) (state.Key, state.Amounts) { return state.KeyOf(r.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"security-group-rule.create": identity.Member, "security-group-rule.read": identity.Reader,
	"security-group-rule.update": identity.Member, "security-group-rule.delete": identity.Member,
})

var ruleNoun = noun[Rule]{
	tallied: true,
	name:    "security-group-rule", title: "Security group rule", table: rules, fields: ruleFields,
	shown: func(tx *state.Tx, a *identity.Actor, r *Rule) bool {
		g, ok := groups.PeekOne(tx, r.GroupID)
		return ok && groupNoun.visible(tx, a, g)
	},
	others: func(tx *state.Tx, a *identity.Actor) []span {
		var spans []span
		for g := range groupNoun.each(tx, groupNoun.others(tx, a), false) {
			spans = append(spans, span{index: "group", key: state.KeyOf(g.ID)})
		}
		return spans
	},
}

func init() { ruleNoun.add, ruleNoun.change, ruleNoun.remove = addRule, changeRule, removeRule }

// Rules gives other domains and the native API a look at every security group rule.
func Rules() *state.Table[Rule] { return rules }

func addRule(ctx context.Context, tx *state.Tx, r *Rule) error {
	if err := mayCreate(ctx, "security-group-rule.create", r.ProjectID); err != nil {
		return err
	}
	g, err := visibleOne(ctx, tx, &groupNoun, r.GroupID)
	if err != nil {
		return err
	}
	if err := groupNoun.allow(ctx, tx, "update", g); err != nil {
		return err
	}
	if err := checkRule(ctx, tx, r); err != nil {
		return err
	}
	r.ProjectID = g.ProjectID
	if err := checkQuota(tx, r.ProjectID, "security-group-rule"); err != nil {
		return err
	}
	if err := rules.Put(tx, r); err != nil {
		if fault.Is(err, fault.Exists) {
			same, _ := rules.Lookup(tx, "same", sameRule(r))
			return fault.Errorf(fault.Conflict, "Security group rule already exists. Rule id is %s.", same.ID).WithCode("rule-exists")
		}
		return err
	}
	return touch(tx, &groupNoun, g.ID)
}

func sameRule(r *Rule) state.Key {
	return state.KeyOf(r.GroupID, r.Ingress, r.V6, r.Protocol, r.HasMin, r.PortMin, r.HasMax, r.PortMax,
		prefixText(r.RemotePrefix)[0], r.RemoteGroup, r.RemoteSet)
}

func changeRule(ctx context.Context, tx *state.Tx, was, now *Rule) error {
	if sameRule(was) != sameRule(now) {
		return fault.InvalidField("rule", "cannot be changed: make another one")
	}
	if err := checkTexts(&now.Meta, now.Description, now.Tags); err != nil {
		return err
	}
	return rules.Put(tx, now)
}

func removeRule(ctx context.Context, tx *state.Tx, r *Rule) error {
	if err := rules.Delete(tx, r.ID); err != nil {
		return err
	}
	return touch(tx, &groupNoun, r.GroupID)
}

func checkRule(ctx context.Context, tx *state.Tx, r *Rule) error {
	if err := checkTexts(&r.Meta, r.Description, r.Tags); err != nil {
		return err
	}
	remotes := 0
	for _, is := range []bool{r.RemotePrefix.IsValid(), !r.RemoteGroup.IsZero(), !r.RemoteSet.IsZero()} {
		if is {
			remotes++
		}
	}
	if remotes > 1 {
		return invalid("rule-remotes", "A rule may be about a prefix, a group or an address group: only one of them.")
	}
	if r.RemotePrefix.IsValid() && r.RemotePrefix.Addr().Is6() != r.V6 {
		return invalid("rule-ethertype", "A rule about %s cannot be about the prefix %s.", family(r.V6), r.RemotePrefix)
	}
	if !r.RemoteGroup.IsZero() {
		if _, err := visibleOne(ctx, tx, &groupNoun, r.RemoteGroup); err != nil {
			return err
		}
	}
	if !r.RemoteSet.IsZero() {
		if _, err := visibleOne(ctx, tx, &addressGroupNoun, r.RemoteSet); err != nil {
			return err
		}
	}
	return checkRulePorts(r)
}

func family(v6 bool) string {
	if v6 {
		return "IPv6"
	}
	return "IPv4"
}

func checkRulePorts(r *Rule) error {
	switch r.Protocol {
	case AnyProtocol, 0:
		if r.HasMin || r.HasMax {
			return invalid("rule-protocol-required", "Must also specify protocol if port range is given.")
		}
	case protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPL:
		if r.HasMin != r.HasMax {
			return invalid("rule-port-range", "Both ends of a range of ports must be given, the lower one first.")
		}
		if r.HasMin && (r.PortMin < 1 && r.Protocol != protoTCP && r.Protocol != protoUDP || r.PortMin < 0 || r.PortMax > 65535) {
			return invalid("rule-port", "Invalid value for port.")
		}
		if r.HasMin && (r.PortMin > r.PortMax || r.PortMin == 0) {
			return invalid("rule-port-range", "Invalid port range: the lower bound must be at least 1 and not above the upper one.")
		}
	case protoICMP, protoICMPv6:
		if r.Protocol == protoICMPv6 && !r.V6 {
			return invalid("rule-ethertype-protocol", "A rule about %s cannot be about the protocol %s.", family(r.V6), r.ProtocolLabel)
		}
		if r.HasMin && (r.PortMin < 0 || r.PortMin > 255) || r.HasMax && (r.PortMax < 0 || r.PortMax > 255) {
			return invalid("rule-icmp", "Invalid value for ICMP type or code: it must be 0 to 255.")
		}
		if r.HasMax && !r.HasMin {
			return invalid("rule-icmp-type", "The ICMP code %d is given, but no ICMP type.", r.PortMax)
		}
	default:
		if r.HasMin || r.HasMax {
			return invalid("rule-port-protocol", "Invalid protocol %s for port range, only protocols with ports have one.", r.ProtocolLabel)
		}
		if r.Protocol < 0 || r.Protocol > 255 {
			return invalid("rule-protocol", "Security group rule protocol %s not supported.", r.ProtocolLabel)
		}
	}
	return nil
}

// DefaultGroup is a project's default group; false while nobody has needed it.
func DefaultGroup(tx *state.Tx, projectID resource.ID) (resource.ID, bool) {
	g, ok := groups.Lookup(tx, "default", state.KeyOf(projectID))
	if !ok {
		return resource.ID{}, false
	}
	return g.ID, true
}
