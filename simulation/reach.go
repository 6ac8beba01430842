package simulation

import (
	"context"
	"net"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// reach gets at hosts as a controller does: those that hold a session.
type reach struct{ w *world }

func (r reach) at(id resource.ID) (*sim.Guests, error) {
	if n := r.w.node(id); n != nil && n.session != nil && !n.dead {
		return n.machine.Guests(), nil
	}
	return nil, fault.Errorf(fault.Unavailable, "The host cannot be reached now.")
}

// Weigh, ConsoleLog and Console implement compute.Reach.
func (r reach) Weigh(ctx context.Context, host, server resource.ID, where string) (compute.Burden, error) {
	guests, err := r.at(host)
	if err != nil {
		return compute.Burden{}, err
	}
	return guests.Weigh(ctx, server, where)
}

func (r reach) ConsoleLog(ctx context.Context, host, server resource.ID, max int) ([]byte, error) {
	guests, err := r.at(host)
	if err != nil {
		return nil, err
	}
	return guests.ConsoleLog(ctx, server, max)
}

func (r reach) Console(ctx context.Context, host, server resource.ID, kind string) (net.Conn, error) {
	guests, err := r.at(host)
	if err != nil {
		return nil, err
	}
	return guests.Console(ctx, server, kind)
}
