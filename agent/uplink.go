package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Uplinks watches with which physical networks a machine is connected: an operator has plugged it in, and there is a carrier. A session begins with
// them; that an operator plugs one in or out, or a cable is pulled, in the midst of one is told here.
//
// A carrier that is lost counts as lost within two seconds, for guests wait. One that is back has to stay for steadyUplink before it counts: a
// link that comes and goes would take what goes out there to and fro.
type Uplinks struct {
	// Look tells of the physical networks that the machine is plugged into whether there is a carrier.
	Look func() (map[string]bool, error)
	Host resource.ID

	told time.Time // whatever was told before

	mu    sync.Mutex
	known map[string]*uplink // by name; guarded by mu
}

// An uplink is what is known of one physical network.
type uplink struct {
	counts bool      // as connected
	other  time.Time // since when it looks otherwise; zero: it does not
}

const (
	lookAtUplinks = 500 * time.Millisecond
	lostUplink    = time.Second      // for so long a carrier is away before it counts as lost
	steadyUplink  = 10 * time.Second // for so long it is back before it counts
)

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
	physical, err := u.Connected(now)
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

// Connected lists the physical networks that the machine counts as connected with, in order.
func (u *Uplinks) Connected(now time.Time) ([]string, error) {
	plugged, err := u.Look()
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.known == nil {
		u.known = map[string]*uplink{}
	}
	maps.DeleteFunc(u.known, func(name string, _ *uplink) bool { _, still := plugged[name]; return !still })
	var connected []string
	for _, name := range slices.Sorted(maps.Keys(plugged)) {
		link := u.known[name]
		if link == nil {
			link = &uplink{counts: plugged[name]}
			u.known[name] = link
		}
		if link.look(plugged[name], now) {
			slog.Warn("an uplink's carrier came or went", "physical network", name, "connected", link.counts)
		}
		if link.counts {
			connected = append(connected, name)
		}
	}
	return connected, nil
}

// look takes in whether there is a carrier; true if the uplink counts otherwise than before.
func (l *uplink) look(carrier bool, now time.Time) bool {
	wait := lostUplink
	if carrier {
		wait = steadyUplink
	}
	switch {
	case carrier == l.counts:
		l.other = time.Time{}
	case l.other.IsZero():
		l.other = now
	case now.Sub(l.other) >= wait:
		l.counts, l.other = carrier, time.Time{}
		return true
	}
	return false
}
