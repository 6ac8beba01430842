package audit_test

import (
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A scene is a cloud in which nothing is wrong: a server that runs, one that is being stopped, and
// an aggregate of its host.
type scene struct {
	*cloudtest.Cloud
	tx         *state.Tx
	idle, busy *compute.Server
	nobody     resource.ID
	planted    resource.ID // what the finding is about
}

func newScene(t *testing.T) *scene {
	t.Helper()
	c := cloudtest.New(t, 2)
	ids := c.Launch(compute.Launch{Max: 2})
	c.Settle()
	c.Must(c.Compute.Do(c.Ctx, ids[1], compute.Stopping))
	a, err := c.Compute.CreateAggregate(c.Admin, "a", "")
	c.Must(err)
	_, err = c.Compute.AddHost(c.Admin, a.Number, c.Hosts[0].Name)
	c.Must(err)
	return &scene{Cloud: c, idle: c.Server(ids[0]), busy: c.Server(ids[1]), nobody: resource.NewID(time.Now(), nil)}
}

func (s *scene) server(srv *compute.Server, change func(*compute.Server)) error {
	change(srv)
	s.planted = srv.ID
	return compute.Servers().Put(s.tx, srv)
}

func (s *scene) operation(change func(*operation.Operation)) error {
	o, err := operation.Get(s.tx, s.busy.OperationID)
	if err != nil {
		return err
	}
	change(o)
	s.planted = o.ID
	return operation.Table().Put(s.tx, o)
}

func (s *scene) port(change func(*network.Port)) error {
	p := network.PortsOf(s.tx, s.idle.ID)[0]
	change(p)
	s.planted = p.ID
	return network.Ports().Put(s.tx, p)
}

func (s *scene) image(change func(*image.Image)) error {
	i, ok := image.Table().Find(s.tx, s.Image)
	if !ok {
		panic("the cloud has no image")
	}
	change(i)
	s.planted = i.ID
	return image.Table().Put(s.tx, i)
}

// contradictions are planted one at a time: each is found, named, and said to be what it is.
var contradictions = map[string]struct {
	plant func(*scene) error
	kind  string
	what  string
}{
	"an operation without a deadline": {func(s *scene) error {
		return s.operation(func(o *operation.Operation) { o.Deadline = time.Time{} })
	}, "operation", "runs without a deadline"},
	"an operation on a server that is gone": {func(s *scene) error {
		return s.operation(func(o *operation.Operation) { o.TargetID = s.nobody })
	}, "operation", "is gone"},
	"an operation that its server knows nothing of": {func(s *scene) error {
		return s.operation(func(o *operation.Operation) { o.TargetID = s.idle.ID })
	}, "operation", "knows nothing of it"},
	"an operation on an image that is gone": {func(s *scene) error {
		return s.operation(func(o *operation.Operation) { o.TargetKind, o.TargetID = image.Table().Kind(), s.nobody })
	}, "operation", "is gone"},
	"an operation on an image that is at rest": {func(s *scene) error {
		return s.operation(func(o *operation.Operation) { o.TargetKind, o.TargetID = image.Table().Kind(), s.Image })
	}, "operation", "knows nothing of it"},
	"a task whose operation has ended": {func(s *scene) error {
		err := s.operation(func(o *operation.Operation) { o.Outcome = operation.Failed })
		s.planted = s.busy.ID
		return err
	}, "server", "no operation of it runs"},
	"a task without an operation": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.Task = compute.Pausing })
	}, "server", "no operation of it runs"},
	"an operation without a task": {func(s *scene) error {
		return s.server(s.busy, func(srv *compute.Server) { srv.Task = "" })
	}, "server", "nothing is under way, but its operation stop runs"},
	"a deletion that nobody does": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.DeletedAt = time.Now() })
	}, "server", "nobody does it"},
	"a deletion that nobody wants": {func(s *scene) error {
		return s.server(s.busy, func(srv *compute.Server) { srv.Task = compute.Deleting })
	}, "server", "nobody wants it"},
	"a server on a host that is gone": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.HostID = s.nobody })
	}, "server", "which is not there"},
	"a server on no host": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.HostID = resource.ID{} })
	}, "server", "is on no host, and nobody looks for one"},
	"a server that nobody builds": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.LaunchedAt = time.Time{} })
	}, "server", "is being built, and nobody does it"},
	"servers that are not as far apart as they are to be": {func(s *scene) error {
		g := &compute.Group{Meta: resource.Meta{ID: s.nobody, Name: "g", ProjectID: s.Project}, Policy: compute.Apart}
		if err := compute.Groups().Put(s.tx, g); err != nil {
			return err
		}
		s.busy.GroupID, s.busy.HostID = g.ID, s.idle.HostID
		if err := compute.Servers().Put(s.tx, s.busy); err != nil {
			return err
		}
		err := s.server(s.idle, func(srv *compute.Server) { srv.GroupID = g.ID })
		s.planted = g.ID
		return err
	}, "server-group", "more than 1 of them"},
	"a snapshot that nobody takes": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.Snapshot = &compute.Snapshot{Number: 1} })
	}, "server", "nobody takes it"},
	"a shelved server without its image": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) {
			srv.Shelf, srv.Power = &compute.Shelf{Image: compute.ImageRef{ID: s.nobody}}, compute.Off
		})
	}, "server", "is not there as it was"},
	"a shelved server that is to run": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.Shelf = &compute.Shelf{}; srv.Power = compute.On })
	}, "server", "is to be on"},
	"a shelved server that its host is rid of": {func(s *scene) error {
		return s.server(s.idle, func(srv *compute.Server) { srv.Shelf = &compute.Shelf{Offloaded: true}; srv.Power = compute.Off })
	}, "server", "its host is to be rid of it"},
	"an image that nobody sends": {func(s *scene) error {
		return s.image(func(i *image.Image) { i.State = image.Receiving })
	}, "image", "no operation of it runs"},
	"an image that nobody stages": {func(s *scene) error {
		return s.image(func(i *image.Image) { i.State = image.Staging })
	}, "image", "no operation of it runs"},
	"an image that nobody imports": {func(s *scene) error {
		return s.image(func(i *image.Image) { i.State = image.Importing })
	}, "image", "no operation of it runs"},
	"a port of a server that is gone": {func(s *scene) error {
		return s.port(func(p *network.Port) { p.DeviceID = s.nobody.String() })
	}, "port", "which is gone"},
	"a port that is not where its server is": {func(s *scene) error {
		return s.port(func(p *network.Port) {
			p.HostID = s.Hosts[0].ID
			if s.idle.HostID == p.HostID {
				p.HostID = s.Hosts[1].ID
			}
		})
	}, "port", "on another"},
	"an aggregate with a host that is gone": {func(s *scene) error {
		for a := range compute.Aggregates().Each(s.tx, "", "") {
			a.Hosts = append(a.Hosts, s.nobody)
			s.planted = a.ID
			return compute.Aggregates().Put(s.tx, a)
		}
		panic("there is no aggregate")
	}, "aggregate", "which is not there"},
	"a migration that is under way and tells what it came to": {func(s *scene) error {
		s.planted = s.tx.NewID()
		return compute.Migrations().Put(s.tx, &compute.Migration{Meta: resource.Meta{ID: s.planted}, Number: 1, ServerID: s.idle.ID,
			Task: compute.LiveMigrating, State: compute.Sending, Passage: compute.Passage{Bytes: 1, Ms: 1}})
	}, "migration", "tells what it came to"},
	"a newcomer that is a host already": {func(s *scene) error {
		return host.Newcomers().Put(s.tx, &host.Newcomer{Meta: resource.Meta{ID: s.Hosts[0].ID}})
	}, "member", "is a host already"},
	"a newcomer whose time is over": {func(s *scene) error {
		return host.Newcomers().Put(s.tx, &host.Newcomer{Meta: resource.Meta{ID: s.nobody, CreatedAt: s.Clock.Add(-25 * time.Hour)}})
	}, "member", "none of the cloud's any more"},
	"what the network finds": {func(s *scene) error {
		err := s.port(func(p *network.Port) { p.NetworkID = s.nobody })
		s.planted = resource.ID{}
		return err
	}, "network", "which is not there"},
}

func TestEachContradictionIsFound(t *testing.T) {
	for name, c := range contradictions {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			if found := audit.State(s.State.Latest()); len(found) > 0 {
				t.Fatalf("before anything is wrong it finds %v", found)
			}
			s.Must(s.State.Update(s.Admin, func(tx *state.Tx) error {
				s.tx = tx
				return c.plant(s)
			}))
			found := audit.State(s.State.Latest())
			for _, f := range found {
				if f.Kind == c.kind && f.ID == s.planted && strings.Contains(f.What, c.what) && strings.Contains(f.String(), f.What) {
					return
				}
			}
			t.Errorf("it finds %v", found)
		})
	}
}
