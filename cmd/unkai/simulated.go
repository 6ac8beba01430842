package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// simulatedHost is the capacity of one simulated host.
var simulatedHost = compute.Capabilities{Driver: "sim", Version: version, VCPUs: 32, MemoryMiB: 128 << 10, DiskGiB: 4000,
	MaxVCPUs: 32, Moves: true, Snapshots: "raw", Arch: "x86_64", CPUModel: "simulated"}

// simulatedID is the same host's ID at each start.
func simulatedID(n int) resource.ID {
	sum := sha256.Sum256(fmt.Appendf(nil, "unkai simulated host %d", n))
	id := resource.ID(sum[:16])
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// startSimulated begins so many simulated hosts, each with an agent of its own that speaks to
// the hub directly.
func (c *cloud) startSimulated(ctx context.Context, count int, start func(string, func(context.Context) error)) error {
	joined := new(sim.Net)
	for n := range count {
		id := simulatedID(n)
		m := sim.New(simulatedHost)
		m.CopyMiBps = 512 // as a plain SSD is read
		joined.Join(m)
		c.near.add(id, m.Guests())
		taps := new(agent.Taps)
		var a *agent.Agent
		guests := &agent.Guests{Driver: m.Guests(), Taps: taps, Uploads: nearUploads{c, id}}
		networks := &agent.Networks{Driver: m.Networks(), Taps: taps, Wired: func(server resource.ID) {
			a.Touch(host.Key{Kind: "guest", ID: server}, time.Now())
		}}
		var err error
		if a, err = agent.New(nil, time.Now(), append(networks.Handlers(), guests.Handlers()...)...); err != nil {
			return err
		}
		capacity := capacityOf(simulatedHost)
		capacity.Where = m.Where()
		link := &agent.Local{Hub: c.hub, Host: id, Hello: host.Hello{Speaks: release.Own, Name: fmt.Sprintf("sim-%04d", n+1), Version: version, Physical: []string{"public"}, Capacity: capacity}}
		start(link.Hello.Name, func(ctx context.Context) error {
			a.Run(identity.Internal(ctx), link, 1)
			return nil
		})
	}
	return nil
}

// nearUploads brings the copies of simulated guests' disks, which are small, into their images.
type nearUploads struct {
	cloud *cloud
	host  resource.ID
}

func (u nearUploads) Upload(ctx context.Context, _ resource.ID, s compute.Snapshot, c compute.Copy) (bool, int, error) {
	body, err := c.Open()
	if err != nil {
		return false, 0, err
	}
	defer body.Close()
	return agent.Answered(u.cloud.fillImage(ctx, u.host, s.ImageID, body, c.Bytes))
}

func (nearUploads) Forget(resource.ID) {}

// seedImages gives a simulated cloud two tiny images, so that clients and suites can start at once.
func seedImages(ctx context.Context, c *cloud) error {
	ctx = identity.Internal(ctx)
	page, err := c.image.List(ctx, image.Query{List: query.List{Limit: 1}})
	if err != nil || len(page.Items) > 0 {
		return err
	}
	for _, name := range []string{"tiny", "tiny-alt"} {
		i, err := c.image.Create(ctx, image.Request{Name: name, ProjectID: identity.ProjectNamed(c.state.Latest(), "admin"),
			Spec: image.Spec{Format: "raw", Container: "bare", Visibility: image.Public}})
		if err != nil {
			return err
		}
		if err := c.image.Upload(ctx, i.ID, bytes.NewReader(make([]byte, 1<<20)), 1<<20); err != nil {
			return err
		}
	}
	return nil
}
