package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// whileLeft is how soon a host tries again to erase what a guest has left on shared storage.
const whileLeft = 2 * time.Second

// Handlers are what an Agent calls for guests, and for what they leave on shared storage.
func (g *Guests) Handlers() []Handler {
	return []Handler{g.Handler(), {
		Kind: "estate", Ensure: g.erase,
		Remove:  func(context.Context, resource.ID) error { return nil }, // it is another host's to do, or done
		Present: func(context.Context) ([]resource.ID, error) { return nil, nil },
	}}
}

func (g *Guests) erase(ctx context.Context, _ resource.ID, body json.RawMessage) (any, time.Duration, error) {
	var left compute.Erasure
	if err := json.Unmarshal(body, &left); err != nil {
		return nil, 0, fmt.Errorf("decode what is to be erased: %w", err)
	}
	eraser, ok := g.Driver.(compute.Eraser)
	if !ok {
		return nil, 0, fmt.Errorf("guests of this kind leave nothing on storage %s", left.Storage)
	}
	if err := eraser.Erase(ctx, left); err != nil {
		return nil, whileLeft, err
	}
	return compute.Erased{Era: left.Era, Epoch: left.Epoch, Final: left.Final}, 0, nil
}
