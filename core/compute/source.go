package compute

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Sources tell hosts what they are to do about servers, and take in what these tell.
func (s *Service) Sources() []host.Source {
	return []host.Source{s.guestSource(), s.estateSource(), passwordSource()}
}

// guestSource tells hosts which guests they are to run, and takes in what became of them.
func (s *Service) guestSource() host.Source {
	return host.Source{
		Kind: "guest",
		All: func(tx *state.Tx, h resource.ID) []resource.ID {
			return slices.Concat(servers.IDs(tx, "host", state.KeyOf(h)), servers.IDs(tx, "arriving", state.KeyOf(h)))
		},
		Want:    s.want,
		Touched: touched,
		Observe: s.observe,
	}
}

// want derives a server's guest. A host that is to be rid of it is told so until it says that it is.
func (s *Service) want(tx *state.Tx, h, id resource.ID) (any, bool) {
	srv, ok := servers.PeekOne(tx, id)
	switch {
	case !ok:
		return nil, false
	case srv.Move != nil && srv.Move.To == h:
		g := s.guest(tx, srv, h, &srv.Shape)
		g.Arrive, g.Epoch = &Arrive{Move: srv.Move.Number, Live: srv.Move.Live, From: srv.HostID, Kept: srv.Move.keeps(srv)}, srv.Move.Number+1
		g.lieOn(tx, srv.Move.Storage, g.Arrive.Kept)
		return g, true
	case srv.HostID != h:
		return nil, false
	case srv.Doomed():
		return nil, true
	case srv.Move != nil:
		return s.leaving(tx, srv), true
	}
	return s.guest(tx, srv, h, &srv.Shape), true
}

// leaving is the guest of a server that goes to another host. Until that one is ready, nothing changes for it.
func (s *Service) leaving(tx *state.Tx, srv *Server) *Guest {
	m := srv.Move
	g := s.guest(tx, srv, srv.HostID, &m.Was)
	if m.There.Where == "" {
		return g
	}
	g.Leave = &Leave{Move: m.Number, Where: m.There.Where, Live: m.Live, Urgent: m.Urgent, Kept: m.keeps(srv)}
	if !m.Live {
		g.Power = Off
	}
	return g
}

// guest is a server's guest as a host is to have it, in a shape.
func (s *Service) guest(tx *state.Tx, srv *Server, on resource.ID, shape *Shape) *Guest {
	g := &Guest{
		ID: srv.ID, ProjectID: srv.ProjectID, Name: srv.Name, VCPUs: shape.VCPUs, MemoryMiB: shape.MemoryMiB,
		Kernel: srv.Boot.Kernel, Initrd: srv.Boot.Initrd, Cmdline: srv.Boot.Cmdline, Machine: srv.Boot.Machine, UEFI: srv.Boot.UEFI,
		Disks: srv.disks(), ConfigDrive: srv.ConfigDrive,
		Power: srv.Power, HardBoots: srv.HardBoots, SoftBoots: srv.SoftBoots, Rebuilds: srv.Rebuilds,
		Wish: srv.Wish, GraceSeconds: int(s.config.Grace.Seconds()),
		Epoch: srv.Epoch, Leased: srv.Keep.Elsewhere, StayOff: host.KeepingOf(tx).StayOff,
	}
	if srv.Snapshot != nil && on == srv.HostID {
		g.Snapshot = srv.Snapshot
		if srv.Task == Shelving {
			g.Power = Off
		}
	}
	g.Metadata = Metadata{
		Hostname: srv.Hostname, Zone: srv.Zone, Type: shape.Name, ImageID: srv.Boot.ImageID(), LaunchIndex: srv.LaunchIndex,
		ReservationID: srv.ReservationID, CreatedAt: srv.CreatedAt, Tags: srv.Metadata, UserData: srv.UserData,
		Files: srv.Files, AdminPassword: srv.AdminPassword, Told: srv.told(),
	}
	g.lieOn(tx, srv.Storage, srv.Kept)
	if h, ok := host.Table().PeekOne(tx, on); ok && g.Metadata.Zone == "" {
		g.Metadata.Zone = ZonesOf(tx).Of(h)
	}
	if srv.Key != nil {
		g.Metadata.Keys = []PublicKey{{Name: srv.Key.Name, Type: srv.Key.Type, Key: srv.Key.Public}}
	}
	s.wire(tx, srv, g)
	return g
}

// MadeFrom reports whether any of a host's servers is made from an image. Nobody else's image is a host to have, for who
// takes a host over would have everybody's.
func MadeFrom(tx *state.Tx, h, id resource.ID) bool {
	for _, index := range []string{"host", "arriving"} {
		for srv := range servers.Peek(tx, index, state.Range{Prefix: state.KeyOf(h)}) {
			for _, ref := range append(srv.parts(), srv.Boot.Image) {
				if ref != nil && ref.ID == id {
					return true
				}
			}
		}
	}
	return false
}

func (s *Server) disks() []Disk {
	shape := &s.Shape
	if s.Before != nil {
		shape = &s.Before.Shape // the disks grow once there is no way back
	}
	disks := []Disk{{Name: "root", SizeMiB: shape.RootGiB * 1024, Image: s.root(), Bus: s.Boot.DiskBus}}
	if shape.EphemeralGiB > 0 {
		disks = append(disks, Disk{Name: "ephemeral0", SizeMiB: shape.EphemeralGiB * 1024, Bus: s.Boot.DiskBus, Label: "ephemeral0"})
	}
	if shape.SwapMiB > 0 {
		disks = append(disks, Disk{Name: "swap", SizeMiB: shape.SwapMiB, Bus: s.Boot.DiskBus, Label: "swap"})
	}
	return disks
}

// touched says which guests a change concerns.
func touched(tx *state.Tx, e state.Event) []host.Ref {
	var refs []host.Ref
	switch e.Kind {
	case servers.Kind():
	case host.KeepingKind():
		for srv := range servers.Peek(tx, "host", state.Range{}) {
			refs = append(refs, host.Ref{Host: srv.HostID, ID: srv.ID})
		}
		return refs
	default:
		return touchedByNetwork(tx, e)
	}
	for _, obj := range []resource.Object{e.Before, e.After} {
		srv, ok := obj.(*Server)
		if !ok {
			continue
		}
		on := []resource.ID{srv.HostID}
		if srv.Move != nil {
			on = append(on, srv.Move.To)
		}
		for _, h := range on {
			if ref := (host.Ref{Host: h, ID: srv.ID}); !h.IsZero() && !slices.Contains(refs, ref) {
				refs = append(refs, ref)
			}
		}
	}
	return refs
}

// observe takes in what a host saw of a guest. What is under way ends here.
func (s *Service) observe(tx *state.Tx, h, id resource.ID, report json.RawMessage) error {
	var seen Seen
	if err := json.Unmarshal(report, &seen); err != nil {
		return fmt.Errorf("decode a guest's report: %w", err)
	}
	srv, ok := servers.Find(tx, id)
	transit, copying := seen.Transit, seen.Copy
	seen.Transit, seen.Copy = Transit{}, Copying{}
	switch {
	case ok && srv.Move != nil && srv.Move.To == h && !seen.Gone:
		return srv.take(tx, func() error { return srv.travel(tx, h, transit) })
	case !ok || srv.HostID != h:
		return nil // it is no longer this host's
	case transit.Move != 0 && srv.Move == nil:
		return nil // late: that move is over, and the host is told so
	}
	if seen.Gone {
		if srv.Doomed() {
			return s.bury(tx, srv, "")
		}
		return nil // it is wanted again, and the host has been told
	}
	seen.Since = srv.Seen.Since
	if seen.Power != srv.Seen.Power {
		seen.Since = tx.Now()
	}
	srv.ran(&seen)
	if srv.Move != nil {
		return srv.take(tx, func() error {
			srv.Seen = seen
			if transit.Move == 0 && !srv.Move.Live && seen.Wish >= srv.Wish && seen.ended(srv) {
				srv.Power = Off // before it was switched off for the way: it goes as one that is off
			}
			return srv.travel(tx, h, transit)
		})
	}
	if srv.Snapshot != nil {
		return s.copied(tx, srv, seen, copying)
	}
	if seen.same(&srv.Seen) {
		return nil
	}
	srv.Seen = seen
	if srv.Task == Unshelving && srv.HostID == h && srv.Shelf.Offloaded {
		return srv.ready(tx)
	}
	if err := srv.advance(tx); err != nil {
		return err
	}
	return servers.Put(tx, srv)
}

// take changes the server by a report of its move, and writes nothing for one that says nothing new.
func (s *Server) take(tx *state.Tx, change func() error) error {
	here, there, seen := s.Move.Here, s.Move.There, s.Seen
	if err := change(); err != nil {
		return err
	}
	if s.Move != nil && s.Move.Here == here && s.Move.There == there && s.Seen.same(&seen) {
		return nil
	}
	return servers.Put(tx, s)
}

// same reports whether a report says nothing new.
func (s *Seen) same(was *Seen) bool {
	a, b := *s, *was
	started := a.StartedAt.Equal(b.StartedAt)
	a.StartedAt, a.Since = b.StartedAt, b.Since
	return started && a == b
}

// stuck reports whether the host has given up on a wish.
func (s *Seen) stuck() bool { return s.Trouble != "" && !s.Busy }

// ended reports whether the guest has ended by itself, having carried out all that was asked for but to run.
func (s *Seen) ended(want *Server) bool {
	return (s.Power == Off || s.Power == Crashed) && !s.Busy && want.Power != Off &&
		s.HardBoots >= want.HardBoots && s.SoftBoots >= want.SoftBoots && s.Rebuilds >= want.Rebuilds
}

// advance draws the conclusions from what was last seen.
func (s *Server) advance(tx *state.Tx) error {
	if s.LaunchedAt.IsZero() && s.Seen.Power == s.Power && !s.Doomed() {
		s.LaunchedAt, s.Failure = tx.Now(), nil // late perhaps, but there it is
	}
	if s.recovered() && !s.Doomed() {
		s.Failure = nil
	}
	if s.Doomed() || s.Seen.Wish < s.Wish {
		return nil // what was last asked for has not been looked at yet
	}
	m, busy := moves[s.Task]
	switch {
	case !busy:
	case m.done(s, &s.Seen):
		return s.conclude(tx, operation.Succeeded, "")
	case s.Seen.stuck():
		return s.giveUp(tx, s.Seen.Trouble)
	case !s.Seen.ended(s):
		return nil
	case m.boots: // it did, and then switched itself off
		if s.LaunchedAt.IsZero() {
			s.LaunchedAt, s.Failure = tx.Now(), nil
		}
		if err := s.conclude(tx, operation.Succeeded, ""); err != nil {
			return err
		}
	default:
		return s.giveUp(tx, "The guest ended by itself.")
	}
	switch {
	case !s.Seen.ended(s) || s.LaunchedAt.IsZero():
	case s.Seen.Power == Crashed:
		return s.crashed(tx)
	default: // the wish follows a guest that ended by itself
		s.Power = Off
	}
	return nil
}

// giveUp ends what is under way as failed. What never ran, or lost its disk, is then failed
// itself; anything else is as it was last seen.
func (s *Server) giveUp(tx *state.Tx, why string) error {
	switch {
	case s.Move != nil:
		return s.stay(tx, operation.Failed, why)
	case s.Snapshot != nil || s.Task == Unshelving:
		return s.putBack(tx, operation.Failed, why)
	}
	if s.spoilt() {
		s.fail(tx, 500, why)
	}
	wished := s.Power
	if s.Task != Creating {
		s.fallBack()
	}
	if err := s.conclude(tx, operation.Failed, why); err != nil {
		return err
	}
	if s.Seen.Power == Crashed && wished == On && s.Failure == nil {
		return s.crashed(tx)
	}
	return nil
}

// spoilt reports whether what is under way leaves a server that is not whole if it ends now.
func (s *Server) spoilt() bool {
	return s.LaunchedAt.IsZero() || s.Task == Rebuilding || s.Task == Evacuating
}

// fallBack makes the wish what was last seen. In the midst of a change of shape that says nothing.
func (s *Server) fallBack() {
	power, boots, midst := s.Power, s.HardBoots, s.Seen.Wish < s.Wish || s.Seen.Busy
	s.Wish++
	switch s.Seen.Power {
	case On, Off, Paused, Suspended:
		s.Power = s.Seen.Power
	case Crashed:
		s.Power = Off
	}
	s.HardBoots, s.SoftBoots = s.Seen.HardBoots, s.Seen.SoftBoots
	switch {
	case s.Task == Reverting: // the shape is the old one already: the guest is yet to take it
		s.HardBoots = max(boots, s.HardBoots)
	case s.Task == Reshaping && midst:
		s.HardBoots = boots
		s.recycle()
	default:
		return
	}
	if midst {
		s.Power = power
	}
}

// recycle has the guest power-cycled that may have taken the shape which is taken back, or may not: nobody has heard.
func (s *Server) recycle() { s.HardBoots = max(s.HardBoots, s.Seen.HardBoots) + 1 }

// Expirers end what was not done in time.
func (s *Service) Expirers() map[string]operation.Expirer {
	return map[string]operation.Expirer{servers.Kind(): s.expire, host.Table().Kind(): expireDrain}
}

func (s *Service) expire(tx *state.Tx, o *operation.Operation) error {
	srv, ok := servers.Find(tx, o.TargetID)
	if !ok || srv.OperationID != o.ID {
		return nil
	}
	if h, ok := host.Table().PeekOne(tx, srv.HostID); ok && !h.Up() {
		return s.despair(tx, srv, h)
	}
	if srv.Task == Deleting {
		return s.abandon(tx, srv, "Its host did not confirm in time; it takes the guest away as soon as it can.")
	}
	why := "The host did not do it in the time it is given."
	if srv.Move != nil {
		why = "Its hosts did not move it in the time they are given."
	}
	if err := srv.giveUp(tx, why); err != nil {
		return err
	}
	return servers.Put(tx, srv)
}
