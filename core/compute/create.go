package compute

import (
	"context"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Launch is a request for one or more servers.
type Launch struct {
	Name        string
	Description string
	Hostname    string // "" for one made of the name
	Flavor      string // its ref
	ImageID     resource.ID
	KeyName     string // of the actor's key pairs; "" for none
	UserData    []byte
	Files       []File
	ConfigDrive bool
	AdminPassword,
	AccessIPv4, AccessIPv6 string
	Metadata   map[string]string
	Tags       []string
	Zone       string // "" for any
	Host       string // its name, for operators; "" for any
	GroupID    resource.ID
	Apart      []resource.ID // on no host of these servers
	Beside     []resource.ID // on the host of one of these
	Trusted    []string
	Hints      map[string]string
	ManualDisk bool
	Stopped    bool // make it, and do not start it
	Strict     bool // no host for one of them is a fault of the request, and nothing is made

	NICs      []NICWanted
	NoNetwork bool     // none at all; otherwise no NICs means the project's only network
	Groups    []string // security groups of new ports, by name or ID; nil for the default one

	Min, Max      int    // how many; 0 is 1. As many of them as quota allows, but at least Min
	SameName      bool   // several have the same name, and no number behind it
	ReservationID string // "" for a new one
	RequestKey    string // see Server
}

// A NICWanted is one network device of a new server: a port that there is, or a new one on a network.
type NICWanted struct {
	NetworkID resource.ID
	SubnetID  resource.ID // of the network; zero for any
	PortID    resource.ID
	Address   netip.Addr // on the network; invalid for any
	Tag       string
}

// A Launched is what a Launch made.
type Launched struct {
	ReservationID string
	Servers       []resource.ID
}

// createWithin is how long a create may take, the way of the image to the host included.
const createWithin = 15 * time.Minute

// Create makes servers, all or none. It answers before they run. A server for which there is no host is made
// all the same, and failed at once with the explanation.
func (s *Service) Create(ctx context.Context, l Launch) (Launched, error) {
	if err := l.check(); err != nil {
		return Launched{}, err
	}
	return state.Do(ctx, s.State, func(tx *state.Tx) (Launched, error) {
		b := &builder{service: s, tx: tx, ctx: ctx, Launch: l, actor: identity.ActorOf(ctx)}
		if err := b.prepare(); err != nil {
			return Launched{}, err
		}
		made := Launched{ReservationID: b.ReservationID}
		for n := range b.count {
			srv, err := b.build(n)
			if err != nil {
				return Launched{}, err
			}
			made.Servers = append(made.Servers, srv.ID)
		}
		return made, nil
	})
}

// check is what needs no state.
func (l *Launch) check() error {
	l.Min, l.Max = max(l.Min, 1), max(l.Max, l.Min, 1)
	switch {
	case strings.TrimSpace(l.Name) == "" || len([]rune(l.Name)) > MaxName:
		return fault.InvalidField("name", "must be of 1 to %d characters", MaxName)
	case l.ImageID.IsZero():
		return fault.Errorf(fault.Invalid, "Invalid image identifier or unable to use it: this cloud starts servers from images only.").WithCode("image-needed")
	case l.NoNetwork && len(l.NICs) > 0:
		return fault.InvalidField("networks", "must not name ports or networks beside none")
	}
	if l.Max > 1 {
		for _, nic := range l.NICs {
			if !nic.PortID.IsZero() {
				return fault.Errorf(fault.Invalid, "Unable to launch multiple instances with a single configured port ID. Please launch your instance one by one with different ports.")
			}
			if nic.Address.IsValid() {
				return fault.Errorf(fault.Invalid, "Unable to launch multiple instances with the same fixed address.")
			}
		}
	}
	if err := checkTags(l.Tags); err != nil {
		return err
	}
	return checkMetadata(l.Metadata)
}

// A builder makes the servers of one launch.
type builder struct {
	Launch
	service *Service
	tx      *state.Tx
	ctx     context.Context
	actor   *identity.Actor

	flavor *Flavor
	boot   Boot
	key    *Key

	imageGiB int // of the disk in the image
	demand   demand
	count    int
	sockets  []socket
}

// prepare looks up and checks everything that is the same for all servers of the launch.
func (b *builder) prepare() error {
	if err := identity.Allow(b.ctx, "server.create", resource.Meta{ProjectID: b.actor.ProjectID}); err != nil {
		return err
	}
	if b.actor.ProjectID.IsZero() {
		return fault.Errorf(fault.Forbidden, "A server belongs to a project: ask with a token for one.")
	}
	var err error
	if b.flavor, err = flavorFor(b.ctx, b.tx, b.Flavor); err != nil || b.flavor.Disabled {
		return fault.Errorf(fault.Invalid, "Flavor %s could not be found.", b.Flavor).WithCode("flavor-not-found")
	}
	if err := b.prepareBoot(); err != nil {
		return err
	}
	if err := b.prepareKey(); err != nil {
		return err
	}
	if err := b.prepareDemand(); err != nil {
		return err
	}
	if err := b.checkQuota(); err != nil {
		return err
	}
	if b.sockets, err = b.wantedSockets(); err != nil {
		return err
	}
	b.demand.physical = b.physical()
	if b.ReservationID == "" {
		var random [5]byte
		b.tx.Random(random[:])
		b.ReservationID = "r-" + strings.ToLower(base32.StdEncoding.EncodeToString(random[:]))
	}
	return nil
}

func (b *builder) prepareBoot() error {
	img, err := image.Lookup(b.ctx, b.tx, b.ImageID)
	if err != nil {
		return err
	}
	if img.MinMemoryMiB > b.flavor.MemoryMiB {
		return fault.Errorf(fault.Invalid, "Flavor's memory is too small for requested image.").WithCode("flavor-memory")
	}
	if b.flavor.RootGiB == 0 {
		// Nothing but the image then says how large a disk may become.
		if err := identity.Allow(b.ctx, "server.create-zero-disk", resource.Meta{ProjectID: b.actor.ProjectID}); err != nil {
			return fault.Errorf(fault.Forbidden, "Only volume-backed servers are allowed for flavors with zero disk.").WithCode("flavor-zero-disk")
		}
	}
	b.imageGiB = int((img.VirtualBytes + 1<<30 - 1) >> 30)
	if b.flavor.RootGiB > 0 && (img.MinDiskGiB > b.flavor.RootGiB || img.VirtualBytes > int64(b.flavor.RootGiB)<<30) {
		return fault.Errorf(fault.Invalid, "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is %d bytes, minimum size is %d bytes.",
			int64(b.flavor.RootGiB)<<30, max(int64(img.MinDiskGiB)<<30, img.VirtualBytes)).WithCode("flavor-disk")
	}
	b.boot = Boot{Image: refOf(img), Cmdline: img.Boot.Cmdline, Machine: img.Boot.Machine, UEFI: img.Boot.Firmware == "uefi",
		DiskBus: img.Boot.DiskBus, NICModel: img.Boot.NICModel}
	for _, part := range []struct {
		id  resource.ID
		ref **ImageRef
	}{{img.Boot.KernelID, &b.boot.Kernel}, {img.Boot.InitrdID, &b.boot.Initrd}} {
		if part.id.IsZero() {
			continue
		}
		other, err := image.Lookup(b.ctx, b.tx, part.id)
		if err != nil {
			return err
		}
		*part.ref = refOf(other)
	}
	if trouble := checkKernel(b.boot.Kernel, b.boot.Initrd, b.flavor.MemoryMiB); trouble != "" {
		return fault.Errorf(fault.Invalid, "%s", trouble).WithCode("flavor-memory")
	}
	b.demand.arch = architecture(img.Properties)
	return nil
}

// shape is that of each server of the launch.
func (b *builder) shape() Shape {
	shape := b.flavor.shape()
	shape.ImageGiB = b.imageGiB
	return shape
}

func refOf(i *image.Image) *ImageRef {
	return &ImageRef{ID: i.ID, Format: i.Opened(), Bytes: i.Bytes, SHA512: i.SHA512}
}

// architecture is what an image says its programs are made for.
func architecture(properties map[string]string) string {
	for _, key := range []string{"hw_architecture", "architecture"} {
		switch a := properties[key]; a {
		case "":
		case "amd64", "x64":
			return "x86_64"
		case "arm64":
			return "aarch64"
		default:
			return a
		}
	}
	return ""
}

func (b *builder) prepareKey() error {
	if b.KeyName == "" {
		return nil
	}
	k, ok := keypairs.Lookup(b.tx, "name", state.KeyOf(b.actor.UserID, b.KeyName))
	if !ok {
		return fault.Errorf(fault.Invalid, "Invalid key_name provided.").WithCode("keypair-not-found")
	}
	b.key = &Key{Name: k.Name, Type: k.Type, Public: k.Public}
	return nil
}

func (b *builder) prepareDemand() error {
	shape := b.shape()
	arch := b.demand.arch
	b.demand = shape.ask()
	b.demand.zone, b.demand.arch = b.Zone, arch
	if b.Zone != "" && !hasZone(b.tx, b.Zone) {
		return fault.Errorf(fault.Invalid, "The requested availability zone is not available").WithCode("zone-not-found")
	}
	if b.Host != "" {
		if err := identity.Allow(b.ctx, "server.create-on-host", resource.Meta{}); err != nil {
			return err
		}
		h, ok := host.ByName(b.tx, b.Host)
		if !ok {
			return fault.Errorf(fault.Invalid, "Compute host %s could not be found.", b.Host).WithCode("host-not-found")
		}
		b.demand.host = h.ID
	}
	b.demand.apart = b.hostsOf(b.Apart, (*Server).Hosts)
	b.demand.beside = b.hostsOf(b.Beside, func(srv *Server) []resource.ID { return []resource.ID{srv.bound()} })
	if b.GroupID.IsZero() {
		return nil
	}
	g, err := groupFor(b.ctx, b.tx, "server-group.get", b.GroupID)
	if err != nil {
		return fault.Errorf(fault.Invalid, "Instance group %s could not be found.", b.GroupID).WithCode("server-group-not-found")
	}
	b.demand.group = g
	return nil
}

// hostsOf are the hosts of the project's servers among these; nil if none were named.
func (b *builder) hostsOf(ids []resource.ID, of func(*Server) []resource.ID) map[resource.ID]bool {
	if len(ids) == 0 {
		return nil
	}
	found := map[resource.ID]bool{}
	for _, id := range ids {
		if srv, ok := servers.PeekOne(b.tx, id); ok && srv.ProjectID == b.actor.ProjectID {
			for _, h := range of(srv) {
				found[h] = true
			}
		}
	}
	return found
}

func hasZone(tx *state.Tx, zone string) bool {
	for _, z := range host.Zones(tx) {
		if z == zone {
			return true
		}
	}
	for a := range aggregates.Peek(tx, "", state.Range{}) {
		if a.Zone == zone && len(a.Hosts) > 0 {
			return true
		}
	}
	return false
}

// checkQuota decides how many servers it will be.
func (b *builder) checkQuota() error {
	project, user := b.actor.ProjectID, b.actor.UserID
	load := state.Amounts{int64(b.flavor.VCPUs), int64(b.flavor.MemoryMiB)}
	b.count = b.Max
	for _, whose := range []resource.ID{{}, user} {
		count, sums := used(b.tx, project, whose)
		for _, q := range []struct {
			name      string
			used, one int64
		}{{QuotaServers, count, 1}, {QuotaCores, sums[0], load[0]}, {QuotaMemory, sums[1], load[1]}} {
			limit := limitOf(b.tx, project, whose, q.name)
			if limit < 0 {
				continue
			}
			fit := max(0, (int64(limit)-q.used)/q.one)
			if fit < int64(b.Min) {
				return overQuota(q.name, b.Min*int(q.one), q.used, limit)
			}
			b.count = min(b.count, int(fit))
		}
	}
	if b.demand.group != nil {
		members := int64(len(MembersOf(b.tx, b.GroupID)))
		if err := roomFor(b.tx, project, user, QuotaGroupMembers, members, b.Min); err != nil {
			return err
		}
		if limit := limitOf(b.tx, project, user, QuotaGroupMembers); limit >= 0 {
			b.count = min(b.count, limit-int(members))
		}
	}
	return b.checkParts(project, user)
}

// checkParts holds what goes into each server against its limits.
func (b *builder) checkParts(project, user resource.ID) error {
	if err := roomFor(b.tx, project, user, QuotaMetadata, 0, len(b.Metadata)); err != nil {
		return err
	}
	if err := roomFor(b.tx, project, user, QuotaFiles, 0, len(b.Files)); err != nil {
		return err
	}
	for _, f := range b.Files {
		if err := roomFor(b.tx, project, user, QuotaFilePath, 0, len(f.Path)); err != nil {
			return err
		}
		if err := roomFor(b.tx, project, user, QuotaFileBytes, 0, len(f.Data)); err != nil {
			return err
		}
	}
	return nil
}

// build makes the n-th server.
func (b *builder) build(n int) (*Server, error) {
	srv := b.server(n)
	chosen, why := b.service.place(b.tx, b.demand)
	if chosen == nil && b.Strict {
		return nil, noHost(b.ctx, why)
	}
	if chosen == nil {
		return srv, b.abandon(srv, why)
	}
	srv.HostID = chosen.ID
	op, err := begin(b.ctx, b.tx, srv, Creating, createWithin)
	if err != nil {
		return nil, err
	}
	if estates.Usable(b.tx) {
		srv.lieAnew(chosen.Capacity.Storage)
	}
	if err := operation.Explain(b.tx, op, why); err != nil {
		return nil, err
	}
	if err := b.plug(srv); err != nil {
		return nil, err
	}
	return srv, servers.Put(b.tx, srv)
}

// abandon keeps a server for which there is no host, so that its owner can read why.
func (b *builder) abandon(srv *Server, why *operation.Why) error {
	op, err := begin(b.ctx, b.tx, srv, Creating, createWithin)
	if err != nil {
		return err
	}
	op.Why = why
	text := explain(why)
	srv.Task, srv.OperationID = "", resource.ID{}
	srv.fail(b.tx, 500, text)
	srv.Failure.Details = explainAll(why)
	if err := operation.End(b.tx, op, operation.Failed, text); err != nil {
		return err
	}
	return servers.Put(b.tx, srv)
}

func (b *builder) server(n int) *Server {
	srv := &Server{
		Meta:   resource.Meta{ID: b.tx.NewID(), ProjectID: b.actor.ProjectID, Name: b.Name, CreatedAt: b.tx.Now()},
		UserID: b.actor.UserID, Shape: b.shape(), Boot: b.boot, Key: b.key,
		UserData: b.UserData, Files: b.Files, AdminPassword: b.AdminPassword, ConfigDrive: b.ConfigDrive,
		Zone: b.Zone, GroupID: b.GroupID, Trusted: b.Trusted, Hints: b.Hints, LaunchIndex: n, ReservationID: b.ReservationID,
		Description: b.Description, Hostname: b.Hostname, Metadata: b.Metadata, Tags: b.Tags,
		AccessIPv4: b.AccessIPv4, AccessIPv6: b.AccessIPv6, ManualDisk: b.ManualDisk, Power: On, RequestKey: b.RequestKey, Epoch: 1, Keep: b.keep(),
	}
	if b.Stopped {
		srv.Power = Off
	}
	if b.Max > 1 && !b.SameName {
		srv.Name = fmt.Sprintf("%s-%d", b.Name, n+1)
		if srv.Hostname != "" {
			srv.Hostname = fmt.Sprintf("%s-%d", b.Hostname, n+1)
		}
	}
	if srv.Hostname == "" {
		srv.Hostname = hostnameFor(srv.Name, srv.ID)
	}
	return srv
}

// begin starts the one thing that is under way with a server, and records it. The caller puts the server.
func begin(ctx context.Context, tx *state.Tx, srv *Server, task Task, within time.Duration) (*operation.Operation, error) {
	if err := srv.yields(ctx, tx, task); err != nil {
		return nil, err
	}
	op, err := operation.Begin(tx, string(task), servers.Kind(), &srv.Meta, identity.ActorOf(ctx), within)
	if err != nil {
		return nil, err
	}
	srv.Task, srv.OperationID, srv.Crash.Restart = task, op.ID, time.Time{}
	srv.Wish++
	return op, nil
}

// settle ends what is under way. The caller puts the server.
func settle(tx *state.Tx, srv *Server, outcome operation.Outcome, message string) error {
	id := srv.OperationID
	srv.Task, srv.OperationID = "", resource.ID{}
	if id.IsZero() {
		return nil
	}
	op, err := operation.Get(tx, id)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return operation.End(tx, op, outcome, message)
}
