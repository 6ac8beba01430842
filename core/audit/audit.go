// Package audit derives again, from the objects alone, what must hold at every moment, and
// says where it does not: indexes and tallies that a recount contradicts, orphans, things
// that are under way without an owner or an end. It repairs nothing: a finding is a bug.
package audit

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Finding is one contradiction.
type Finding struct {
	Kind string
	ID   resource.ID
	What string
}

func (f Finding) String() string { return fmt.Sprintf("%s %s: %s", f.Kind, f.ID, f.What) }

type auditor struct {
	tx       *state.Tx
	findings []Finding
}

func (a *auditor) find(kind string, id resource.ID, format string, args ...any) {
	a.findings = append(a.findings, Finding{kind, id, fmt.Sprintf(format, args...)})
}

// State audits everything at the moment that tx shows.
func State(tx *state.Tx) []Finding { return new(Series).State(tx) }

// A Series audits one state again and again: see state.Verifier.
type Series struct {
	verifier state.Verifier
}

// State audits everything at the moment that tx shows.
func (s *Series) State(tx *state.Tx) []Finding {
	a := &auditor{tx: tx}
	for kind, wrong := range map[string][]string{"index": s.verifier.Verify(tx), "level": state.Beyond(tx), "identity": identity.Audit(tx), "network": network.Audit(tx), "member": host.Audit(tx)} {
		for _, what := range wrong {
			a.findings = append(a.findings, Finding{Kind: kind, What: what})
		}
	}
	slices.SortStableFunc(a.findings, func(x, y Finding) int { return strings.Compare(x.Kind, y.Kind) })
	a.operations()
	a.servers()
	a.groups()
	a.migrations()
	a.estates()
	a.images()
	a.ports()
	a.aggregates()
	a.hosts()
	return a.findings
}

// operations: what runs has a deadline and a target, and is what goes on with it.
func (a *auditor) operations() {
	for o := range operation.Table().Peek(a.tx, "deadline", state.Range{}) {
		if o.Deadline.IsZero() {
			a.find("operation", o.ID, "%s runs without a deadline", o.Verb)
		}
		switch o.TargetKind {
		case compute.Servers().Kind():
			s, there := compute.Servers().PeekOne(a.tx, o.TargetID)
			a.goesOn(o, there, there && s.OperationID == o.ID)
		case host.Table().Kind():
			h, there := host.Table().PeekOne(a.tx, o.TargetID)
			a.goesOn(o, there, there && h.Drain != nil && h.Drain.OperationID == o.ID && !h.Drain.Over())
		case image.Table().Kind():
			i, there := image.Table().PeekOne(a.tx, o.TargetID)
			a.goesOn(o, there, there && underWay(i))
		}
	}
}

func (a *auditor) goesOn(o *operation.Operation, there, busy bool) {
	switch {
	case !there:
		a.find("operation", o.ID, "%s runs, but its %s %s is gone", o.Verb, o.TargetKind, o.TargetID)
	case !busy:
		a.find("operation", o.ID, "%s runs, but its %s %s knows nothing of it", o.Verb, o.TargetKind, o.TargetID)
	}
}

// servers: what is under way has its operation, and its end; what they refer to is there.
func (a *auditor) servers() {
	for s := range compute.Servers().Peek(a.tx, "", state.Range{}) {
		o, known := operation.Table().PeekOne(a.tx, s.OperationID)
		runs := known && o.Outcome == operation.Running && o.TargetID == s.ID
		switch {
		case s.Task != "" && !runs:
			a.find("server", s.ID, "%s is under way, but no operation of it runs", s.Task)
		case s.Task == "" && runs:
			a.find("server", s.ID, "nothing is under way, but its operation %s runs", o.Verb)
		case runs:
			a.waits(s, o)
		}
		if s.Doomed() != (s.Task == compute.Deleting) {
			a.find("server", s.ID, "is to be deleted and nobody does it, or is being deleted and nobody wants it")
		}
		if !s.HostID.IsZero() && !host.Table().Has(a.tx, s.HostID) {
			a.find("server", s.ID, "is on host %s, which is not there", s.HostID)
		}
		if s.Task == "" && s.HostID.IsZero() && s.Failure == nil && s.Shelf == nil {
			a.find("server", s.ID, "is on no host, and nobody looks for one")
		}
		a.move(s)
		a.shelf(s)
		a.kept(s)
		if s.Kept && s.Storage == "" {
			a.find("server", s.ID, "has its disks on storage that other hosts reach, and that has no name")
		}
		if s.Unrun > 0 && s.Storage == "" || s.Unrun > s.Wish {
			a.find("server", s.ID, "waits for what was made on storage %q by wish %d, and its wish is %d", s.Storage, s.Unrun, s.Wish)
		}
		if s.HostID.IsZero() && s.Storage != "" {
			a.find("server", s.ID, "is on no host, and has disks on storage %s", s.Storage)
		}
		if s.Task == "" && s.Stage() == compute.Building {
			a.find("server", s.ID, "is being built, and nobody does it")
		}
	}
}

// groups: no host has, expects, or may have to take back more servers that are to be apart than it may.
func (a *auditor) groups() {
	for g := range compute.Groups().Peek(a.tx, "", state.Range{}) {
		if g.Policy != compute.Apart {
			continue
		}
		on := map[resource.ID]int{}
		for _, id := range compute.MembersOf(a.tx, g.ID) {
			s, ok := compute.Servers().PeekOne(a.tx, id)
			if !ok {
				continue
			}
			for _, h := range s.Hosts() {
				if on[h]++; on[h] == max(1, g.MaxPerHost)+1 {
					a.find("server-group", g.ID, "keeps its servers apart, and host %s has, or may come to have, more than %d of them", h, max(1, g.MaxPerHost))
				}
			}
		}
	}
}

// move: a server that goes to another host does nothing else, and both hosts are there. Where it may have to go back
// to is there too.
func (a *auditor) move(s *compute.Server) {
	if m := s.Move; m != nil {
		switch s.Task {
		case compute.Migrating, compute.LiveMigrating, compute.Reshaping, compute.Reverting:
		default:
			a.find("server", s.ID, "is on its way to another host, and what is under way is %q", s.Task)
		}
		if m.To == s.HostID || !host.Table().Has(a.tx, m.To) {
			a.find("server", s.ID, "is on its way to host %s, which is its own or not there", m.To)
		}
	}
	if b := s.Before; b != nil && !b.HostID.IsZero() && !host.Table().Has(a.tx, b.HostID) {
		a.find("server", s.ID, "may go back to host %s, which is not there", b.HostID)
	}
	for m := range compute.Migrations().Peek(a.tx, "server", state.Range{Prefix: state.KeyOf(s.ID)}) {
		if !m.State.Over() && (m.ID != s.MigrationID || s.Task == "") {
			a.find("migration", m.ID, "is %s, and its server %s knows nothing of it", m.State, s.ID)
		}
	}
}

// shelf: a snapshot is taken by what is under way, into an image that is there; what is shelved is off, its bytes are there, and it is on no
// host once its own is rid of it, unless it is on its way back.
func (a *auditor) shelf(s *compute.Server) {
	if taken := s.Task == compute.Imaging || s.Task == compute.BackingUp || s.Task == compute.Shelving; taken != (s.Snapshot != nil) {
		a.find("server", s.ID, "a snapshot of it is under way and nobody takes it, or is taken and nobody wants it")
	}
	b := s.Shelf
	if b == nil {
		if s.Task == compute.Unshelving {
			a.find("server", s.ID, "comes back from the shelf, and is not on it")
		}
		return
	}
	if i, ok := image.Table().PeekOne(a.tx, b.Image.ID); !ok || i.BlobID.IsZero() || i.SHA512 != b.Image.SHA512 {
		a.find("server", s.ID, "is shelved, and its image %s is not there as it was", b.Image.ID)
	}
	if s.Power != compute.Off && s.Task != compute.Unshelving && !s.Doomed() {
		a.find("server", s.ID, "is shelved, and is to be %s", s.Power)
	}
	if away := b.Offloaded && s.Task != compute.Unshelving && !s.Doomed(); away && !s.HostID.IsZero() || !b.Offloaded && s.HostID.IsZero() {
		a.find("server", s.ID, "is shelved, and its host is to be rid of it (%v), and its host is %s", b.Offloaded, s.HostID)
	}
}

// kept: who waits for another host has one that is not there, and who waits to be started again is to run.
func (a *auditor) kept(s *compute.Server) {
	if s.Stranded != nil {
		if h, ok := host.Table().PeekOne(a.tx, s.HostID); !ok || !s.Keep.Elsewhere {
			a.find("server", s.ID, "waits to be started elsewhere, and is not to be")
		} else if h.Up() && a.tx.Now().Sub(h.UpdatedAt) > landWithin {
			a.find("server", s.ID, "waits to be started elsewhere, and its host %s is there", h.Name)
		}
	}
	if !s.Crash.Restart.IsZero() && (s.Task != "" || s.Power != compute.On) {
		a.find("server", s.ID, "waits to be started again after a crash, and is to be %s with %q under way", s.Power, s.Task)
	}
	if s.Sworn > s.Wish {
		a.find("server", s.ID, "its host has to know wish %d, and there are only %d", s.Sworn, s.Wish)
	}
}

// waits: nothing waits for a host that is known to be dead. For how long one is missed that is lost is no state.
func (a *auditor) waits(s *compute.Server, o *operation.Operation) {
	on := []resource.ID{s.HostID}
	if s.Move != nil {
		on = append(on, s.Move.To)
	}
	for _, id := range on {
		h, ok := host.Table().PeekOne(a.tx, id)
		if !ok || !h.Dead() {
			continue
		}
		since := h.Fenced.At
		if o.CreatedAt.After(since) {
			since = o.CreatedAt
		}
		if a.tx.Now().Sub(since) > landWithin {
			a.find("server", s.ID, "waits since %s for host %s, which is dead, to do this: %s", since.UTC().Format(time.RFC3339), h.Name, o.Verb)
		}
	}
}

// landWithin is how long servers may be said to wait for another host after theirs is there again, or for their own when it is dead.
const landWithin = 5 * time.Minute

// migrations: they go with their servers.
func (a *auditor) migrations() {
	for m := range compute.Migrations().Peek(a.tx, "", state.Range{}) {
		if !compute.Servers().Has(a.tx, m.ServerID) {
			a.find("migration", m.ID, "is of server %s, which is gone", m.ServerID)
		}
		if m.Passage != (compute.Passage{}) && (m.Task != compute.LiveMigrating || m.State == compute.Preparing || m.State == compute.Sending) {
			a.find("migration", m.ID, "is %s and tells what it came to", m.State)
		}
	}
}

// estates: nobody's disks are to be erased that somebody has.
func (a *auditor) estates() {
	for e := range compute.Estates().Peek(a.tx, "", state.Range{}) {
		s, ok := compute.Servers().PeekOne(a.tx, e.ServerID)
		if e.Storage == "" {
			a.find("estate", e.ID, "is on no storage")
		}
		if ok && (s.Storage == e.Storage && s.Epoch <= e.Epoch || s.Move != nil && s.Move.Storage == e.Storage && s.Move.Number < e.Epoch) {
			a.find("estate", e.ID, "would take the disks of server %s away, which is there", s.ID)
		}
	}
}

// underWay reports whether an image is in a state that it does not stay in.
func underWay(i *image.Image) bool {
	switch i.State {
	case image.Receiving, image.Staging, image.Importing:
		return true
	}
	return false
}

// images: what is under way has its operation.
func (a *auditor) images() {
	for i := range image.Table().Peek(a.tx, "", state.Range{}) {
		if underWay(i) && operation.Active(a.tx, i.ID) == nil {
			a.find("image", i.ID, "is %s, but no operation of it runs", i.State)
		}
		if i.Backup != nil && !i.Whole() && i.State != image.Deleting {
			if s, ok := compute.Servers().PeekOne(a.tx, i.Backup.ServerID); !ok || s.Snapshot == nil || s.Snapshot.ImageID != i.ID {
				a.find("image", i.ID, "is to be a backup of server %s, and nobody makes it", i.Backup.ServerID)
			}
		}
	}
}

// ports: what a server has plugged in is where the server is.
func (a *auditor) ports() {
	for p := range network.Ports().Peek(a.tx, "", state.Range{}) {
		id, err := resource.ParseID(p.DeviceID)
		if err != nil || p.Owner != network.OwnerServer || p.HostID.IsZero() {
			continue // whatever a client wrote
		}
		s, there := compute.Servers().PeekOne(a.tx, id)
		switch {
		case !there:
			a.find("port", p.ID, "is on a host for server %s, which is gone", id)
		case s.HostID != p.HostID:
			a.find("port", p.ID, "is on host %s, and its server %s on another", p.HostID, id)
		case s.Move == nil && !p.NextHostID.IsZero(), s.Move != nil && s.Move.To != p.NextHostID:
			a.find("port", p.ID, "is expected on host %s, and its server %s is not on its way there", p.NextHostID, id)
		}
	}
}

// hosts: what operators say of them is said in words that there are.
func (a *auditor) hosts() {
	for h := range host.Table().Peek(a.tx, "", state.Range{}) {
		if h.Up() && h.Fenced != (host.Fenced{}) {
			a.find("host", h.ID, "can be heard, and is known to be dead")
		}
		if !h.Up() && !h.Mute.IsZero() {
			a.find("host", h.ID, "is lost, and mute in a session that it cannot have")
		}
		if !h.Up() && (h.Disk != (host.Shortage{}) || h.SharedDisk != (host.Shortage{}) || h.Clock != (host.ClockOff{})) {
			a.find("host", h.ID, "is lost, and it is known how its disks and its clock are")
		}
		if h.Maintenance && !h.Disabled || h.Maintenance != (h.Drain != nil) {
			a.find("host", h.ID, "is in maintenance and takes new servers, or nobody empties it")
		}
		if d := h.Drain; d != nil && !d.Over() {
			if o, ok := operation.Table().PeekOne(a.tx, d.OperationID); !ok || o.Outcome != operation.Running {
				a.find("host", h.ID, "is being emptied, but no operation of it runs")
			}
		}
		a.emptied(h)
		for _, t := range h.Traits {
			if !host.TraitExists(a.tx, t) {
				a.find("host", h.ID, "has the trait %s, which is not there", t)
			}
		}
		for class := range h.Offers {
			if !host.ClassExists(a.tx, class) {
				a.find("host", h.ID, "offers %s, which is not there", class)
			}
		}
	}
}

// emptied: what runs on a host that was emptied was said to stay, and had not been stopped for it.
func (a *auditor) emptied(h *host.Host) {
	if h.Drain == nil || !h.Drain.Over() {
		return
	}
	for s := range compute.Servers().Peek(a.tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
		stays := h.Drain.Stays(s.ID)
		switch {
		case s.Task != "":
		case stays == nil && s.Seen.Power == compute.On:
			a.find("host", h.ID, "was emptied, and server %s runs there, of which nobody said that it stays", s.ID)
		case stays != nil && strings.HasPrefix(stays.As+" ", string(compute.Stopped)+" ") && s.Power == compute.On:
			a.find("host", h.ID, "was emptied, and server %s, which was off then, is to run there", s.ID)
		}
	}
}

// aggregates: their hosts are there.
func (a *auditor) aggregates() {
	for g := range compute.Aggregates().Peek(a.tx, "", state.Range{}) {
		for _, id := range g.Hosts {
			if !host.Table().Has(a.tx, id) {
				a.find("aggregate", g.ID, "has host %s, which is not there", id)
			}
		}
	}
}
