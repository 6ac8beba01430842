package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Leftover is a thing on a host that no domain wants there. Either it was ordered away and the
// host has not yet said that it is gone; or the host holds it, for nobody told it why the thing
// is not wanted any more: an operator has until then to look, and may order it away.
type Leftover struct {
	resource.Meta

	HostID  resource.ID
	Kind    string // of a Source
	ThingID resource.ID

	Ordered bool // it is to be taken away

	// Reported by the host, if it holds the thing.
	Since time.Time `json:",omitzero"`
	Until time.Time `json:",omitzero"` // then it goes by itself
}

var leftovers = state.NewTable("leftover",
	state.Unique("thing", func(l *Leftover) state.Key { return state.KeyOf(l.HostID, l.Kind, l.ThingID) }),
	state.Tally("held", func(l *Leftover) (state.Key, state.Amounts) {
		if l.Ordered {
			return "", state.Amounts{}
		}
		return state.KeyOf(l.HostID), state.Amounts{}
	}),
)

// MaxHeld is of how many things that a host holds account is kept. What it holds beyond that goes by itself all the same, and is known
// when the host says so again, in its next session, and others have gone.
const MaxHeld = 1000

// Held is how many things a host holds that nobody ordered away, as far as account is kept.
func Held(tx *state.Tx, host resource.ID) int {
	n, _ := leftovers.SumOf(tx, "held", host)
	return int(n)
}

// sane is a time that can be stored; zero for one that a host has made up.
func sane(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 2000 || t.Year() > 9000 {
		return time.Time{}
	}
	return t
}

// Leftovers gives the native API and the auditor a look at every leftover.
func Leftovers() *state.Table[Leftover] { return leftovers }

// A HeldReport is what a host reports of a thing that it holds though nobody wants it.
type HeldReport struct{ Held *Holding }

// A Holding says how long a host holds something.
type Holding struct{ Since, Until time.Time }

// Discard orders a host to take a thing away that its domain forgets: the order stands until the
// host says that the thing is gone, however long it cannot be heard.
func Discard(tx *state.Tx, host resource.ID, kind string, id resource.ID) error {
	if !hosts.Has(tx, host) {
		return nil
	}
	l, ok := leftovers.Lookup(tx, "thing", state.KeyOf(host, kind, id))
	if !ok {
		l = &Leftover{Meta: resource.Meta{ID: tx.NewID()}, HostID: host, Kind: kind, ThingID: id}
	}
	l.Ordered = true
	return leftovers.Put(tx, l)
}

// Discard is an operator's order to a host to take away what it holds.
func (s *Service) Discard(ctx context.Context, host, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
			return err
		}
		for l := range leftovers.Peek(tx, "thing", state.Range{Prefix: state.KeyOf(host)}) {
			if l.ThingID == id {
				return Discard(tx, host, l.Kind, id)
			}
		}
		return fault.Errorf(fault.NotFound, "The host holds no %s that nobody wants.", id)
	})
}

// Owes reports whether a host was ordered to take a thing away that its domain need not know any more, and has not said that it is gone.
func Owes(tx *state.Tx, host resource.ID, kind string, id resource.ID) bool {
	for l := range leftovers.Peek(tx, "thing", state.Range{Prefix: state.KeyOf(host, kind, id)}) {
		return l.Ordered
	}
	return false
}

// orders lists the things of a kind that a host is to take away.
func orders(tx *state.Tx, host resource.ID, kind string) []resource.ID {
	var ids []resource.ID
	for l := range leftovers.Peek(tx, "thing", state.Range{Prefix: state.KeyOf(host, kind)}) {
		if l.Ordered {
			ids = append(ids, l.ThingID)
		}
	}
	return ids
}

// noteLeftover takes in what a report says of a thing as a leftover, and reports whether that is
// all that it says. wanted tells whether a domain wants the thing there.
func noteLeftover(tx *state.Tx, host resource.ID, o Observation, wanted func() bool) (bool, error) {
	var report HeldReport
	if bytes.Contains(o.Seen, []byte(`"Held"`)) {
		if err := json.Unmarshal(o.Seen, &report); err != nil {
			return false, nil // its domain says what is wrong with it
		}
	}
	if report.Held == nil && leftovers.Len(tx) == 0 {
		return false, nil
	}
	var since, until time.Time
	if report.Held != nil {
		since, until = sane(report.Held.Since), sane(report.Held.Until)
	}
	l, known := leftovers.Lookup(tx, "thing", state.KeyOf(host, o.Kind, o.ID))
	switch {
	case report.Held == nil && known && (bytes.Equal(o.Seen, Gone) || !l.Ordered || wanted()):
		return false, leftovers.Delete(tx, l.ID)
	case report.Held == nil:
		return false, nil
	case !known && Held(tx, host) >= MaxHeld:
		return true, nil
	case !known:
		l = &Leftover{Meta: resource.Meta{ID: tx.NewID()}, HostID: host, Kind: o.Kind, ThingID: o.ID}
	case l.Since.Equal(since) && l.Until.Equal(until):
		return true, nil
	}
	l.Since, l.Until = since, until
	return true, leftovers.Put(tx, l)
}

// A Mark orders the states that a host is told of: a later state has a later mark.
type Mark struct {
	Era      int64 // goes up when a backup was restored, in seconds since 1970
	Revision int64
}

// Before reports whether m is of an older state.
func (m Mark) Before(other Mark) bool {
	return m.Era < other.Era || m.Era == other.Era && m.Revision < other.Revision
}

func (m Mark) String() string {
	if m.Era == 0 {
		return fmt.Sprintf("revision %d", m.Revision)
	}
	return fmt.Sprintf("revision %d since the backup of %s", m.Revision, time.Unix(m.Era, 0).UTC().Format(time.RFC3339))
}

// MarkOf is the mark of a state.
func MarkOf(tx *state.Tx) Mark {
	m := Mark{Revision: tx.Revision()}
	for e := range eras.Peek(tx, "", state.Range{}) {
		m.Era = max(m.Era, e.Began)
	}
	return m
}

// An era begins when an operator says that the state is a backup's: hosts, which have seen later
// states, then heed it all the same.
type era struct {
	resource.Meta
	Began int64 // in seconds since 1970
}

var eras = state.NewTable[era]("era")

// Restored says that the state is a backup's, and a new era begins.
func Restored(ctx context.Context, s *state.State) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
			return err
		}
		for _, id := range eras.IDs(tx, "", "") {
			if err := eras.Delete(tx, id); err != nil {
				return err
			}
		}
		return eras.Put(tx, &era{Meta: resource.Meta{ID: tx.NewID()}, Began: tx.Now().Unix()})
	})
}
