package identity

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A Rule says who may take an action on a thing.
type Rule int

const (
	Reader  Rule = iota + 1 // whoever can see it: a reader, member or manager of its project
	Member                  // a member of its project
	Manager                 // a manager of its project
	Admin                   // only an admin of the cloud
	Anyone                  // anybody with a valid token
)

var ruleRole = map[Rule]string{Reader: "reader", Member: "member", Manager: "manager", Admin: "admin"}

var policy struct {
	mu    sync.RWMutex
	rules map[string]Rule
}

// Rules declares who may take which action. An action reads "noun.verb". Each
// domain declares its own, in a package variable: var _ = identity.Rules(…).
func Rules(rules map[string]Rule) bool {
	policy.mu.Lock()
	defer policy.mu.Unlock()
	if policy.rules == nil {
		policy.rules = map[string]Rule{}
	}
	for action, rule := range rules {
		if old, twice := policy.rules[action]; twice && old != rule {
			panic("identity: two rules for " + action)
		}
		policy.rules[action] = rule
	}
	return true
}

// RuleOf is the rule for an action; false if none was declared.
func RuleOf(action string) (Rule, bool) {
	policy.mu.RLock()
	defer policy.mu.RUnlock()
	r, ok := policy.rules[action]
	return r, ok
}

// Allow asks whether the context's actor may take the action on a thing. One who may not see
// it is told that it is not found; one who may see it is told which role is missing.
func Allow(ctx context.Context, action string, thing resource.Meta) error {
	return AllowShared(ctx, action, thing, false)
}

// AllowShared is Allow for a thing that is shown to the actor (shared, public, …) although
// it may belong to another project. Shown does not mean that it may be changed.
func AllowShared(ctx context.Context, action string, thing resource.Meta, shown bool) error {
	a := ActorOf(ctx)
	rule, ok := RuleOf(action)
	if !ok {
		return fmt.Errorf("identity: no rule for action %q", action)
	}
	if a.Admin() || rule == Anyone && !a.UserID.IsZero() {
		return nil
	}
	noun, _, _ := strings.Cut(action, ".")
	own := !a.ProjectID.IsZero() && a.ProjectID == thing.ProjectID
	if !(own && a.Has("reader")) && !shown && !(thing.ID.IsZero() && own) {
		if thing.ID.IsZero() && thing.ProjectID.IsZero() || thing.ID.IsZero() {
			return forbidden(action, rule) // making or listing: there is nothing to hide
		}
		name := thing.ID.String()
		return fault.Missing(noun, name)
	}
	if rule == Reader && (shown || own && a.Has("reader")) {
		return nil
	}
	if rule != Admin && own && a.Has(ruleRole[rule]) {
		return nil
	}
	return forbidden(action, rule)
}

func forbidden(action string, rule Rule) error {
	return fault.Errorf(fault.Forbidden, "You are not allowed to do this: %s needs the role %s.", action, ruleRole[rule]).
		With("action", action).With("role", ruleRole[rule])
}
