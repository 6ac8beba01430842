package simulation

import (
	"errors"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// checkSafety is what must hold at every moment.
func (w *world) checkSafety() error {
	tx := w.control.state.Latest()
	if found := w.audit.State(tx); len(found) > 0 {
		return fmt.Errorf("the auditor found %d contradictions, the first: %s", len(found), found[0])
	}
	for _, p := range w.client.projects {
		for _, id := range p.order {
			if !compute.Servers().Has(tx, id) {
				return fmt.Errorf("server %s was promised, and is lost", id)
			}
		}
	}
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		taken := 0
		for srv := range compute.Servers().Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
			if srv.Shape.Ref == "seated" {
				taken++
			}
		}
		if _, offers := h.Offers[seat]; taken > 0 && !offers {
			return fmt.Errorf("%d servers have a seat on %s, where there are none", taken, h.Name)
		}
	}
	return errors.Join(w.client.broken, w.checkNoneTwice(), w.checkDisks(tx), w.checkBackups(tx), w.checkKept())
}

// checkNoneTwice is that no guest runs on two machines, or has its disk open on two. It is cheap enough for every step.
func (w *world) checkNoneTwice() error {
	clear(w.running)
	for _, n := range w.nodes {
		for _, id := range n.machine.Running() {
			if other := w.running[id]; other != "" {
				return fmt.Errorf("guest %s runs twice, on %s and %s", id, other, n.name)
			}
			w.running[id] = n.name
		}
	}
	if err := w.checkOneWriter(); err != nil {
		return err
	}
	tx := w.control.state.Latest()
	if tx.Revision() == w.together {
		return nil // as it was
	}
	w.together = tx.Revision()
	return w.checkTogether(tx)
}

// checkTogether is that servers that are to be on one host are parted only where somebody wants them elsewhere more than beside each other: on
// their way, which they go one after the other, off a host that is emptied or lost. Those that have stayed behind may be so for long.
func (w *world) checkTogether(tx *state.Tx) error {
	for _, p := range w.client.projects {
		for _, id := range p.groups {
			if g, ok := compute.Groups().PeekOne(tx, id); !ok || g.Policy != compute.Together {
				continue
			}
			var first, other *compute.Server
			excused := false
			for _, id := range compute.MembersOf(tx, id) {
				s, ok := compute.Servers().PeekOne(tx, id)
				if !ok || s.HostID.IsZero() {
					continue
				}
				if first == nil {
					first = s
				} else if s.HostID != first.HostID {
					other = s
				}
				h, ok := host.Table().PeekOne(tx, s.HostID)
				m, moved := compute.Migrations().PeekOne(tx, s.MigrationID)
				excused = excused || !ok || !h.Up() || h.Maintenance || s.Move != nil || moved && m.Task == compute.Evacuating
			}
			switch {
			case other == nil:
				delete(w.parted, id)
			case excused:
				if !w.parted[id] {
					w.result.Reached["a group parted"]++
				}
				w.parted[id] = true
			case !w.parted[id]:
				return fmt.Errorf("group %s keeps its servers on one host: %s is on %s, and %s on %s", id, first.ID, w.node(first.HostID).name, other.ID, w.node(other.HostID).name)
			}
		}
	}
	return nil
}

// restless says what is not settled; "" when everything is.
func (w *world) restless() string {
	tx := w.control.state.Latest()
	for _, n := range w.nodes {
		if n.session == nil && !n.dead {
			return n.name + " has no session"
		}
		if h, ok := host.Find(tx, n.id); ok && n.session != nil && !h.Mute.IsZero() {
			return n.name + " is mute in a session"
		}
	}
	if what := w.unkept(tx); what != "" {
		return what
	}
	if what := w.unshelved(tx); what != "" {
		return what
	}
	if what := w.misrouted(tx); what != "" {
		return what
	}
	for n := range host.Newcomers().Peek(tx, "", state.Range{}) {
		return fmt.Sprintf("newcomer %s has joined, and did not come", n.ID)
	}
	for s := range compute.Servers().Peek(tx, "", state.Range{}) {
		if s.Task != "" {
			return fmt.Sprintf("server %s: %s goes on since %v", s.ID, s.Task, w.clock.Sub(s.UpdatedAt).Round(time.Second))
		}
	}
	for o := range operation.Table().Peek(tx, "deadline", state.Range{}) {
		return fmt.Sprintf("operation %s of %s %s runs", o.Verb, o.TargetKind, o.TargetID)
	}
	for l := range host.Leftovers().Peek(tx, "thing", state.Range{}) {
		if w.node(l.HostID).dead {
			continue // it goes when the host is taken out of the cloud
		}
		return fmt.Sprintf("%s %s is left on host %s (ordered away: %v)", l.Kind, l.ThingID, l.HostID, l.Ordered)
	}
	if err := errors.Join(w.checkReality(), w.checkStorage(tx)); err != nil {
		return err.Error()
	}
	return ""
}

// checkReality compares what the machines hold with what is wanted.
func (w *world) checkReality() error {
	tx := w.control.state.Latest()
	var wrong error
	for _, n := range w.nodes {
		if n.dead {
			continue
		}
		want := map[host.Key]bool{}
		for _, source := range w.control.hub.Sources {
			if source.Kind == "estate" {
				continue // what is wanted there is that nothing is: see checkStorage
			}
			for _, id := range source.All(tx, n.id) {
				if body, ok := source.Want(tx, n.id, id); ok && body != nil {
					want[host.Key{Kind: source.Kind, ID: id}] = true
				}
			}
		}
		have := map[host.Key]bool{}
		ids, err := n.machine.Guests().Present(w.ctx)
		if err != nil {
			return err
		}
		for _, id := range ids {
			have[host.Key{Kind: "guest", ID: id}] = true
		}
		things, err := n.machine.Networks().Present(w.ctx)
		if err != nil {
			return err
		}
		for _, t := range things {
			have[host.Key{Kind: t.Kind, ID: t.ID}] = true
		}
		for key := range want {
			if !have[key] {
				wrong = errors.Join(wrong, fmt.Errorf("%s has no %s %s", n.name, key.Kind, key.ID))
			}
		}
		for key := range have {
			if !want[key] {
				wrong = errors.Join(wrong, fmt.Errorf("%s holds %s %s, which nobody wants", n.name, key.Kind, key.ID))
			}
		}
		for _, id := range ids {
			s, ok := compute.Servers().PeekOne(tx, id)
			seen, err := n.machine.Guests().Observe(w.ctx, id)
			if ok && err == nil && s.Failure == nil && (seen.Power != s.Power || s.Seen.Power != s.Power) {
				wrong = errors.Join(wrong, fmt.Errorf("server %s is to be %s, was seen %s, is %s", id, s.Power, s.Seen.Power, seen.Power))
			}
			if ok && s.Seen.Wish != s.Wish {
				wrong = errors.Join(wrong, fmt.Errorf("server %s was asked for the %d. time, and its host answers the %d", id, s.Wish, s.Seen.Wish))
			}
		}
	}
	return wrong
}
