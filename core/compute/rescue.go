package compute

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

const (
	rescueEvery = 10 * time.Second
	rescueLooks = 100 // servers that one step looks for another host for
)

// Awaited reports whether a server of a host is to be started elsewhere once the host is known to be dead.
func Awaited(tx *state.Tx, h resource.ID) bool {
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h)}) {
		if srv.awaits() {
			return true
		}
	}
	return false
}

// awaits reports whether the server is to run, and elsewhere if not here. One that is off has nothing to gain by that, and its disks to lose, if
// they are its host's own.
func (s *Server) awaits() bool {
	return s.Keep.Elsewhere && !s.Doomed() && !s.LaunchedAt.IsZero() && s.Shelf == nil && (s.Power == On || s.Power == Paused)
}

// sworn reports whether the host is known not to run the guest when its lease is over, nor when it boots anew.
func (s *Server) sworn() bool { return s.Seen.Wish >= s.Sworn }

// endedOn reports whether the server is known not to run on its host any more. Of one that is dead by its lease only what is run under that is.
func (s *Server) endedOn(h *host.Host) bool {
	return h.Dead() && (h.Fenced.How != host.ByLease || s.Keep.Elsewhere && s.sworn())
}

// rescueTask gives servers of hosts that are dead to others. Its steps are for hosts.
func (s *Service) rescueTask() reconcile.Task {
	return reconcile.Task{
		Name: "compute-rescue",
		All:  func(tx *state.Tx) []resource.ID { return host.Table().IDs(tx, "name", "") },
		Touched: func(e state.Event) []resource.ID {
			switch o := e.After.(type) {
			case *host.Host:
				return []resource.ID{e.ID}
			case *Migration:
				if o.Task == Evacuating && o.State.Over() {
					return []resource.ID{o.From} // there is room for one more at once
				}
			case *Server:
				if o.Keep.Elsewhere && !o.HostID.IsZero() {
					return []resource.ID{o.HostID}
				}
			}
			return nil
		},
		Step: s.rescue,
	}
}

func (s *Service) rescue(ctx context.Context, id resource.ID) (next reconcile.Next, err error) {
	ctx = identity.Internal(ctx)
	tx := s.State.Latest()
	if err := s.land(ctx, id); err != nil {
		return next, err
	}
	h, ok := host.Table().PeekOne(tx, id)
	if !ok || !h.Dead() {
		return next, nil
	}
	if len(waitingOn(tx, id)) > 0 {
		next.After = rescueEvery
	}
	if enoughRescued(tx) {
		return next, nil
	}
	// All dead hosts' servers wait in one queue, whichever host's step begins them: as one that is under way is there, the
	// first of all that wait goes.
	for _, srv := range s.queue(tx, id) {
		if err := s.rescueOne(ctx, srv.ID, srv.HostID); errors.Is(err, errEnough) {
			break
		} else if err != nil {
			return next, err
		}
	}
	return next, nil
}

// enoughRescued reports whether no more may be on their way from dead hosts for now.
func enoughRescued(tx *state.Tx) bool { return underWay(tx, Evacuating) >= host.KeepingOf(tx).AtOnce }

// queue lists the servers of dead hosts that are to be started elsewhere now, in that order: those for which nobody has looked for
// another host yet, and of one host those, in turn, for which none was found.
func (s *Service) queue(tx *state.Tx, id resource.ID) (queue []*Server) {
	_, _, storm := Storm(tx)
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if !h.Dead() || storm && h.Fenced.How != host.ByWord {
			continue
		}
		fresh, stranded := splitStranded(waitingOn(tx, h.ID))
		queue = append(queue, fresh...)
		if h.ID == id {
			queue = append(queue, turn(stranded, s.State.Now())...)
		}
	}
	slices.SortFunc(queue, before)
	return queue[:min(len(queue), 2*rescueLooks)]
}

// splitStranded parts those for which no other host was found from those for which nobody has looked.
func splitStranded(waiting []*Server) (fresh, stranded []*Server) {
	for _, srv := range waiting {
		if srv.Stranded == nil {
			fresh = append(fresh, srv)
		} else {
			stranded = append(stranded, srv)
		}
	}
	return fresh, stranded
}

// before is the order in which servers are started elsewhere.
func before(a, b *Server) int {
	return cmp.Or(b.Keep.Priority-a.Keep.Priority, bytes.Compare(a.ID[:], b.ID[:]))
}

// turn chooses those that one step looks at: of very many the first, and others with each step, so that
// those before them for which there is no room keep nobody waiting for ever.
func turn(waiting []*Server, now time.Time) []*Server {
	const first = rescueLooks / 2
	if len(waiting) <= rescueLooks {
		return waiting
	}
	rest := waiting[first:]
	turns := (len(rest) + rescueLooks - first - 1) / (rescueLooks - first)
	from := int(now.Unix()/int64(rescueEvery/time.Second)%int64(turns)) * (rescueLooks - first)
	return slices.Concat(waiting[:first], rest[from:min(len(rest), from+rescueLooks-first)])
}

// waitingOn lists the servers of a host that are to be started elsewhere, in that order.
func waitingOn(tx *state.Tx, h resource.ID) []*Server {
	var all []*Server
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h)}) {
		if srv.awaits() {
			all = append(all, srv)
		}
	}
	slices.SortFunc(all, before)
	return all
}

// underWay counts the servers with which something is.
func underWay(tx *state.Tx, task Task) int {
	n := 0
	for _, stage := range Stages() {
		for range servers.Peek(tx, "standing", state.Range{Prefix: state.KeyOf(resource.ID{}, string(stage), string(task))}) {
			n++
		}
	}
	return n
}

// These end a transaction that would have changed nothing.
var (
	errStays  = errors.New("the server stays where it is")
	errEnough = errors.New("enough servers are on their way from dead hosts")
)

// rescueOne gives one server to another host, or says in it that there is none. If enough are on their way nothing changes.
func (s *Service) rescueOne(ctx context.Context, id, from resource.ID) error {
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		srv, ok := servers.Find(tx, id)
		h, known := host.Table().PeekOne(tx, from)
		if !ok || !known || srv.HostID != from || !h.Dead() || !srv.awaits() {
			return errStays
		}
		if enoughRescued(tx) {
			return errEnough
		}
		// Of disks on shared storage it finds that they are another host's.
		if h.Fenced.How != host.ByWord && !srv.sworn() && !srv.Lasts() {
			return fault.Errorf(fault.Conflict, "Its host may not have learned that it runs the server under its lease alone, and would start it again when it is switched on.")
		}
		op, err := s.evacuate(ctx, tx, srv, "", "")
		if err != nil {
			return err
		}
		if err := operation.Note(tx, op, fmt.Sprintf("its new host: the one before was lost at %s and is known to be dead (%s)",
			h.Lost.Format(time.RFC3339), h.Fenced.How), 0); err != nil {
			return err
		}
		return servers.Put(tx, srv)
	})
	switch {
	case errors.Is(err, errStays):
		return nil
	case fault.From(err) == nil:
		return err
	}
	return s.strand(ctx, id, from, forOwner(err))
}

// strand says why a server waits. What is no news writes nothing.
func (s *Service) strand(ctx context.Context, id, on resource.ID, why string) error {
	if srv, ok := servers.PeekOne(s.State.Latest(), id); !ok || srv.Stranded != nil && srv.Stranded.Why == why {
		return nil
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		srv, ok := servers.Find(tx, id)
		if !ok || srv.HostID != on || !srv.awaits() {
			return nil
		}
		if srv.Stranded == nil {
			srv.Stranded = &Stranded{Since: tx.Now()}
		}
		srv.Stranded.Why = why
		return servers.Put(tx, srv)
	})
}

// land takes in that servers wait no more: their host is there again, or they are not to run.
func (s *Service) land(ctx context.Context, h resource.ID) error {
	landed := func(tx *state.Tx) []resource.ID {
		on, ok := host.Table().PeekOne(tx, h)
		return slices.DeleteFunc(servers.IDs(tx, "stranded", state.KeyOf(h)), func(id resource.ID) bool {
			srv, _ := servers.PeekOne(tx, id)
			return ok && !on.Up() && srv.awaits()
		})
	}
	if len(landed(s.State.Latest())) == 0 {
		return nil
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		for _, id := range landed(tx) {
			srv, err := servers.Get(tx, id)
			if err != nil {
				return err
			}
			srv.Stranded = nil
			if err := servers.Put(tx, srv); err != nil {
				return err
			}
		}
		return nil
	})
}

// StrandedServers lists the servers that wait for a host, in the order of their dead ones.
func StrandedServers(tx *state.Tx) []resource.ID { return servers.IDs(tx, "stranded", "") }
