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

	session int64 // in which they were told last
}

const lookAtUplinks = 2 * time.Second

// Run tells the controllers until ctx ends.
func (u *Uplinks) Run(ctx context.Context, a *Agent) {
	tick := time.NewTicker(lookAtUplinks)
	defer tick.Stop()
	for failing := false; ; {
		err := u.look(a)
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

// look puts the uplinks into the outbox if the controller does not know them. In each session once it does so whatever was told before:
// what the session began with may have been looked up before that, and taken in after it.
func (u *Uplinks) look(a *Agent) error {
	session := a.sessions.Load() // before the look
	physical, err := u.Look()
	if err != nil {
		return err
	}
	seen, err := json.Marshal(physical)
	if err != nil {
		return err
	}
	a.tell(host.Key{Kind: host.UplinkKind, ID: u.Host}, seen, session != u.session)
	u.session = session
	return nil
}
