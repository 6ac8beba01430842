package nova

import (
	"net/http"
	"net/netip"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

// protocols are the names that the old API had.
var protocols = map[int]string{1: "icmp", 6: "tcp", 17: "udp"}

func securityGroupView(tx *state.Tx, g *network.Group) map[string]any {
	rules := []map[string]any{}
	for rule := range network.Rules().Peek(tx, "group", state.Range{Prefix: state.KeyOf(g.ID)}) {
		if rule.Ingress { // it had no others
			rules = append(rules, securityRuleView(tx, rule))
		}
	}
	return map[string]any{"id": g.ID.String(), "name": g.Name, "description": g.Description, "tenant_id": g.ProjectID.Hex(), "rules": rules}
}

func securityRuleView(tx *state.Tx, rule *network.Rule) map[string]any {
	view := map[string]any{"id": rule.ID.String(), "parent_group_id": rule.GroupID.String(), "group": map[string]string{}, "ip_range": map[string]string{},
		"ip_protocol": nil, "from_port": nil, "to_port": nil}
	if rule.Protocol != network.AnyProtocol {
		view["ip_protocol"] = protocols[rule.Protocol]
		view["from_port"], view["to_port"] = -1, -1
	}
	if rule.HasMin {
		view["from_port"] = rule.PortMin
	}
	if rule.HasMax {
		view["to_port"] = rule.PortMax
	}
	if g, ok := network.Groups().PeekOne(tx, rule.RemoteGroup); ok {
		view["group"] = map[string]string{"name": g.Name, "tenant_id": g.ProjectID.Hex()}
	} else if rule.RemotePrefix.IsValid() {
		view["ip_range"] = map[string]string{"cidr": rule.RemotePrefix.String()}
	} else if !rule.V6 {
		view["ip_range"] = map[string]string{"cidr": "0.0.0.0/0"}
	} else {
		view["ip_range"] = map[string]string{"cidr": "::/0"}
	}
	return view
}

func (s *server) listSecurityGroups(w http.ResponseWriter, r *http.Request) error {
	actor := identity.ActorOf(r.Context())
	q := network.Query{}
	if !(actor.Admin() && boolish[r.URL.Query().Get("all_tenants")]) {
		q.Where = []network.Condition{{Field: "project", Values: []string{actor.ProjectID.String()}}}
	}
	limit, _, err := paging(r.URL.Query())
	if err != nil {
		return err
	}
	q.Limit = limit
	page, err := s.network.Groups.List(r.Context(), q)
	if err != nil {
		return err
	}
	tx := s.compute.State.Latest()
	views := []map[string]any{}
	for _, g := range page.Items {
		views = append(views, securityGroupView(tx, g))
	}
	return answer(w, http.StatusOK, map[string]any{"security_groups": views})
}

func (s *server) showSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	g, err := s.network.Groups.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), g)})
}

var groupBody = object(need("name", name), need("description", orNull(text(0, 255))))

func (s *server) createSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group", groupBody)
	if err != nil {
		return err
	}
	want := &network.Group{Meta: resource.Meta{Name: b.text("name"), ProjectID: identity.ActorOf(r.Context()).ProjectID},
		Description: b.text("description"), Stateful: true}
	made, err := s.network.Groups.Create(r.Context(), want)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), made[0])})
}

func (s *server) updateSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group", groupBody)
	if err != nil {
		return err
	}
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	g, err := s.network.Groups.Update(r.Context(), id, 0, func(g *network.Group) error {
		g.Name, g.Description = b.text("name"), b.text("description")
		return nil
	})
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"security_group": securityGroupView(s.compute.State.Latest(), g)})
}

func (s *server) deleteSecurityGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group")
	if err != nil {
		return err
	}
	if err := s.network.Groups.Delete(r.Context(), id, 0); err != nil {
		return asBadRule(err)
	}
	return accepted(w, http.StatusAccepted)
}

var ruleBody = open(need("parent_group_id", anything), may("ip_protocol", orNull(either(text(0, 255), anyNumber))),
	may("from_port", anything), may("to_port", anything), may("cidr", orNull(text(0, 255))), may("group_id", orNull(text(0, 255))))

func (s *server) createSecurityRule(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "security_group_rule", ruleBody)
	if err != nil {
		return err
	}
	if _, err := resource.ParseID(b.text("parent_group_id")); err != nil {
		return fault.Errorf(fault.Invalid, "Security group id should be uuid")
	}
	rule, err := ruleOf(b)
	if err != nil {
		return err
	}
	parent, err := s.network.Groups.Get(r.Context(), rule.GroupID)
	if err != nil {
		return err
	}
	rule.ProjectID = parent.ProjectID
	made, err := s.network.Rules.Create(r.Context(), rule)
	if err != nil {
		return asBadRule(err)
	}
	return answer(w, http.StatusOK, map[string]any{"security_group_rule": securityRuleView(s.compute.State.Latest(), made[0])})
}

func asBadRule(err error) error {
	if f := fault.From(err); f != nil && f.Kind != fault.NotFound && f.Kind != fault.OverQuota {
		return &fault.Error{Kind: fault.Invalid, Code: f.Code, Message: f.Message}
	}
	return err
}

// ruleOf turns a rule as the old API has it into one of today.
func ruleOf(b body) (*network.Rule, error) {
	rule := &network.Rule{GroupID: b.id("parent_group_id"), Ingress: true, Protocol: network.AnyProtocol, RemoteGroup: b.id("group_id")}
	if b.has("group_id") && b["group_id"] != nil && rule.RemoteGroup.IsZero() {
		return nil, fault.Errorf(fault.Invalid, "Source group id should be uuid")
	}
	word := strings.ToLower(b.text("ip_protocol"))
	if word == "" && rule.RemoteGroup.IsZero() {
		return nil, fault.Errorf(fault.Invalid, "Invalid IP protocol None.")
	}
	for number, name := range protocols {
		if name == word {
			rule.Protocol, rule.ProtocolLabel = number, name
		}
	}
	if word != "" && rule.Protocol == network.AnyProtocol {
		return nil, fault.Errorf(fault.Invalid, "Invalid IP protocol %s.", word)
	}
	if cidr := b.text("cidr"); cidr != "" {
		prefix, err := netip.ParsePrefix(cidr)
		if err != nil {
			return nil, fault.Errorf(fault.Invalid, "Invalid cidr %s.", cidr)
		}
		rule.RemotePrefix, rule.V6 = prefix, prefix.Addr().Is6()
	}
	if rule.Protocol == network.AnyProtocol {
		return rule, nil
	}
	from, okFrom := asInt(b["from_port"])
	to, okTo := asInt(b["to_port"])
	least := int64(1)
	if word == "icmp" {
		least = -1
	}
	if !okFrom || !okTo || from < least || to < least || from > 65535 || to > 65535 || word != "icmp" && from > to {
		return nil, fault.Errorf(fault.Invalid, "Invalid port range %v:%v. Valid %s ports should be between %d-65535", b["from_port"], b["to_port"], strings.ToUpper(word), least)
	}
	rule.PortMin, rule.HasMin = int(from), from >= 0
	rule.PortMax, rule.HasMax = int(to), to >= 0
	return rule, nil
}

func (s *server) deleteSecurityRule(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Security group rule")
	if err != nil {
		return err
	}
	if err := s.network.Rules.Delete(r.Context(), id, 0); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}
