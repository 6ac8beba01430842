package compute

import (
	"context"
	"net"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
)

// DefaultRatios are how much more than there is hosts may promise: processors are shared well, memory and disk are not.
var DefaultRatios = host.Ratios{8, 1, 1}

// Config is what an operator may choose. The zero value is sound.
type Config struct {
	// Ratios are how much more than there is hosts may promise as long as neither the operator's policy nor an aggregate says otherwise.
	// DefaultRatios where 0.
	Ratios host.Ratios
	// Grace is how long a guest may take over a soft stop or reboot; 60 seconds when 0.
	Grace time.Duration
	// Hosts reaches into guests on their hosts; nil: nobody can.
	Hosts Reach
	// Images is where snapshots of servers go; nil: none are made.
	Images *image.Service
}

// Reach is how the control plane gets at what is not state: guests' consoles, and what they would take along to another host.
type Reach interface {
	// ConsoleLog is the newest part of what a guest wrote to its serial port, at most max bytes.
	ConsoleLog(ctx context.Context, host, server resource.ID, max int) ([]byte, error)
	// Console connects to a guest's "vnc" or "serial" console.
	Console(ctx context.Context, host, server resource.ID, kind string) (net.Conn, error)
	// Weigh is what a Weigher answers.
	Weigh(ctx context.Context, host, server resource.ID, where string) (Burden, error)
}

// A Service is everything a dialect may ask of this domain. Its methods may be called
// from any number of goroutines.
type Service struct {
	State  *state.State
	config Config
}

// New makes the service on a state. Bootstrap fills an empty one.
func New(s *state.State, c Config) *Service {
	c.Ratios = c.Ratios.Or(DefaultRatios)
	if c.Grace == 0 {
		c.Grace = time.Minute
	}
	return &Service{State: s, config: c}
}

// sizes are the flavors of a new cloud. The first two suit emulation.
var sizes = []Flavor{
	{Ref: "42", Meta: resource.Meta{Name: "u1.nano"}, VCPUs: 1, MemoryMiB: 128, RootGiB: 1},
	{Ref: "84", Meta: resource.Meta{Name: "u1.micro"}, VCPUs: 1, MemoryMiB: 256, RootGiB: 2},
	{Ref: "1", Meta: resource.Meta{Name: "m1.tiny"}, VCPUs: 1, MemoryMiB: 512, RootGiB: 4},
	{Ref: "2", Meta: resource.Meta{Name: "m1.small"}, VCPUs: 1, MemoryMiB: 2048, RootGiB: 20},
	{Ref: "3", Meta: resource.Meta{Name: "m1.medium"}, VCPUs: 2, MemoryMiB: 4096, RootGiB: 40},
	{Ref: "4", Meta: resource.Meta{Name: "m1.large"}, VCPUs: 4, MemoryMiB: 8192, RootGiB: 80},
}

// Bootstrap gives a cloud without flavors its first ones.
func Bootstrap(ctx context.Context, s *state.State) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		if flavors.Len(tx) > 0 {
			return nil
		}
		for _, f := range sizes {
			f.ID, f.RxTxFactor = tx.NewID(), 1
			if err := flavors.Put(tx, &f); err != nil {
				return err
			}
		}
		return nil
	})
}

func unreachable() error {
	return fault.Errorf(fault.Unavailable, "The server's host cannot be reached now. Try again soon.").WithCode("host-unreachable")
}
