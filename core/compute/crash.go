package compute

import (
	"context"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Crash is what is known of a server whose guest has crashed of late.
type Crash struct {
	Count   int       `json:",omitempty"` // without crashSpell between any two
	Last    time.Time `json:",omitzero"`
	Restart time.Time `json:",omitzero"` // when it is started again; zero: nobody waits for that
}

const (
	crashSpell   = time.Hour
	crashesMost  = 5 // in one spell, after which the guest is let be
	crashBackoff = 5 * time.Second
	crashVerb    = "crash"
)

// restarts reports whether the guest is to be started again when it has crashed.
func (s *Server) restarts(tx *state.Tx) bool {
	if s.Keep.OnCrash == "" {
		return !host.KeepingOf(tx).StayCrashed
	}
	return s.Keep.OnCrash == RestartOnCrash
}

// crashed takes in that the guest has crashed: it is started again in a while, or the wish follows it. Each crash is told among what
// was done to the server.
func (s *Server) crashed(tx *state.Tx) error {
	if !s.Crash.Restart.IsZero() {
		return nil // that is known
	}
	if tx.Now().Sub(s.Crash.Last) > crashSpell {
		s.Crash.Count = 0
	}
	s.Crash.Count++
	s.Crash.Last = tx.Now()
	what := "The guest's virtual machine ended unexpectedly. "
	switch {
	case !s.restarts(tx):
		s.Power = Off
		what += "It is not started again by itself."
	case s.Crash.Count > crashesMost:
		s.Power = Off
		what += fmt.Sprintf("It is not started again: it has ended %d times.", s.Crash.Count)
	default:
		wait := crashBackoff << (s.Crash.Count - 1)
		s.Power, s.Crash.Restart = On, tx.Now().Add(wait)
		what += fmt.Sprintf("It is started again in %v.", wait)
	}
	op, err := operation.Begin(tx, crashVerb, servers.Kind(), &s.Meta, &identity.Actor{}, time.Minute)
	if err != nil {
		return err
	}
	return operation.End(tx, op, operation.Failed, what)
}

// crashTask starts crashed guests again when it is time.
func (s *Service) crashTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-crash",
		All:  func(tx *state.Tx) []resource.ID { return servers.IDs(tx, "restart", "") },
		Touched: func(e state.Event) []resource.ID {
			if srv, ok := e.After.(*Server); ok && !srv.Crash.Restart.IsZero() {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: s.restart,
	}
}

func (s *Service) restart(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	srv, ok := servers.PeekOne(s.State.Latest(), id)
	if !ok || srv.Crash.Restart.IsZero() {
		return reconcile.Next{}, nil
	}
	if wait := srv.Crash.Restart.Sub(s.State.Now()); wait > 0 {
		return reconcile.Next{After: wait}, nil
	}
	if h, ok := host.Table().PeekOne(s.State.Latest(), srv.HostID); ok && !h.Up() {
		return reconcile.Next{After: host.Expect}, nil // nobody there would
	}
	ctx = identity.Internal(ctx)
	return reconcile.Next{}, s.State.Update(ctx, func(tx *state.Tx) error {
		srv, ok := servers.Find(tx, id)
		if !ok || srv.Crash.Restart.IsZero() || srv.Crash.Restart.After(tx.Now()) {
			return nil
		}
		srv.Crash.Restart = time.Time{}
		if srv.Task == "" && srv.Power == On && srv.Seen.Power == Crashed {
			powerCycle(srv) // in whatever stage it is: its owner may not have confirmed its shape
			op, err := begin(ctx, tx, srv, HardRebooting, moves[HardRebooting].within)
			if err != nil {
				return err
			}
			if err := waitForHost(tx, srv, op); err != nil {
				return err
			}
		}
		return servers.Put(tx, srv)
	})
}
