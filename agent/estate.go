package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// whileLeft is how soon a host tries again to erase what a guest has left on shared storage, and inVain how often it does before it says
// that it cannot: then it may be another's turn.
const (
	whileLeft = 2 * time.Second
	inVain    = 5
)

// Handlers are what an Agent calls for guests, and for what they leave on shared storage.
func (g *Guests) Handlers() []Handler {
	left := &leftBehind{guests: g, failed: map[resource.ID]int{}}
	return []Handler{g.Handler(), {
		Kind: "estate", Ensure: left.erase,
		Remove: func(_ context.Context, id resource.ID) error { // it is another host's to do, or done
			left.tried(id, nil)
			return nil
		},
		Present: func(context.Context) ([]resource.ID, error) { return nil, nil },
	}}
}

// leftBehind is what this host is to erase.
type leftBehind struct {
	guests *Guests

	mu     sync.Mutex
	failed map[resource.ID]int // how often, one after the other; guarded by mu
}

// tried notes how an attempt ended, and tells how many have failed.
func (l *leftBehind) tried(id resource.ID, err error) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err == nil {
		delete(l.failed, id)
		return 0
	}
	l.failed[id]++
	return l.failed[id]
}

func (l *leftBehind) erase(ctx context.Context, id resource.ID, body json.RawMessage) (any, time.Duration, error) {
	var left compute.Erasure
	if err := json.Unmarshal(body, &left); err != nil {
		return nil, 0, fmt.Errorf("decode what is to be erased: %w", err)
	}
	eraser, ok := l.guests.Driver.(compute.Eraser)
	if !ok {
		return nil, 0, fmt.Errorf("guests of this kind leave nothing on storage %s", left.Storage)
	}
	err := eraser.Erase(ctx, left)
	says := compute.Erased{Era: left.Era, Epoch: left.Epoch, Final: left.Final}
	switch n := l.tried(id, err); {
	case err == nil:
		return says, 0, nil
	case n < inVain:
		return nil, whileLeft, err
	}
	says.Trouble = err.Error()
	return says, whileLeft, err
}
