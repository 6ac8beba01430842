// Package cloudtest is a small cloud in memory for tests: real state and core, and hosts that
// do at once what they are told, or do not.
package cloudtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Cloud is one cloud with hosts, an image, and a project with a network.
type Cloud struct {
	T       testing.TB
	Engine  state.Engine
	State   *state.State
	Compute *compute.Service
	Network *network.Service
	Reaper  *operation.Reaper
	Ops     *operation.Service
	Hub     *host.Hub
	Images  *image.Service
	Hosts   []*Host
	Clock   time.Time

	Project, Other resource.ID
	User           *identity.Actor // a member of Project
	Ctx            context.Context // in which User asks
	OtherCtx       context.Context // in which a member of Other asks
	Admin          context.Context
	Image          resource.ID
	NetworkID      resource.ID
}

// A Host is a machine that does at once what it is told.
type Host struct {
	ID      resource.ID
	Name    string
	Silent  bool                 // it hears nothing and says nothing
	Mute    bool                 // it does what it is told, and its reports wait until it is not
	Trouble string               // what it says of every guest, instead of doing anything
	Lazy    bool                 // it takes in what is wanted and does nothing about it
	Slow    map[resource.ID]bool // guests of which it does so

	Guests map[resource.ID]compute.Guest
	Seen   map[resource.ID]compute.Observation
	Erased []compute.Erasure // of shared storage
	Keeps  string            // why it cannot erase any; "" if it can
	// What it says of guests that come and go; empty: it takes them in and lets them go at once.
	Receives, Sends *compute.Transit
	// What it says of copies that it is to make; nil: it makes them at once.
	Copies   *compute.Copying
	session  *host.Session
	capacity host.Capacity
	waiting  []host.Observation
}

// Capacity of each host.
var Capacity = host.Capacity{Driver: host.Simulated, Release: "1.0", VCPUs: 16, MemoryMiB: 65536, DiskGiB: 1000, Moves: true, Snapshots: "raw", Arch: "x86_64", CPUModel: "test"}

// New makes a cloud with so many hosts.
func New(t testing.TB, hosts int) *Cloud {
	t.Helper()
	c := &Cloud{T: t, Clock: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	engine := state.NewMemory(0)
	st, err := state.Open(context.Background(), engine, state.Options{Now: func() time.Time {
		c.Clock = c.Clock.Add(time.Millisecond)
		return c.Clock
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	c.Engine, c.State = engine, st
	c.Images = image.New(st, new(imagetest.Memory), image.Config{InUse: compute.UsesImage})
	c.Compute, c.Network = compute.New(st, compute.Config{Images: c.Images}), network.New(st)
	c.Reaper = &operation.Reaper{State: st, Now: func() time.Time { return c.Clock }, Expirers: c.Compute.Expirers()}
	c.Ops = &operation.Service{State: st, Cancellers: c.Compute.Cancellers()}
	c.Hub = host.NewHub(st, append(c.Compute.Sources(), host.Sources()...)...)
	c.Admin = identity.Internal(context.Background())
	c.Project, c.Other = resource.NewID(c.Clock, nil), resource.NewID(c.Clock, nil)
	c.User = c.Member(c.Project)
	c.Ctx = identity.As(context.Background(), c.User)
	c.OtherCtx = identity.As(context.Background(), c.Member(c.Other))
	c.Must(compute.Bootstrap(c.Admin, st))
	c.addImage()
	c.addNetwork()
	for n := range hosts {
		c.AddHost(fmt.Sprintf("node-%d", n+1), Capacity)
	}
	return c
}

// Member makes an actor who is a member of a project.
func (c *Cloud) Member(project resource.ID) *identity.Actor {
	return &identity.Actor{UserID: resource.NewID(c.Clock, nil), UserName: "someone", ProjectID: project, Roles: []string{"member", "reader"}}
}

// Must ends the test if there is an error.
func (c *Cloud) Must(err error) {
	c.T.Helper()
	if err != nil {
		c.T.Fatal(err)
	}
}

func (c *Cloud) addImage() {
	c.Must(c.State.Update(c.Admin, func(tx *state.Tx) error {
		c.Image = tx.NewID()
		return image.Table().Put(tx, &image.Image{Meta: resource.Meta{ID: c.Image, Name: "cirros"},
			Spec:  image.Spec{Format: "qcow2", Container: "bare", Visibility: image.Public, MinMemoryMiB: 64},
			State: image.Active, Usable: true, Bytes: 1 << 20, VirtualBytes: 1 << 26, SHA512: "00"})
	}))
}

func (c *Cloud) addNetwork() {
	made, err := c.Network.Networks.Create(c.Ctx, &network.Network{Meta: resource.Meta{Name: "private", ProjectID: c.Project}, AdminUp: true, Secured: true})
	c.Must(err)
	c.NetworkID = made[0].ID
	_, err = c.Network.Subnets.Create(c.Ctx, &network.Subnet{Meta: resource.Meta{ProjectID: c.Project}, NetworkID: c.NetworkID,
		CIDR: netip.MustParsePrefix("10.0.0.0/16"), Gateway: netip.MustParseAddr("10.0.0.1"), DHCP: true})
	c.Must(err)
}

// AddHost adds a machine, and connects it.
func (c *Cloud) AddHost(name string, capacity host.Capacity) *Host {
	h := &Host{ID: resource.NewID(c.Clock, nil), Name: name, capacity: capacity, Guests: map[resource.ID]compute.Guest{}, Seen: map[resource.ID]compute.Observation{}}
	c.Hosts = append(c.Hosts, h)
	c.Must(host.Arrive(c.Admin, c.State, h.ID, host.Hello{Speaks: release.Own, Name: name, Capacity: capacity}))
	h.session = c.Hub.Connect(h.ID)
	return h
}

// Lose cuts a host off, and lets the cloud notice.
func (c *Cloud) Lose(h *Host) {
	h.Silent = true
	c.Must(host.Lose(c.Admin, c.State, h.ID))
}

// Bury is an operator's word that a host that is lost runs nothing any more.
func (c *Cloud) Bury(h *Host) {
	c.T.Helper()
	_, err := (&host.Service{State: c.State}).Vouch(c.Admin, h.ID)
	c.Must(err)
}

// Return connects a host again.
func (c *Cloud) Return(h *Host) {
	h.Silent = false
	c.Must(host.Arrive(c.Admin, c.State, h.ID, host.Hello{Speaks: release.Own, Name: h.Name, Capacity: h.capacity}))
	h.session = c.Hub.Connect(h.ID)
}

// Settle lets the hosts work until nothing is left to be done.
func (c *Cloud) Settle() {
	c.T.Helper()
	for range 100 {
		c.Must(c.Hub.Pump())
		quiet := true
		for _, h := range c.Hosts {
			if !h.Silent && c.work(h) {
				quiet = false
			}
		}
		if quiet {
			return
		}
	}
	c.T.Fatal("the hosts never come to rest")
}

// work takes one delivery in; false if there was none.
func (c *Cloud) work(h *Host) bool {
	d, err := h.session.Poll()
	c.Must(err)
	reports := h.waiting
	h.waiting = nil
	if d == nil {
		d = &host.Delivery{}
	}
	if len(d.Items) == 0 && !d.Full && (len(reports) == 0 || h.Mute) {
		h.waiting = reports
		return false
	}
	d.Items = slices.DeleteFunc(d.Items, func(item host.Item) bool {
		if item.Kind == "estate" && item.Body != nil {
			var left compute.Erasure
			c.Must(json.Unmarshal(item.Body, &left))
			if h.Keeps == "" {
				h.Erased = append(h.Erased, left)
			}
			text, err := json.Marshal(compute.Erased{Era: left.Era, Epoch: left.Epoch, Final: left.Final, Trouble: h.Keeps})
			c.Must(err)
			reports = append(reports, host.Observation{Key: item.Key, Seen: text})
		}
		return item.Kind == "estate"
	})
	named := map[resource.ID]bool{}
	tell := func(id resource.ID, seen any) {
		text, err := json.Marshal(seen)
		c.Must(err)
		reports = append(reports, host.Observation{Key: host.Key{Kind: "guest", ID: id}, Seen: text})
	}
	drop := func(id resource.ID) {
		delete(h.Guests, id)
		delete(h.Seen, id)
		tell(id, host.Gone) // in the agent's very words
	}
	for _, item := range d.Items {
		named[item.ID] = true
		if h.Lazy || h.Slow[item.ID] {
			continue
		}
		if item.Body == nil {
			drop(item.ID)
			continue
		}
		var g compute.Guest
		c.Must(json.Unmarshal(item.Body, &g))
		h.Guests[item.ID] = g
		seen := compute.Seen{Observation: h.carryOut(g, c.Clock), Wish: g.Wish}
		seen.Transit, seen.Copy = h.transit(g), c.copying(h, g)
		tell(item.ID, seen)
	}
	if d.Full {
		for id := range h.Guests {
			if !named[id] {
				drop(id)
			}
		}
	}
	if h.Mute {
		h.waiting = reports
	} else if len(reports) > 0 {
		c.Must(c.Hub.Observe(c.Admin, h.ID, reports))
	}
	return true
}

// transit is what the host says of a guest's move.
func (h *Host) transit(g compute.Guest) compute.Transit {
	t, says, move := compute.Transit{Done: true}, h.Sends, 0
	switch {
	case g.Arrive != nil:
		t.Where, says, move = h.Name, h.Receives, g.Arrive.Move
	case g.Leave != nil:
		move = g.Leave.Move
	default:
		return compute.Transit{}
	}
	if says != nil {
		t = *says
	}
	t.Move = move
	return t
}

// copying is what the host says of a snapshot, which it brings into its image.
func (c *Cloud) copying(h *Host, g compute.Guest) compute.Copying {
	says := compute.Copying{Done: true}
	switch {
	case g.Snapshot == nil:
		return compute.Copying{}
	case h.Copies != nil:
		says = *h.Copies
	case h.Trouble == "" && compute.Makes(c.State.Latest(), h.ID, g.Snapshot.ImageID):
		disk := bytes.Repeat([]byte(g.Name+" "), 512)[:512]
		c.Must(c.Images.Fill(c.Admin, g.Snapshot.ImageID, bytes.NewReader(disk), int64(len(disk))))
	}
	says.Number = g.Snapshot.Number
	return says
}

func (h *Host) carryOut(g compute.Guest, now time.Time) compute.Observation {
	seen := h.Seen[g.ID]
	if h.Trouble != "" {
		seen.Trouble = h.Trouble
		if seen.Power == "" {
			seen.Power = compute.Crashed
		}
		h.Seen[g.ID] = seen
		return seen
	}
	if g.Arrive != nil {
		return compute.Observation{Power: compute.Off}
	}
	if g.Power == compute.On && (seen.Power != compute.On || g.HardBoots > seen.HardBoots) {
		seen.StartedAt = now.UTC()
	}
	seen = compute.Observation{Power: g.Power, HardBoots: g.HardBoots, SoftBoots: g.SoftBoots, Rebuilds: g.Rebuilds, StartedAt: seen.StartedAt}
	h.Seen[g.ID] = seen
	return seen
}

// Tell reports something of a guest that its host saw by itself.
func (c *Cloud) Tell(h *Host, id resource.ID, seen compute.Observation) {
	h.Seen[id] = seen
	c.Report(h, id, compute.Seen{Observation: seen, Wish: h.Guests[id].Wish})
}

// Report brings a host's report to the cloud.
func (c *Cloud) Report(h *Host, id resource.ID, seen compute.Seen) {
	text, err := json.Marshal(seen)
	c.Must(err)
	c.Must(c.Hub.Observe(c.Admin, h.ID, []host.Observation{{Key: host.Key{Kind: "guest", ID: id}, Seen: text}}))
}

// Expire lets time pass until everything under way is past its deadline, and ends it.
func (c *Cloud) Expire() {
	c.Clock = c.Clock.Add(time.Hour)
	c.Reap()
}

// Reap ends what is over its deadline.
func (c *Cloud) Reap() {
	task := c.Reaper.Task()
	for _, id := range task.All(c.State.Latest()) {
		_, err := task.Step(c.Admin, id)
		c.Must(err)
	}
}

// Launch makes servers for User.
func (c *Cloud) Launch(l compute.Launch) []resource.ID {
	c.T.Helper()
	made, err := c.Compute.Create(c.Ctx, c.Plain(l))
	c.Must(err)
	return made.Servers
}

// Plain fills in what a launch needs at least.
func (c *Cloud) Plain(l compute.Launch) compute.Launch {
	if l.Name == "" {
		l.Name = "vm"
	}
	if l.Flavor == "" {
		l.Flavor = "42"
	}
	if l.ImageID.IsZero() {
		l.ImageID = c.Image
	}
	return l
}

// Server reads a server; nil if it is gone.
func (c *Cloud) Server(id resource.ID) *compute.Server {
	srv, _ := compute.Servers().Find(c.State.Latest(), id)
	return srv
}

// HostOf is the host that a server is on.
func (c *Cloud) HostOf(id resource.ID) *Host {
	c.T.Helper()
	srv := c.Server(id)
	for _, h := range c.Hosts {
		if srv != nil && h.ID == srv.HostID {
			return h
		}
	}
	c.T.Fatalf("server %s is on no host", id)
	return nil
}
