package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/network"
)

// Networks makes networks real through one driver.
type Networks struct {
	Driver network.Driver
	Taps   *Taps // where it tells the guests' side about taps
	// Wired is called when a port of a server has got its tap.
	Wired func(server resource.ID)
}

// A Wiring is what is reported of an attachment.
type Wiring struct{ Up bool }

// Handlers are what an Agent calls: segments, filters, gateways and attachments, in this order.
func (n *Networks) Handlers() []Handler {
	return []Handler{
		handler(n, "segment", n.Driver.EnsureSegment),
		handler(n, "filter", n.Driver.EnsureFilter),
		handler(n, "gateway", n.Driver.EnsureGateway),
		{Kind: "attachment", Ensure: n.attach, Remove: n.detach, Present: n.present("attachment")},
	}
}

func handler[T any](n *Networks, kind string, ensure func(context.Context, T) error) Handler {
	return Handler{
		Kind: kind,
		Ensure: func(ctx context.Context, _ resource.ID, body json.RawMessage) (any, time.Duration, error) {
			var want T
			if err := json.Unmarshal(body, &want); err != nil {
				return nil, 0, fmt.Errorf("decode what is wanted: %w", err)
			}
			if err := ensure(ctx, want); err != nil {
				return Wiring{}, 0, err
			}
			return Wiring{Up: true}, 0, nil
		},
		Remove: func(ctx context.Context, id resource.ID) error {
			return n.Driver.Remove(ctx, network.Thing{Kind: kind, ID: id})
		},
		Present: n.present(kind),
	}
}

func (n *Networks) present(kind string) func(context.Context) ([]resource.ID, error) {
	return func(ctx context.Context) ([]resource.ID, error) {
		things, err := n.Driver.Present(ctx)
		var ids []resource.ID
		for _, t := range things {
			if t.Kind == kind {
				ids = append(ids, t.ID)
			}
		}
		return ids, err
	}
}

func (n *Networks) attach(ctx context.Context, id resource.ID, body json.RawMessage) (any, time.Duration, error) {
	var want network.Attachment
	if err := json.Unmarshal(body, &want); err != nil {
		return nil, 0, fmt.Errorf("decode what is wanted: %w", err)
	}
	tap, err := n.Driver.EnsureAttachment(ctx, want)
	if err != nil {
		return Wiring{}, 0, err
	}
	if n.Taps.set(id, compute.Tap(tap)) && n.Wired != nil {
		n.Wired(want.ServerID)
	}
	return Wiring{Up: want.AdminUp && !want.Arriving}, 0, nil
}

func (n *Networks) detach(ctx context.Context, id resource.ID) error {
	if err := n.Driver.Remove(ctx, network.Thing{Kind: "attachment", ID: id}); err != nil {
		return err
	}
	n.Taps.drop(id)
	return nil
}

// GuestOf is the guest that a port on this host belongs to, for the metadata service. What it is told
// holds secrets, so that port and guest both have to know of each other.
func (a *Agent) GuestOf(port resource.ID) (compute.Guest, bool) {
	body, ok := a.Want(host.Key{Kind: "attachment", ID: port})
	var at network.Attachment
	if !ok || json.Unmarshal(body, &at) != nil {
		return compute.Guest{}, false
	}
	body, ok = a.Want(host.Key{Kind: "guest", ID: at.ServerID})
	var want compute.Guest
	if !ok || json.Unmarshal(body, &want) != nil || want.ProjectID != at.ProjectID {
		return compute.Guest{}, false
	}
	if !slices.ContainsFunc(want.NICs, func(nic compute.NIC) bool { return nic.PortID == port }) {
		return compute.Guest{}, false
	}
	return want, true
}
