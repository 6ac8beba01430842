package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/api/console"
	"github.com/unkai-cloud/unkai/api/ec2"
	"github.com/unkai-cloud/unkai/api/hostlink"
	"github.com/unkai-cloud/unkai/api/native"
	"github.com/unkai-cloud/unkai/api/openstack/glance"
	"github.com/unkai-cloud/unkai/api/openstack/keystone"
	"github.com/unkai-cloud/unkai/api/openstack/neutron"
	"github.com/unkai-cloud/unkai/api/openstack/nova"
	"github.com/unkai-cloud/unkai/api/openstack/placement"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
	"github.com/unkai-cloud/unkai/driver/fileblob"
)

// A cloud is one controller: the state, the domains on it, and the dialects that speak for them.
type cloud struct {
	dir     string
	state   *state.State
	secrets *secrets
	cluster *cluster // nil when this controller is the only one
	shown   certificates

	identity *identity.Service
	image    *image.Service
	network  *network.Service
	compute  *compute.Service

	authority *host.Authority
	hub       *host.Hub
	hosts     *hostlink.Server
	near      near
	reaper    *operation.Reaper
	work      atomic.Pointer[reconcile.Reconciler] // while this controller leads

	blobs   *manyBlobs                  // in a cluster
	furnish func(context.Context) error // what a new cloud is never without; nothing if it has it
	built   chan struct{}               // closed when all of the above is there
}

// openCloud takes up the cloud kept in dir, or makes a new one there; as one of several controllers if it is a member. start begins
// what goes on meanwhile.
func openCloud(ctx context.Context, dir string, pool, own netip.Prefix, m *membership, start func(string, func(context.Context) error)) (c *cloud, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	c = &cloud{dir: dir, built: make(chan struct{})}
	options := etcd.Options{Dir: filepath.Join(dir, "etcd")}
	switch {
	case m != nil && m.Etcd != nil:
		if options, err = m.Etcd.options(m.Candidate); err != nil {
			return nil, err
		}
	case m != nil:
		options.Member, options.Starting = m.engine(), m.starting
	}
	if m == nil || m.Etcd == nil { // else it is the other controllers' that this one has
		if c.secrets, err = openSecrets(dir); err != nil {
			return nil, err
		}
	}
	engine, err := etcd.Open(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("open the state in %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, engine.Close())
		}
	}()
	if m == nil {
		c.state, err = state.Open(ctx, engine, state.Options{Now: machineClock, LateHistory: true})
	} else {
		err = c.openShare(ctx, engine, m, start)
	}
	if err != nil {
		return nil, err
	}
	files, err := fileblob.New(filepath.Join(dir, "images"))
	if err != nil {
		return nil, fmt.Errorf("open the images: %w", err)
	}
	var blobs image.Blobs = files
	if c.cluster != nil {
		c.blobs = &manyBlobs{files, c.cluster}
		blobs = c.blobs
	}
	c.identity = identity.New(c.state, identity.Config{Now: c.state.Now})
	c.image = image.New(c.state, blobs, image.Config{InUse: compute.UsesImage, Founded: host.Founded})
	c.network = network.New(c.state)
	c.compute = compute.New(c.state, compute.Config{Hosts: c, Images: c.image})
	c.furnish = func(ctx context.Context) error {
		if err := c.bootstrap(ctx, pool, own); err != nil {
			return fmt.Errorf("furnish the new cloud: %w", err)
		}
		return nil
	}
	if c.state.Leads() {
		if err := c.furnish(ctx); err != nil {
			return nil, err
		}
	}
	if c.authority, err = host.OpenAuthority(ctx, c.state, time.Now()); err != nil {
		return nil, err
	}
	if m != nil {
		if err := m.knows(c.authority.PEM()); err != nil {
			return nil, err
		}
	}
	if err := endFounding(dir); err != nil {
		return nil, err
	}
	c.hub = host.NewHub(c.state, slices.Concat(c.network.Sources(), c.compute.Sources(), host.Sources())...)
	c.hosts = &hostlink.Server{Hub: c.hub, Authority: c.authority, Now: time.Now, Clock: machineClock, Image: c.openImage, Fill: c.fillImage}
	expirers := c.compute.Expirers()
	expirers[image.Table().Kind()] = c.image.Expire
	c.reaper = &operation.Reaper{State: c.state, Now: c.state.Now, Expirers: expirers}
	if c.cluster != nil {
		c.hosts.Others, c.hosts.Leader = c.cluster.hosts, c.cluster.leader
		c.hub.Confirm = c.state.Confirm
	}
	close(c.built)
	return c, nil
}

// openShare opens this controller's share of a state that several keep, and returns when there is something to begin with: it
// leads, or it has what another made.
func (c *cloud) openShare(ctx context.Context, engine *etcd.Engine, m *membership, start func(string, func(context.Context) error)) (err error) {
	if c.state, err = state.OpenFollower(ctx, engine, state.Options{Now: machineClock, LateHistory: true}); err != nil {
		return err
	}
	if m.Etcd == nil {
		if c.cluster, err = newCluster(c, m, engine); err != nil {
			return err
		}
	} else if err := c.enterElsewhere(ctx, engine, m); err != nil {
		return err
	}
	m.lookout.Ask(engine.Led)
	m.lookout.Learn(c.state)
	start("keep the state", func(ctx context.Context) error { return etcd.Serve(ctx, engine, c.state, c.lead) })
	for !c.state.Leads() && (!host.HasAuthority(c.state.Latest()) || identity.ProjectNamed(c.state.Latest(), "admin").IsZero()) {
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if m.Etcd != nil {
		return c.openElsewhere(ctx, engine, m)
	}
	return nil
}

func (c *cloud) openImage(ctx context.Context, host, id resource.ID) (io.ReadCloser, error) {
	if !compute.MadeFrom(c.state.Latest(), host, id) {
		return nil, fault.Missing("image", id)
	}
	return c.image.Open(ctx, id)
}

// fillImage takes a snapshot in that a host has made.
func (c *cloud) fillImage(ctx context.Context, host, id resource.ID, body io.Reader, bytes int64) error {
	if !compute.Makes(c.state.Latest(), host, id) {
		return fault.Missing("image", id)
	}
	return c.image.Fill(ctx, id, body, bytes)
}

func (c *cloud) tasks() []reconcile.Task {
	tasks := []reconcile.Task{c.reaper.Task(), c.hub.Liveness(time.Now), c.image.Task(), c.identity.Task()}
	tasks = append(append(tasks, host.Forget(c.state, c.state.Now)...), c.network.Tasks()...)
	return append(tasks, c.compute.Reconcilers()...)
}

// operations cancels what goes on.
func (c *cloud) operations() *operation.Service {
	cancellers := c.compute.Cancellers()
	cancellers[image.Table().Kind()] = c.image.Cancel
	return &operation.Service{State: c.state, Cancellers: cancellers}
}

// offers is the catalog of a new cloud.
var offers = []identity.NewOffer{
	{Type: "identity", Name: "keystone", URL: "/identity"},
	{Type: "image", Name: "glance", URL: "/image"},
	{Type: "network", Name: "neutron", URL: "/network"},
	{Type: "compute", Name: "nova", URL: "/compute/v2.1"},
	{Type: "placement", Name: "placement", URL: "/placement"},
	{Type: "ec2", Name: "ec2", URL: "/ec2"},
}

// bootstrap gives a new cloud what it is never without: accounts, flavors, networks.
func (c *cloud) bootstrap(ctx context.Context, pool, own netip.Prefix) error {
	ctx = identity.Internal(ctx)
	if err := identity.Bootstrap(ctx, c.state, identity.BootstrapOptions{AdminPassword: c.secrets.Admin,
		DemoPassword: c.secrets.Demo, AltPassword: c.secrets.Alt, Offers: offers}); err != nil {
		return err
	}
	if err := compute.Bootstrap(ctx, c.state); err != nil {
		return err
	}
	tx := c.state.Latest()
	var projects []resource.ID
	for _, name := range []string{"admin", "demo", "alt"} {
		projects = append(projects, identity.ProjectNamed(tx, name))
	}
	if err := network.Bootstrap(ctx, c.state, network.BootstrapOptions{Admin: projects[0], Projects: projects,
		External: network.ExternalOptions{CIDR: pool, Gateway: own.Addr()}}); err != nil {
		return err
	}
	return c.bootstrapKey(ctx, projects[1])
}

// bootstrapKey gives the user demo its access key for AWS clients.
func (c *cloud) bootstrapKey(ctx context.Context, project resource.ID) error {
	if _, _, err := c.identity.EC2Secret(ctx, c.secrets.AccessKey); err == nil {
		return nil
	}
	actor, err := c.identity.ActorFor(ctx, "demo", "demo")
	if err != nil {
		return err
	}
	blob, err := json.Marshal(map[string]string{"access": c.secrets.AccessKey, "secret": c.secrets.SecretKey})
	if err != nil {
		return err
	}
	_, err = c.identity.CreateCredential(ctx, &identity.Credential{Type: "ec2", UserID: actor.UserID, InProjectID: project, Blob: string(blob)})
	return unlessThere(err)
}

// run does what each controller does, until ctx ends: and if it is the only one, what the one that leads does.
func (c *cloud) run(ctx context.Context) {
	var wg sync.WaitGroup
	wg.Go(func() { c.hub.Run(ctx) })
	if c.cluster == nil {
		wg.Go(func() { c.lead(ctx) })
	} else {
		wg.Go(func() { c.blobs.mirror(ctx) })
		wg.Go(func() { c.sweepImages(ctx) })
	}
	wg.Wait()
}

// lead does what only the controller does that leads, for as long as it does.
func (c *cloud) lead(ctx context.Context) {
	select {
	case <-c.built:
	case <-ctx.Done():
		return
	}
	if c.cluster != nil { // the one that led before may have died in the middle of it
		if err := errors.Join(c.furnish(ctx), host.Led(identity.Internal(ctx), c.state, c.cluster.Name)); err != nil && ctx.Err() == nil {
			slog.ErrorContext(ctx, "could not furnish the cloud", "err", err)
		}
	}
	var wg sync.WaitGroup
	work := reconcile.New(c.state, time.Now(), c.tasks()...)
	c.work.Store(work)
	defer c.work.Store(nil)
	wg.Go(func() { work.Run(ctx, 4) })
	// Apart from the rest, for a machine's switch may take its time to answer.
	fence := &host.Fence{State: c.state, Now: time.Now, Fencers: fencers(c.dir), Confirm: c.hub.Confirm, Awaited: compute.Awaited, Missed: compute.Missed}
	fences := reconcile.New(c.state, time.Now(), fence.Task())
	wg.Go(func() { fences.Run(ctx, 8) })
	wg.Go(func() { c.sweep(ctx) })
	wg.Go(func() { c.countOperations(ctx) })
	wg.Wait()
}

// sweepImages lets bytes go, on a controller that may not lead, that no image has any more.
func (c *cloud) sweepImages(ctx context.Context) {
	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if c.state.Leads() {
			continue // sweep does it
		}
		if err := c.state.Confirm(ctx); err != nil {
			continue // what is here may be old, and an image newer
		}
		if _, err := c.image.Sweep(identity.Internal(ctx)); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "could not sweep the images", "err", err)
		}
	}
}

// sweep forgets, from time to time, what nobody will ask for any more.
func (c *cloud) sweep(ctx context.Context) {
	tick := time.NewTicker(5 * time.Minute)
	defer tick.Stop()
	for {
		ctx := identity.Internal(ctx)
		err := errors.Join(
			untilDone(func() (int, error) { return state.Forget(ctx, c.state, c.state.Now().Add(-24*time.Hour), sweepAtOnce) }),
			untilDone(func() (int, error) { return c.reaper.Forget(ctx, sweepAtOnce) }),
			untilDone(func() (int, error) { return c.compute.Forget(ctx, sweepAtOnce) }),
			c.identity.Sweep(ctx))
		_, err2 := c.image.Sweep(ctx)
		if err = errors.Join(err, err2); err != nil && ctx.Err() == nil {
			slog.Warn("a sweep failed", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// sweepAtOnce is what one transaction of a sweep takes away: others are to get in between.
const sweepAtOnce = 1000

// untilDone sweeps until less than a broom's width was left.
func untilDone(sweep func() (int, error)) error {
	for {
		if n, err := sweep(); err != nil || n < sweepAtOnce {
			return err
		}
	}
}

// handler is everything that clients speak to.
func (c *cloud) handler() http.Handler {
	mux := http.NewServeMux()
	mount := func(prefix string, h http.Handler) {
		h = wire.Named(prefix[1:], h)
		mux.Handle(prefix+"/", http.StripPrefix(prefix, h))
		// The same without the slash: OpenStack's clients do not follow a redirect to a relative address.
		mux.HandleFunc(prefix, func(w http.ResponseWriter, r *http.Request) {
			root := r.Clone(r.Context())
			root.URL.Path, root.URL.RawPath = "/", ""
			h.ServeHTTP(w, root)
		})
	}
	mount("/identity", keystone.New(keystone.Options{Identity: c.identity}))
	mount("/image", glance.New(glance.Options{Images: c.image, Auth: c.identity}))
	mount("/network", neutron.New(neutron.Options{Networks: c.network, Auth: c.identity}))
	mount("/compute", nova.New(nova.Options{Compute: c.compute, Auth: c.identity, Images: c.image, Network: c.network}))
	mount("/placement", placement.New(placement.Options{Compute: c.compute, Auth: c.identity}))
	v1 := native.New(native.Options{State: c.state, Auth: c.identity, Operations: c.operations(), Compute: c.compute, Dialects: mux, Version: version})
	mount("/v1", v1)
	mount("/console", console.New(console.Options{Compute: c.compute, Hosts: c}))
	e := ec2.New(ec2.Options{Keys: c.identity, State: c.state, Compute: c.compute, Images: c.image, Networks: c.network, Region: "RegionOne"})
	mux.Handle("/ec2", wire.Named("ec2", e))
	mux.Handle("/ec2/", wire.Named("ec2", e))
	mux.Handle("/", http.HandlerFunc(index))
	return wire.Serve(wire.Describing(mux, v1.Planned))
}

// index tells a person, or a program, what is here.
func index(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.Error(w, "nothing is here; see /", http.StatusNotFound)
		return
	}
	base := wire.BaseURL(r)
	services := map[string]string{}
	for _, o := range offers {
		services[o.Type] = base + o.URL
	}
	if err := wire.WriteJSON(w, http.StatusOK, map[string]any{"name": "unkai", "version": version, "services": services}); err != nil {
		slog.Debug("the client went away", "err", err)
	}
}

// ConsoleLog and Console reach a guest's host, in this process or elsewhere.
func (c *cloud) ConsoleLog(ctx context.Context, h, server resource.ID, max int) ([]byte, error) {
	if consoles, ok := c.near.of(h); ok {
		return consoles.ConsoleLog(ctx, server, max)
	}
	return c.call(ctx, h, host.Call{Kind: host.ConsoleLogCall, Guest: server, Max: max})
}

// call asks a host for what ends by itself: at most Max bytes.
func (c *cloud) call(ctx context.Context, h resource.ID, call host.Call) ([]byte, error) {
	conn, err := c.hosts.Dial(ctx, h, call)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(conn, int64(call.Max)))
}

// Weigh asks a guest's host what it would take along to another.
func (c *cloud) Weigh(ctx context.Context, h, server resource.ID, where string) (b compute.Burden, err error) {
	if guests, ok := c.near.of(h); ok {
		weigher, ok := guests.(compute.Weigher)
		if !ok {
			return b, fault.Errorf(fault.Unsupported, "it cannot tell.")
		}
		return weigher.Weigh(ctx, server, where)
	}
	m, ok := host.Table().PeekOne(c.state.Latest(), h)
	if !ok || m.Speaks.At(2) != nil {
		return b, fault.Errorf(fault.Unsupported, "it is of a release that cannot tell.")
	}
	text, err := c.call(ctx, h, host.Call{Kind: host.WeighCall, Guest: server, Max: 4096, Where: where})
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	return b, err
}

func (c *cloud) Console(ctx context.Context, h, server resource.ID, kind string) (net.Conn, error) {
	if consoles, ok := c.near.of(h); ok {
		return consoles.Console(ctx, server, kind)
	}
	return c.hosts.Dial(ctx, h, host.Call{Kind: kind, Guest: server})
}

// near knows the simulated hosts of this process, which have no stream.
type near struct {
	mu    sync.Mutex
	hosts map[resource.ID]compute.Consoler // guarded by mu
}

func (n *near) add(id resource.ID, c compute.Consoler) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts == nil {
		n.hosts = map[resource.ID]compute.Consoler{}
	}
	n.hosts[id] = c
}

func (n *near) of(id resource.ID) (compute.Consoler, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.hosts[id]
	return c, ok
}

// defaultDir is where a cloud is kept when nobody says where.
func defaultDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/unkai"
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "unkai-data"
	}
	return filepath.Join(home, ".local", "share", "unkai")
}

// urlOf is the address to tell clients that listen on this machine.
func urlOf(l net.Listener, tls bool) string {
	scheme := "http"
	if tls {
		scheme = "https"
	}
	address := l.Addr().String()
	for _, any := range []string{"0.0.0.0:", "[::]:"} {
		if rest, ok := strings.CutPrefix(address, any); ok {
			address = "127.0.0.1:" + rest
		}
	}
	return scheme + "://" + address
}
