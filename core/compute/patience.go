package compute

import (
	"context"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// patience is how long what was asked of a server waits for a host that cannot be heard: long enough for an agent that is
// restarted or a line that is cut for a moment, and not for a machine that is, which takes minutes or for ever. Its owner learns
// why, and asks again, or deletes the server; an operation's own deadline is for hosts that are there, and slow.
const patience = 30 * time.Second

// despairAtOnce is how many operations one transaction ends.
const despairAtOnce = 100

// stormLook is how often it is looked whether a storm is over.
const stormLook = 5 * time.Second

// missed remembers since when hosts are: when this process saw their present loss, and no storm any more. Where there was nobody who
// would have heard them, and while it is rather us who are cut off, none of them is silent.
type missed struct {
	mu    sync.Mutex
	since map[resource.ID]absence // guarded by mu
}

type absence struct {
	lost  time.Time // another one is another loss
	since time.Time
}

// from is since when a host is missed. Anew: not before now.
func (m *missed) from(h *host.Host, now time.Time, anew bool) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.since[h.ID]
	if !ok || anew || !a.lost.Equal(h.Lost) {
		a = absence{h.Lost, now}
		m.since[h.ID] = a
	}
	return a.since
}

func (m *missed) forget(id resource.ID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.since, id)
}

// patienceTask ends what waits in vain for hosts that cannot be heard. Its steps are for hosts.
func (s *Service) patienceTask() reconcile.Task {
	m := &missed{since: map[resource.ID]absence{}}
	return reconcile.Task{
		Name: "compute-patience",
		All:  func(tx *state.Tx) []resource.ID { return host.Table().IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			switch o := e.After.(type) {
			case *host.Host:
				return []resource.ID{e.ID}
			case *Server:
				was, _ := e.Before.(*Server)
				if o.Task == "" || was != nil && was.OperationID == o.OperationID && was.HostID == o.HostID {
					return nil
				}
				if o.Move != nil {
					return []resource.ID{o.HostID, o.Move.To}
				}
				return []resource.ID{o.HostID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) { return s.losePatience(ctx, id, m) },
	}
}

func (s *Service) losePatience(ctx context.Context, id resource.ID, m *missed) (next reconcile.Next, err error) {
	tx := s.State.Latest()
	h, ok := host.Table().PeekOne(tx, id)
	if !ok || h.Up() {
		m.forget(id)
		return next, nil
	}
	storm := stormy(tx, h)
	since := m.from(h, s.State.Now(), storm)
	if storm {
		return reconcile.Next{After: stormLook}, nil
	}
	inVain, soonest := waitingInVain(tx, h, since, s.State.Now())
	if len(inVain) == 0 {
		if !soonest.IsZero() {
			next.After = max(soonest.Sub(s.State.Now()), time.Millisecond)
		}
		return next, nil
	}
	next.After = time.Millisecond // for those that are left
	return next, s.State.Update(identity.Internal(ctx), func(tx *state.Tx) error {
		now, ok := host.Table().PeekOne(tx, id)
		if !ok || !now.Lost.Equal(h.Lost) || stormy(tx, now) {
			return nil
		}
		inVain, _ := waitingInVain(tx, now, since, tx.Now())
		for _, id := range inVain {
			srv, err := servers.Get(tx, id)
			if err != nil {
				return err
			}
			if err := s.despair(tx, srv, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// stormy reports whether a host may be silent for us alone, as many others are.
func stormy(tx *state.Tx, h *host.Host) bool {
	_, _, storm := Storm(tx)
	return storm && !h.Dead()
}

// waitingInVain lists servers with which something has been under way for too long that a host would have to do which is missed since
// a time. Soonest is when that can be said of another.
func waitingInVain(tx *state.Tx, h *host.Host, since, now time.Time) (inVain []resource.ID, soonest time.Time) {
	for _, index := range []string{"host", "arriving"} {
		for srv := range servers.Peek(tx, index, state.Range{Prefix: state.KeyOf(h.ID)}) {
			op, ok := operation.Table().PeekOne(tx, srv.OperationID)
			if !ok || op.Outcome != operation.Running {
				continue
			}
			until := op.CreatedAt
			if !h.Dead() {
				if since.After(until) {
					until = since
				}
				until = until.Add(patience)
			}
			switch {
			case !until.After(now):
				if inVain = append(inVain, srv.ID); len(inVain) == despairAtOnce {
					return inVain, soonest
				}
			case soonest.IsZero() || until.Before(soonest):
				soonest = until
			}
		}
	}
	return inVain, soonest
}

// despair ends what is under way with a server and would have to be done by a host that is lost. The host has not said that it
// cannot, and what was seen of it last may be the midst of it: so the wish stays what the server's owner made it, and the host
// carries it out when it is back. Only what other things hang on is taken back: a move, a copy, a new shape.
func (s *Service) despair(tx *state.Tx, srv *Server, h *host.Host) error {
	since := h.Lost.UTC().Format(time.RFC3339)
	if srv.Doomed() {
		return s.abandon(tx, srv, "Its host cannot be heard since "+since+"; it takes the guest away as soon as it can.")
	}
	why := "The server's host cannot be heard since " + since + "."
	if srv.HostID != h.ID {
		why = "The host that the server was to go to cannot be heard since " + since + "."
	}
	switch {
	case srv.Move != nil, srv.Snapshot != nil, srv.Task == Unshelving:
		if err := srv.giveUp(tx, why); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	case srv.spoilt():
		srv.fail(tx, 500, why)
		srv.Failure.Lost = true
	case srv.Task == Reshaping:
		srv.Wish++
		srv.recycle()
		why += " The server keeps the shape that it had."
	case !h.Dead():
		why += " It does what was asked for as soon as it can, unless something else is asked for."
	}
	if err := srv.conclude(tx, operation.Failed, why); err != nil {
		return err
	}
	return servers.Put(tx, srv)
}

// recovered reports whether the host that was lost has come back and done what had failed for that.
func (s *Server) recovered() bool {
	return s.Failure != nil && s.Failure.Lost && !s.Seen.Busy && s.Seen.Trouble == "" &&
		s.Seen.Power == s.Power && s.Seen.Rebuilds >= s.Rebuilds && s.Seen.Wish >= s.Wish
}

// waitForHost says in the operation when the server's host cannot be heard. From one that is known to be dead nothing can be had.
func waitForHost(tx *state.Tx, srv *Server, op *operation.Operation) error {
	h, ok := host.Table().PeekOne(tx, srv.HostID)
	switch {
	case !ok || h.Up():
		return nil
	case h.Dead():
		return fault.Errorf(fault.Conflict, "The server's host is lost since %s, and known to be dead: nothing can be done with the server there.",
			h.Lost.UTC().Format(time.RFC3339)).WithCode("host-down")
	}
	return operation.Note(tx, op, "the server's host, which cannot be heard since "+h.Lost.Format(time.RFC3339), 0)
}
