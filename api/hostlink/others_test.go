package hostlink

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// direct is the controller that leads, as one that follows sees it.
type direct struct {
	leads *rig
	link  string
	here  *Server // the one that follows: whom calls are passed to
	down  atomic.Bool
	// It was not told which hosts the other hears.
	unheard atomic.Bool
	asked   atomic.Int64
}

var errDown = errors.New("the leader is down")

func (d *direct) ask() error {
	d.asked.Add(1)
	if d.down.Load() {
		return errDown
	}
	return nil
}

func (d *direct) Join(ctx context.Context, req host.JoinRequest) (host.JoinAnswer, error) {
	if err := d.ask(); err != nil {
		return host.JoinAnswer{}, err
	}
	return d.leads.authority.Join(identity.Internal(ctx), req, time.Now())
}

func (d *direct) Arrive(ctx context.Context, id resource.ID, hello host.Hello) error {
	if err := d.ask(); err != nil {
		return err
	}
	return d.leads.authority.Arrive(identity.Internal(ctx), id, hello)
}

func (d *direct) Observe(ctx context.Context, id resource.ID, seen []host.Observation) error {
	if err := d.ask(); err != nil {
		return err
	}
	return d.leads.server.Hub.Observe(identity.Internal(ctx), id, seen)
}

func (d *direct) Call(ctx context.Context, _ string, id resource.ID, call host.Call) error {
	return d.here.Pass(ctx, id, call)
}

func (d *direct) Told() bool { return !d.unheard.Load() }

func (d *direct) Link() string { return d.link }

// A lost engine does not answer how far the state has come, as when most controllers cannot be reached.
type lost struct {
	state.Engine
	is atomic.Bool
}

func (l *lost) Head(ctx context.Context) (state.Head, error) {
	if l.is.Load() {
		return state.Head{}, errors.New("most members cannot be reached")
	}
	return l.Engine.Head(ctx)
}

// newFollower is a controller that follows the rig's.
func newFollower(t *testing.T, r *rig) (*rig, *direct, *lost) {
	t.Helper()
	engine := &lost{Engine: r.Engine}
	follows, err := state.OpenFollower(t.Context(), engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- follows.Follow(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	authority, err := host.OpenAuthority(t.Context(), follows, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d := &direct{leads: r}
	f := &rig{Cloud: &cloudtest.Cloud{State: follows}, t: t, authority: authority}
	d.here = &Server{Hub: host.NewHub(follows, r.server.Hub.Sources...), Authority: authority, Patience: 5 * time.Second, Now: time.Now, Others: d, Image: r.server.Image}
	f.server = d.here
	f.web = httptest.NewUnstartedServer(f.server)
	f.web.TLS = testTLS(t, authority)
	f.web.StartTLS()
	hub := make(chan struct{})
	go func() { defer close(hub); f.server.Hub.Run(ctx) }()
	t.Cleanup(func() { stop(); <-hub; f.web.CloseClientConnections(); f.web.Close() })
	d.link = r.web.URL
	r.server.Others = &direct{leads: r, link: r.web.URL, here: f.server}
	return f, d, engine
}

// at is the same peer that speaks to another controller.
func (p *peer) at(f *rig) *peer {
	same := *p
	same.r = f
	return &same
}

// TestFollower: a host that has its session with a controller that follows joins, is told, reports and is called as with the one that leads.
func TestFollower(t *testing.T) {
	r := newRig(t)
	f, d, _ := newFollower(t, r)
	key, csr := newKey(t)
	var answer host.JoinAnswer
	if err := json.Unmarshal(f.peer().post("join", host.JoinRequest{Token: r.token(time.Hour), Request: csr.Raw}).must(200), &answer); err != nil {
		t.Fatal(err)
	}
	p := f.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key})
	p.id = answer.Host
	// What it is refused for the one that leads decides, and each shows.
	token := r.token(time.Hour)
	f.peer().post("join", host.JoinRequest{Token: token, Request: csr.Raw, Says: &host.Hello{Name: "no name"}}).must(400)
	f.peer().post("join", host.JoinRequest{Token: token, Request: csr.Raw, Says: &host.Hello{Name: "name"}}).must(200)
	p.post("session", host.Hello{Name: "no name"}).must(400)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if n, ok := host.Newcomers().PeekOne(f.State.Latest(), p.id); ok && strings.Contains(n.Refused.Why, "no name") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("why it was refused does not show where it follows")
		}
	}
	s := p.connect("node-1")
	s.delivery()
	id := r.Launch(compute.Launch{})[0]
	if got := s.delivery(); len(got.Items) != 1 || got.Items[0].ID != id {
		t.Fatalf("the host is told %+v", got)
	}
	p.post("observations", []host.Observation{report(id, compute.Seen{Observation: compute.Observation{Power: compute.On}, Wish: r.Server(id).Wish})}).must(204)
	if got := r.Server(id).Standing(); got != (compute.Standing{Stage: compute.Running}) {
		t.Errorf("after its report the server is %v", got)
	}
	r.server.Hub.HeardBy(f.web.URL, f.server.Hub.Here())
	go func() {
		m := s.next()
		if m == nil || m.Call == nil || m.Call.At != r.web.URL {
			t.Errorf("instead of a call came %+v", m)
			return
		}
		conn, _, _ := p.at(r).answer(m.Call.ID)
		io.WriteString(conn, "from the guest")
		conn.Close()
	}()
	conn, err := r.server.Dial(t.Context(), p.id, host.Call{Kind: "serial", Guest: id})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); string(text) != "from the guest" {
		t.Errorf("the console says %q, %v", text, err)
	}
	conn.Close()

	// Its lease is granted by either: what counts is the state, and what the host was told.
	for _, at := range []*rig{r, f} {
		p.at(at).post("lease", host.LeaseRequest{Arrival: 1}).must(200)
	}
	// Known already, it is told without the one that leads.
	d.down.Store(true)
	asked := d.asked.Load()
	p.connect("node-1").delivery()
	if d.asked.Load() != asked {
		t.Error("the leader was asked about a host that is as it was")
	}
	p.post("observations", []host.Observation{}).must(500)
	d.down.Store(false)
	if err := r.Compute.DismissHost(r.Admin, p.id); err == nil {
		t.Error("a host with a server is dismissed")
	}
}

// TestLostWithAFollower: a host that is taken for lost has its session ended wherever that is. It gets no lease for what it was told
// before, and has to be heard of by the one that leads before it gets another.
func TestLostWithAFollower(t *testing.T) {
	r := newRig(t)
	f, d, _ := newFollower(t, r)
	f.server.Hub.Confirm = f.State.Confirm
	p := r.join().at(f)
	s := p.connect("node-1")
	was := s.delivery().Arrival
	p.post("lease", host.LeaseRequest{Arrival: was}).must(200)
	if err := host.Lose(r.Admin, r.State, p.id); err != nil {
		t.Fatal(err)
	}
	p.post("lease", host.LeaseRequest{Arrival: was}).must(409)
	s.ended()
	d.down.Store(true)
	p.post("session", host.Hello{Name: "node-1", Capacity: cloudtest.Capacity}).must(500)
	p.post("lease", host.LeaseRequest{Arrival: was}).must(409)
	d.down.Store(false)
	d.unheard.Store(true) // it would be taken for lost again
	p.post("session", host.Hello{Name: "node-1", Capacity: cloudtest.Capacity}).must(http.StatusServiceUnavailable)
	d.unheard.Store(false)
	is := p.connect("node-1").delivery().Arrival
	p.post("lease", host.LeaseRequest{Arrival: was}).must(409)
	p.connect("node-1").delivery() // which ended that one's session
	p.post("lease", host.LeaseRequest{Arrival: is}).must(200)
	p.post("lease", nil).must(409)
}

// TestFollowerThatIsAlone turns hosts away, and its EndAll ends the sessions that there are.
func TestFollowerThatIsAlone(t *testing.T) {
	r := newRig(t)
	f, _, engine := newFollower(t, r)
	p := r.join().at(f)
	s := p.connect("node-1") // it joined with the leader a moment ago
	s.delivery()
	engine.is.Store(true)
	f.server.Hub.EndAll()
	s.ended()
	p.post("session", host.Hello{Name: "node-1", Capacity: cloudtest.Capacity}).must(http.StatusServiceUnavailable)
	p.send("GET", "images/"+r.Image.String(), nil).must(http.StatusServiceUnavailable)
	p.send("POST", "observations", strings.NewReader(`{`)).must(400)
	f.server.Hub.Confirm = f.State.Confirm
	p.post("lease", host.LeaseRequest{Arrival: 1}).must(http.StatusServiceUnavailable)
	engine.is.Store(false)
	p.connect("node-1").delivery()
	var nobody net.Error
	if _, err := f.server.Dial(t.Context(), resource.NewID(time.Now(), nil), host.Call{}); err == nil || errors.As(err, &nobody) {
		t.Errorf("who is nowhere is dialed: %v", err)
	}
}
