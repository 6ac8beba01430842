package identity

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A DomainOption is a setting that an admin keeps for one domain.
type DomainOption struct {
	resource.Meta
	DomainID resource.ID
	Group    string
	Option   string
	Value    json.RawMessage
}

var domainOptions = state.NewTable("domain-option",
	state.Unique("option", func(o *DomainOption) state.Key { return state.KeyOf(o.DomainID, o.Group, o.Option) }),
	state.Index("domain", func(o *DomainOption) state.Key { return state.KeyOf(o.DomainID) }),
)

// MayReadDomainOptions asks whether the actor may see what domains can be set to.
func (s *Service) MayReadDomainOptions(ctx context.Context) error {
	return mayRead(ctx, "domain_config.get", resource.ID{})
}

// DomainOptions gives a domain's settings by group; of one group unless it is "".
func (s *Service) DomainOptions(ctx context.Context, domain resource.ID, group string) (map[string]map[string]json.RawMessage, error) {
	if err := s.MayReadDomainOptions(ctx); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if d, ok := projects.PeekOne(tx, domain); !ok || !d.IsDomain() {
		return nil, notFound("domain", domain.Hex())
	}
	all := map[string]map[string]json.RawMessage{}
	for o := range domainOptions.Each(tx, "option", state.KeyOf(domain)) {
		if group != "" && o.Group != group {
			continue
		}
		if all[o.Group] == nil {
			all[o.Group] = map[string]json.RawMessage{}
		}
		all[o.Group][o.Option] = o.Value
	}
	if len(all) == 0 {
		return nil, notFound("domain configuration for domain", domain.Hex())
	}
	return all, nil
}

// SetDomainOptions keeps settings of a domain, and reports whether they are its first; whole drops those that
// are not given.
func (s *Service) SetDomainOptions(ctx context.Context, domain resource.ID, config map[string]map[string]json.RawMessage, whole bool) (first bool, err error) {
	return state.Do(ctx, s.State, func(tx *state.Tx) (bool, error) {
		if err := mayManage(ctx, "domain_config.set", resource.ID{}); err != nil {
			return false, err
		}
		if d, ok := projects.PeekOne(tx, domain); !ok || !d.IsDomain() {
			return false, notFound("domain", domain.Hex())
		}
		_, old := domainOptions.Lookup(tx, "domain", state.KeyOf(domain))
		if whole {
			if err := deleteEach(tx, domainOptions, "domain", state.KeyOf(domain)); err != nil {
				return false, err
			}
		}
		for _, group := range slices.Sorted(maps.Keys(config)) {
			options := config[group]
			if err := Extra(options).check(); err != nil {
				return false, err
			}
			for _, option := range slices.Sorted(maps.Keys(options)) {
				o, ok := domainOptions.Lookup(tx, "option", state.KeyOf(domain, group, option))
				if !ok {
					o = &DomainOption{Meta: resource.Meta{ID: tx.NewID()}, DomainID: domain, Group: group, Option: option}
				}
				o.Value = options[option]
				if err := domainOptions.Put(tx, o); err != nil {
					return false, err
				}
			}
		}
		return !old, nil
	})
}

// DeleteDomainOptions forgets a domain's settings, those of one group, or one.
func (s *Service) DeleteDomainOptions(ctx context.Context, domain resource.ID, group, option string) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "domain_config.delete", resource.ID{}); err != nil {
			return err
		}
		key := state.KeyOf(domain)
		switch {
		case option != "":
			key = state.KeyOf(domain, group, option)
		case group != "":
			key = state.KeyOf(domain, group)
		}
		if len(domainOptions.IDs(tx, "option", key)) == 0 {
			return notFound("domain configuration for domain", domain.Hex())
		}
		return deleteEach(tx, domainOptions, "option", key)
	})
}
