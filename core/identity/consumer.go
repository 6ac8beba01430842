package identity

import (
	"context"
	"encoding/hex"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Consumer is a program that admins have registered, with a secret of its own. Users may let it act
// for them: see AccessToken.
type Consumer struct {
	resource.Meta
	Description string
	Secret      string `secret:"true"`
	Extra       Extra
}

var consumers = state.NewTable("consumer",
	state.Tally(keptBy, func(*Consumer) (state.Key, state.Amounts) { return state.KeyOf(resource.ID{}), state.Amounts{} }),
)

func (c *Consumer) check() error {
	if err := checkTexts(text{"description", c.Description}); err != nil {
		return err
	}
	return c.Extra.check()
}

// CreateConsumer registers a program and makes its secret.
func (s *Service) CreateConsumer(ctx context.Context, c *Consumer) (*Consumer, error) {
	if err := mayManage(ctx, "consumer.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	secret := hex.EncodeToString(s.random(16))
	return create(ctx, s, consumers, func(tx *state.Tx) (*Consumer, error) {
		if err := room(tx, consumers, resource.ID{}, s.config.Quota.Consumers, "consumers"); err != nil {
			return nil, err
		}
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
		return c.check()
	})
}

// DeleteConsumer forgets one, with all that users let it do.
func (s *Service) DeleteConsumer(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "consumer.delete", resource.ID{}); err != nil {
			return err
		}
		if err := deleteAccess(tx, "consumer", id); err != nil {
			return err
		}
		return consumers.Delete(tx, id)
	})
}
