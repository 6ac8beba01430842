package compute_test

import (
	"context"
	"net"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/operation"
)

// scales are hosts that all say the same of their guests, or nothing.
type scales struct {
	burden compute.Burden
	err    error
	asked  map[resource.ID]resource.ID // hosts, by servers
}

func (s *scales) ConsoleLog(context.Context, resource.ID, resource.ID, int) ([]byte, error) {
	return nil, nil
}

func (s *scales) Console(context.Context, resource.ID, resource.ID, string) (net.Conn, error) {
	return nil, nil
}

func (s *scales) Weigh(_ context.Context, host, server resource.ID, _ string) (compute.Burden, error) {
	s.asked[server] = host
	return s.burden, s.err
}

func weighed(c *cloudtest.Cloud, b compute.Burden) *scales {
	s := &scales{burden: b, asked: map[resource.ID]resource.ID{}}
	c.Compute = compute.New(c.State, compute.Config{Hosts: s})
	return s
}

func TestAForecastChangesNothing(t *testing.T) {
	c, id := running(t, 2)
	s := weighed(c, compute.Burden{Live: true, Memory: 64 << 20, Used: 32 << 20, Disk: 1 << 20, Seen: true, Dirty: 1 << 20, Seconds: 1, Pages: 256, Limit: 200})
	before := c.State.Latest().Revision()
	f, err := c.Compute.ForecastMove(c.Admin, id, compute.Relocation{})
	c.Must(err)
	if f.From != c.HostOf(id).Name || f.To != other(c, id).Name || !f.Live || f.Unknown != "" || f.Burden.Used != 32<<20 || f.Wire.Basis != compute.Assumption ||
		f.Outcome != compute.Surely || f.Seconds.Expected <= 0 || len(f.Doubts) != 2 || s.asked[id] != c.HostOf(id).ID {
		t.Errorf("it is %+v", f)
	}
	if off, err := c.Compute.ForecastMove(c.Admin, id, compute.Relocation{Off: true}); err != nil || off.Live || off.PauseMs != (compute.Range{}) {
		t.Errorf("off it is %+v, %v", off, err)
	}
	s.err = fault.Errorf(fault.Unavailable, "It sleeps.")
	if f, err = c.Compute.ForecastMove(c.Admin, id, compute.Relocation{To: other(c, id).Name}); err != nil || f.Unknown == "" || f.Outcome != compute.Unseen || f.Seconds.Most != 0 || f.Burden.Used == 0 {
		t.Errorf("unseen it is %+v, %v", f, err)
	}
	if c.State.Latest().Revision() != before {
		t.Error("it changed something")
	}
	if _, err := c.Compute.ForecastMove(c.Ctx, id, compute.Relocation{}); !fault.Is(err, fault.Forbidden) && !fault.Is(err, fault.NotFound) {
		t.Errorf("its owner is answered %v", err)
	}
	if _, err := c.Compute.ForecastMove(c.Admin, id, compute.Relocation{To: c.HostOf(id).Name}); !fault.Is(err, fault.Invalid) {
		t.Errorf("to where it is: %v", err)
	}
}

// What moves came to is what the next one is expected to.
func TestAForecastLearnsFromMoves(t *testing.T) {
	c, id := running(t, 3)
	weighed(c, compute.Burden{Live: true, Memory: 64 << 20, Used: 32 << 20, Seen: true, Seconds: 1, Limit: 200})
	from, to := c.HostOf(id), other(c, id)
	for n, speed := range []int64{20, 40, 30} { // MB in a second
		from.Sends = &compute.Transit{Done: true, Passage: compute.Passage{Bytes: speed * 1e6, Ms: 1000, StoppedMs: 50}}
		if n == 1 {
			from.Sends.Passage.Bytes, from.Sends.Passage.Ms = from.Sends.Passage.Bytes/2, 500
		}
		c.Must(relocated(c, id, to.Name))
		to.Sends = &compute.Transit{Done: true, Passage: compute.Passage{Bytes: 1000, Ms: 1}} // says nothing
		c.Must(relocated(c, id, from.Name))
		from.Sends, to.Sends = nil, nil
	}
	f, err := c.Compute.ForecastMove(c.Admin, id, compute.Relocation{To: to.Name})
	c.Must(err)
	if w := f.Wire; w.Basis != compute.ByPair || w.Moves != 3 || w.Least != 20e6 || w.Expected != 30e6 || w.Most != 40e6 || w.StoppedMs != 50 {
		t.Errorf("the wire is %+v", w)
	}
	for _, h := range c.Hosts {
		if h != from && h != to {
			if f, err = c.Compute.ForecastMove(c.Admin, id, compute.Relocation{To: h.Name}); err != nil || f.Wire.Basis != compute.ByHost || f.Wire.Most <= 40e6 {
				t.Errorf("to another it is %+v, %v", f.Wire, err)
			}
		}
	}
}

// relocated moves a server, and waits.
func relocated(c *cloudtest.Cloud, id resource.ID, to string) error {
	op, err := c.Compute.Relocate(c.Admin, id, compute.Relocation{To: to})
	if err != nil {
		return err
	}
	c.Settle()
	if op, err = operation.Get(c.State.Latest(), op.ID); err == nil && op.Outcome != operation.Succeeded {
		c.T.Errorf("to %s: %+v", to, op)
	}
	return err
}

func TestAPlanOfMaintenanceForecasts(t *testing.T) {
	k := newKeeper(t, 3)
	ids := k.together(6)
	k.Must(k.Compute.Do(k.Ctx, ids[0], compute.Stopping))
	k.Settle()
	h := k.Hosts[0]
	before := k.State.Latest().Revision()
	plan, err := k.Compute.ForecastRetirement(k.Admin, h.ID, compute.Retirement{})
	k.Must(err)
	for n, l := range plan {
		if l.Forecast == nil || l.Forecast.From != h.Name || l.Forecast.To != l.To || l.Forecast.Live != (n > 0) || l.Forecast.Unknown == "" {
			t.Errorf("%s: %+v", l.Way, l.Forecast)
		}
	}
	if len(plan) != 6 || k.State.Latest().Revision() != before {
		t.Errorf("planned is %+v, or something was changed", plan)
	}
}
