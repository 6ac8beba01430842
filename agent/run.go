package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// A Link reaches a controller. Connect begins a session; Observe reports.
type Link interface {
	Connect(ctx context.Context) (Session, error)
	Observe(ctx context.Context, seen []host.Observation) error
}

// A Leaser is a Link that grants the host its lease.
type Leaser interface {
	Lease(ctx context.Context, q host.LeaseRequest) (host.LeaseAnswer, error)
}

// A Session gives one delivery after the other. io.EOF or another error ends it: connect again.
type Session interface {
	Next(ctx context.Context) (*host.Delivery, error)
	Close() error
}

const (
	resyncEvery = time.Minute
	reportBatch = 256

	slowStep     = 2 * time.Second // for which another worker stands in
	spareWorkers = 256
)

// Run drives the agent until ctx ends: so many workers make things real, whether or not a
// controller can be reached.
func (a *Agent) Run(ctx context.Context, link Link, workers int) {
	var wg sync.WaitGroup
	wg.Go(func() { a.follow(ctx, link) })
	wg.Go(func() { a.reportTo(ctx, link) })
	wg.Go(func() { a.resyncOften(ctx) })
	if leaser, ok := link.(Leaser); ok && a.Lease != nil {
		wg.Go(func() { a.keepLease(ctx, leaser) })
	}
	spares := make(chan struct{}, spareWorkers)
	for range workers {
		wg.Go(func() { a.work(ctx, &wg, spares, nil) })
	}
	wg.Wait()
}

// follow takes in deliveries, over as many sessions as it takes.
func (a *Agent) follow(ctx context.Context, link Link) {
	for failures := 1; ctx.Err() == nil; failures++ {
		began := time.Now()
		err := a.followOnce(ctx, link)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 10*time.Second {
			failures = 1
		}
		if !errors.Is(err, io.EOF) {
			slog.WarnContext(ctx, "no session with a controller", "err", err)
		}
		sleep(ctx, min(200*time.Millisecond<<min(failures-1, 5), 5*time.Second))
	}
}

func (a *Agent) followOnce(ctx context.Context, link Link) error {
	a.Begin()
	session, err := link.Connect(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	arrived := make(chan *host.Delivery, 1024)
	ended := make(chan error, 1)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer close(arrived)
		var whole host.Assembler
		for {
			d, err := session.Next(ctx)
			if err == nil {
				err = whole.Take(d)
			}
			if err != nil {
				ended <- err
				return
			}
			select {
			case arrived <- d:
			case <-ctx.Done():
				ended <- ctx.Err()
				return
			}
		}
	})
	defer func() {
		a.inSession.Store(false)
		cancel()
		session.Close()
		reader.Wait()
	}()
	for d := range arrived {
		// What came while the last delivery was put on disk goes there together.
		for len(arrived) > 0 {
			d = merge(d, <-arrived)
		}
		if err := a.Deliver(*d, time.Now()); err != nil {
			return err
		}
		if d.Full {
			a.inSession.Store(true)
			if err := a.Resync(ctx, time.Now()); err != nil {
				slog.WarnContext(ctx, "could not look for what nobody wants", "err", err)
			}
		}
	}
	return <-ended
}

// merge gives one delivery that says what two say one after the other.
func merge(first, second *host.Delivery) *host.Delivery {
	if second.Full {
		return second
	}
	again := map[host.Key]bool{}
	for _, item := range second.Items {
		again[item.Key] = true
	}
	kept := slices.DeleteFunc(first.Items, func(i host.Item) bool { return again[i.Key] })
	return &host.Delivery{Full: first.Full, Arrival: first.Arrival, Mark: second.Mark, Items: append(kept, second.Items...)}
}

// reportTo sends the outbox, again and again until the controller has it.
func (a *Agent) reportTo(ctx context.Context, link Link) {
	for ctx.Err() == nil {
		select {
		case <-a.report:
		case <-ctx.Done():
			return
		}
		for failures := 0; ctx.Err() == nil; {
			reports := a.Reports(reportBatch)
			if len(reports) == 0 {
				break
			}
			if err := link.Observe(ctx, reports); err != nil {
				a.Unsent(reports)
				failures++
				slog.DebugContext(ctx, "could not report to the controller", "err", err)
				sleep(ctx, min(100*time.Millisecond<<min(failures, 6), 5*time.Second))
				continue
			}
			failures = 0
			a.Sent(reports)
		}
	}
}

func (a *Agent) resyncOften(ctx context.Context) {
	sleep(ctx, rand.N(resyncEvery)) // not with every other host that came back when the power did
	tick := time.NewTicker(resyncEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := a.Resync(ctx, time.Now()); err != nil {
			slog.WarnContext(ctx, "could not look for what nobody wants", "err", err)
		}
	}
}

// work takes steps until ctx ends, or over is closed.
func (a *Agent) work(ctx context.Context, wg *sync.WaitGroup, spares chan struct{}, over <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	relief := a.relief(ctx, wg, spares)
	for ctx.Err() == nil {
		select {
		case <-over:
			a.poke() // what woke us may be another's to do
			return
		default:
		}
		if relief.step() {
			a.poke()
			continue
		}
		wait := time.Minute
		if at, ok := a.Due(); ok {
			wait = time.Until(at)
		}
		timer.Reset(wait)
		select {
		case <-a.wake:
		case <-timer.C:
		case <-over:
		case <-ctx.Done():
		}
	}
}

// A relief has another worker stand in while one's step takes long: one thing that hangs, a dead
// file server's say, must not hold up those that do not.
type relief struct {
	ctx    context.Context
	agent  *Agent
	wg     *sync.WaitGroup
	spares chan struct{}
	timer  *time.Timer // one for all steps of a worker: there are thousands a second, and few are slow

	mu    sync.Mutex
	since time.Time     // of the step under way; zero between two; guarded by mu
	over  chan struct{} // ends the worker that stands in; nil while none does; guarded by mu
}

func (a *Agent) relief(ctx context.Context, wg *sync.WaitGroup, spares chan struct{}) *relief {
	r := &relief{ctx: ctx, agent: a, wg: wg, spares: spares}
	r.timer = time.AfterFunc(time.Hour, r.late)
	r.timer.Stop()
	return r
}

// step is Step with a relief.
func (r *relief) step() bool {
	r.mu.Lock()
	r.since = time.Now()
	r.mu.Unlock()
	r.timer.Reset(slowStep)
	defer func() {
		r.timer.Stop()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.since = time.Time{}
		if r.over != nil {
			close(r.over)
			r.over = nil
		}
	}()
	return r.agent.Step(r.ctx, time.Now)
}

// late is called when a step has taken long; it may come when that is over, and another has begun.
func (r *relief) late() {
	r.mu.Lock() // the worker counts in wg for as long as the step goes on: so may another
	defer r.mu.Unlock()
	if r.since.IsZero() || time.Since(r.since) < slowStep || r.over != nil {
		return
	}
	select {
	case r.spares <- struct{}{}:
	default:
		slog.ErrorContext(r.ctx, "too many steps take too long: others have to wait", "spare workers", spareWorkers)
		return
	}
	over := make(chan struct{})
	r.over = over
	r.wg.Go(func() {
		defer func() { <-r.spares }()
		r.agent.work(r.ctx, r.wg, r.spares, over)
	})
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
