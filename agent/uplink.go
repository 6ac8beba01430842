package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Uplinks watches with which physical networks a machine is connected. A session begins with them; that an operator plugs one in or out
// in the midst of one is told here.
type Uplinks struct {
	Look func() ([]string, error)
	Host resource.ID

	told time.Time // whatever was told before
}

const lookAtUplinks = 2 * time.Second

// Run tells the controllers until ctx ends.
func (u *Uplinks) Run(ctx context.Context, a *Agent) {
	tick := time.NewTicker(lookAtUplinks)
	defer tick.Stop()
	for failing := false; ; {
		err := u.Tell(a, time.Now())
		if err != nil && !failing {
			slog.WarnContext(ctx, "could not look at this machine's uplinks", "err", err)
		}
		failing = err != nil
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Tell puts the uplinks into the outbox if the controller does not know them; now and then it does so all the same, for what a session began
// with may have been taken in late, after what has been told since.
func (u *Uplinks) Tell(a *Agent, now time.Time) error {
	physical, err := u.Look()
	if err != nil {
		return err
	}
	seen, err := json.Marshal(physical)
	if err != nil {
		return err
	}
	again := now.Sub(u.told) >= resyncEvery
	if again {
		u.told = now
	}
	a.tell(host.Key{Kind: host.UplinkKind, ID: u.Host}, seen, again)
	return nil
}
