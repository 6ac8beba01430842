package compute

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

const (
	drainEvery   = 2 * time.Second
	drainedEvery = 10 * time.Second // once it is over
	// An emptying has so long since it was last busy with a server. All that it begins with one ends by itself, and is not begun a
	// second time: so it ends, whatever owners do.
	drainWithin = 30 * time.Minute
	drainTries  = 20 // servers that one transaction looks for a host for
)

// drainTask empties hosts in maintenance. When that is over it goes on looking, as long as the maintenance lasts: what stayed may stand
// otherwise, and be able to leave.
func (s *Service) drainTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-drain",
		All:  func(tx *state.Tx) []resource.ID { return host.Table().IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			if h, ok := e.After.(*host.Host); ok && h.Drain != nil {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			h, ok := host.Table().PeekOne(s.State.Latest(), id)
			if !ok || h.Drain == nil {
				return reconcile.Next{}, nil
			}
			next := reconcile.Next{After: drainEvery}
			if h.Drain.Over() {
				next.After = drainedEvery
			}
			return next, s.drain(identity.Internal(ctx), id)
		},
	}
}

// drain takes a host in maintenance a step further.
func (s *Service) drain(ctx context.Context, id resource.ID) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		h, ok := host.Find(tx, id)
		switch {
		case !ok || h.Drain == nil:
			return nil
		case h.Dead():
			return drainDead(tx, h)
		case h.Drain.Over():
			if !h.Up() {
				return nil
			}
			_, _, err := s.empty(ctx, tx, h)
			return err
		}
		op, err := operation.Get(tx, h.Drain.OperationID)
		if err != nil {
			return err
		}
		if !h.Up() {
			return operation.Note(tx, op, "the host, which cannot be heard since "+h.Lost.Format(time.RFC3339), op.Percent)
		}
		togo, busy, err := s.empty(ctx, tx, h)
		if err != nil {
			return err
		}
		if togo == 0 {
			return endDrain(tx, h, op)
		}
		if busy > 0 && op.Deadline.Sub(tx.Now()) < drainWithin/2 {
			if err := operation.Prolong(tx, op, drainWithin); err != nil {
				return err
			}
		}
		percent := 0
		if h.Drain.Servers > 0 {
			percent = max(0, 100*(h.Drain.Servers-togo)/h.Drain.Servers)
		}
		return operation.Note(tx, op, fmt.Sprintf("%d servers that are still to leave", togo), percent)
	})
}

// empty has as many servers leave as may at once, and puts the host if what is known of them has changed. togo is how many are still
// to leave, busy how many it is busy with.
func (s *Service) empty(ctx context.Context, tx *state.Tx, h *host.Host) (togo, busy int, err error) {
	if err := confirmDrained(tx, h); err != nil {
		return 0, 0, err
	}
	d := h.Drain
	left, next := slices.Clone(d.Left), d.Next
	d.Left = slices.DeleteFunc(d.Left, func(l host.Left) bool { return !belongs(tx, l.ID, h.ID) })
	var idle, taken []*Server
	for srv := range servers.Each(tx, "host", state.KeyOf(h.ID)) {
		switch l := d.Stays(srv.ID); {
		case sentOff(tx, srv):
			busy++
		case srv.Task != "" && (l == nil || l.As == ""):
			taken = append(taken, srv)
		case srv.Task == "" && (l == nil || l.As != srv.standsAs(tx)):
			idle = append(idle, srv)
		}
	}
	for srv := range servers.Peek(tx, "came", state.Range{Prefix: state.KeyOf(h.ID)}) {
		if srv.Task == Migrating { // it is the other host's, and is to be settled there
			busy++
		}
	}
	tries := 0
	for _, srv := range idle {
		if busy >= d.AtOnce || tries == drainTries {
			togo++
			continue
		}
		tries++
		as := srv.standsAs(tx)
		if srv.inMemory() && srv.Stage() == Stopped || srv.Stage() == Shelved {
			as = "" // but not for long
		}
		why, err := s.seeOff(ctx, tx, srv, h)
		if err != nil {
			return 0, 0, err
		}
		if why == "" {
			busy++
			continue
		}
		d.Stay(host.Left{ID: srv.ID, Why: why, As: as})
	}
	d.Next = nil
	for _, srv := range taken {
		if togo == 0 && busy+len(d.Next) < d.AtOnce && !srv.Doomed() {
			d.Next = append(d.Next, srv.ID)
		}
	}
	arriving := len(servers.IDs(tx, "arriving", state.KeyOf(h.ID)))
	if !slices.Equal(left, d.Left) || !slices.Equal(next, d.Next) {
		if err := host.Table().Put(tx, h); err != nil {
			return 0, 0, err
		}
	}
	return togo + busy + len(taken) + arriving, busy, nil
}

// belongs reports whether a server is on a host, comes to it, or may come back to it.
func belongs(tx *state.Tx, id, h resource.ID) bool {
	srv, ok := servers.PeekOne(tx, id)
	return ok && (srv.HostID == h || srv.Move != nil && srv.Move.To == h || srv.Before != nil && srv.Before.HostID == h)
}

// sentOff reports whether the cloud, or an operator, is getting the server off its host. What its owner has begun is none of that, though
// it may come to the same: he can cancel it, and begin anew, for ever.
func sentOff(tx *state.Tx, srv *Server) bool {
	switch srv.Task {
	case Migrating, LiveMigrating:
		return srv.Move != nil
	case Stopping:
		op, ok := operation.Table().PeekOne(tx, srv.OperationID)
		return ok && op.UserID.IsZero()
	}
	return false
}

// seeOff has a server leave a host in maintenance, or tells why it stays. What has failed is not tried again.
func (s *Service) seeOff(ctx context.Context, tx *state.Tx, srv *Server, h *host.Host) (why string, err error) {
	d, unstopped := *h.Drain, notStopped(tx, srv, h)
	d.Stop = d.Stop && unstopped == ""
	l := Leaving{Way: Stays, Why: cameBack(tx, srv, h)}
	if l.Why == "" {
		l, err = s.leave(ctx, tx, srv, &d)
	} else {
		l, err = s.stopOrStay(ctx, tx, srv, &d, l)
	}
	if err != nil || l.Way != Stays {
		return "", err
	}
	return l.Why + unstopped, nil
}

// cameBack tells why a server's way off a host in maintenance failed; "" if it did not.
func cameBack(tx *state.Tx, srv *Server, h *host.Host) string {
	m, ok := migrations.PeekOne(tx, srv.MigrationID)
	if !ok || m.From != h.ID || m.Task != Migrating && m.Task != LiveMigrating || m.CreatedAt.Before(h.Drain.Begun) ||
		m.State != Aborted && m.State != Cancelled {
		return ""
	}
	for _, o := range operation.Of(tx, srv.ID) {
		if o.Verb == string(m.Task) {
			return "It was not moved: " + o.Message
		}
	}
	return "It was not moved."
}

// notStopped tells why the cloud could not stop a server on a host in maintenance; "" if it could, or has not tried.
func notStopped(tx *state.Tx, srv *Server, h *host.Host) string {
	for _, o := range operation.Of(tx, srv.ID) {
		switch {
		case o.CreatedAt.Before(h.Drain.Begun):
			return ""
		case o.Verb == string(Stopping) && o.UserID.IsZero():
			if o.Outcome == operation.Succeeded {
				return ""
			}
			return " It was not stopped: " + o.Message
		}
	}
	return ""
}

// confirmDrained settles what was off when it left: nobody else is asked whether that was right.
func confirmDrained(tx *state.Tx, h *host.Host) error {
	for srv := range servers.Each(tx, "came", state.KeyOf(h.ID)) {
		m, ok := migrations.PeekOne(tx, srv.MigrationID)
		if !ok || srv.Stage() != Unsettled || m.Task != Migrating || !m.UserID.IsZero() || m.CreatedAt.Before(h.Drain.Begun) {
			continue
		}
		srv.Before = nil
		if err := srv.inMigration(tx, Confirmed); err != nil {
			return err
		}
		if err := servers.Put(tx, srv); err != nil {
			return err
		}
	}
	return nil
}

// endDrain settles what became of emptying a host. What stayed is said.
func endDrain(tx *state.Tx, h *host.Host, op *operation.Operation) error {
	for _, id := range servers.IDs(tx, "came", state.KeyOf(h.ID)) {
		srv, err := servers.Get(tx, id)
		if err != nil {
			return err
		}
		if srv.Task == "" { // else it is on its way to be settled
			h.Drain.Stay(host.Left{ID: id, Why: "It may come back: its owner has not yet confirmed its new shape or host."})
		}
	}
	running := 0
	for _, l := range h.Drain.Left {
		if srv, ok := servers.PeekOne(tx, l.ID); ok && srv.HostID == h.ID && srv.inMemory() {
			running++
		}
	}
	h.Drain.Drained = tx.Now()
	if err := host.Table().Put(tx, h); err != nil {
		return err
	}
	switch n := len(h.Drain.Left); {
	case n == 0:
		return operation.End(tx, op, operation.Succeeded, "")
	case h.Drain.Stop && running == 0:
		return operation.End(tx, op, operation.Succeeded, fmt.Sprintf("%d servers stayed, and are off.", n))
	default:
		return operation.End(tx, op, operation.Failed, fmt.Sprintf("%d servers stayed, and %d of them run: the host says why.", n, running))
	}
}

// expireDrain ends what nothing came of in time.
func expireDrain(tx *state.Tx, o *operation.Operation) error {
	h, ok := host.Find(tx, o.TargetID)
	if !ok || h.Drain == nil || h.Drain.OperationID != o.ID {
		return nil
	}
	for _, index := range []string{"host", "arriving"} {
		for srv := range servers.Peek(tx, index, state.Range{Prefix: state.KeyOf(h.ID)}) {
			if h.Drain.Stays(srv.ID) == nil {
				h.Drain.Stay(host.Left{ID: srv.ID, Why: "It was not moved in time."})
			}
		}
	}
	return endDrain(tx, h, o)
}

// cancelDrain leaves a host's servers where they are now. The host takes nothing new until it is enabled.
func cancelDrain(ctx context.Context, tx *state.Tx, o *operation.Operation) error {
	if err := identity.Allow(ctx, "host.update", resource.Meta{}); err != nil {
		return err
	}
	return host.CancelDrain(tx, o)
}
