package identity

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"maps"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Document is a policy that an admin keeps here for other services to fetch. It means nothing to us.
type Document struct {
	resource.Meta
	Type  string
	Blob  string
	Extra Extra
}

var documents = state.NewTable[Document]("policy")

const documentBytes = 256 << 10

func (d *Document) check() error {
	switch {
	case d.Type == "" || len(d.Type) > 255:
		return fault.InvalidField("type", "must have 1 to 255 characters")
	case d.Blob == "" || len(d.Blob) > documentBytes:
		return fault.InvalidField("blob", "must have 1 to %d bytes", documentBytes)
	}
	return d.Extra.check()
}

// CreateDocument keeps a document.
func (s *Service) CreateDocument(ctx context.Context, d *Document) (*Document, error) {
	if err := mayManage(ctx, "policy.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, documents, func(tx *state.Tx) (*Document, error) {
		made := *d
		made.ID = tx.NewID()
		return &made, nil
	})
}

// Document gives one document.
func (s *Service) Document(ctx context.Context, id resource.ID) (*Document, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	d, ok := documents.Find(tx, id)
	if !ok {
		return nil, missing(ctx, "policy.get", "policy", id.Hex())
	}
	return d, mayRead(ctx, "policy.get", resource.ID{})
}

// Documents lists the documents.
func (s *Service) Documents(ctx context.Context) ([]*Document, error) {
	if err := mayRead(ctx, "policy.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(documents.All(tx), nil), nil
}

// UpdateDocument changes a document.
func (s *Service) UpdateDocument(ctx context.Context, id resource.ID, change func(*Document) error) (*Document, error) {
	if err := mayManage(ctx, "policy.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, documents, id, func(tx *state.Tx, d *Document) error {
		if err := change(d); err != nil {
			return err
		}
		return d.check()
	})
}

// DeleteDocument forgets a document.
func (s *Service) DeleteDocument(ctx context.Context, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "policy.delete", resource.ID{}); err != nil {
			return err
		}
		if !documents.Has(tx, id) {
			return missing(ctx, "policy.delete", "policy", id.Hex())
		}
		return documents.Delete(tx, id)
	})
}

// A Consumer is a program that admins have registered, with a secret of its own.
type Consumer struct {
	resource.Meta
	Description string
	Secret      string `secret:"true"`
	Extra       Extra
}

var consumers = state.NewTable[Consumer]("consumer")

// CreateConsumer registers a program and makes its secret.
func (s *Service) CreateConsumer(ctx context.Context, c *Consumer) (*Consumer, error) {
	if err := mayManage(ctx, "consumer.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := c.Extra.check(); err != nil {
		return nil, err
	}
	secret := hex.EncodeToString(s.random(16))
	return create(ctx, s, consumers, func(tx *state.Tx) (*Consumer, error) {
		made := *c
		made.ID, made.Secret = tx.NewID(), secret
		return &made, nil
	})
}

// Consumer gives one.
func (s *Service) Consumer(ctx context.Context, id resource.ID) (*Consumer, error) {
	if err := mayRead(ctx, "consumer.get", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return consumers.Get(tx, id)
}

// Consumers lists them.
func (s *Service) Consumers(ctx context.Context) ([]*Consumer, error) {
	if err := mayRead(ctx, "consumer.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(consumers.All(tx), nil), nil
}

// UpdateConsumer changes one; its secret stays.
func (s *Service) UpdateConsumer(ctx context.Context, id resource.ID, change func(*Consumer) error) (*Consumer, error) {
	if err := mayManage(ctx, "consumer.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, consumers, id, func(tx *state.Tx, c *Consumer) error {
		if err := change(c); err != nil {
			return err
		}
		return c.Extra.check()
	})
}

// DeleteConsumer forgets one.
func (s *Service) DeleteConsumer(ctx context.Context, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "consumer.delete", resource.ID{}); err != nil {
			return err
		}
		return consumers.Delete(tx, id)
	})
}

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

// DomainOptions gives a domain's settings by group; of one group unless it is "".
func (s *Service) DomainOptions(ctx context.Context, domain resource.ID, group string) (map[string]map[string]json.RawMessage, error) {
	if err := mayRead(ctx, "domain_config.get", resource.ID{}); err != nil {
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

// SetDomainOptions keeps settings of a domain; whole drops those that are not given.
func (s *Service) SetDomainOptions(ctx context.Context, domain resource.ID, config map[string]map[string]json.RawMessage, whole bool) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "domain_config.set", resource.ID{}); err != nil {
			return err
		}
		if d, ok := projects.PeekOne(tx, domain); !ok || !d.IsDomain() {
			return notFound("domain", domain.Hex())
		}
		if whole {
			if err := deleteEach(tx, domainOptions, "domain", state.KeyOf(domain)); err != nil {
				return err
			}
		}
		for _, group := range slices.Sorted(maps.Keys(config)) {
			options := config[group]
			if err := Extra(options).check(); err != nil {
				return err
			}
			for _, option := range slices.Sorted(maps.Keys(options)) {
				o, ok := domainOptions.Lookup(tx, "option", state.KeyOf(domain, group, option))
				if !ok {
					o = &DomainOption{Meta: resource.Meta{ID: tx.NewID()}, DomainID: domain, Group: group, Option: option}
				}
				o.Value = options[option]
				if err := domainOptions.Put(tx, o); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// DeleteDomainOptions forgets a domain's settings, those of one group, or one.
func (s *Service) DeleteDomainOptions(ctx context.Context, domain resource.ID, group, option string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
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
