package hostlink

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// clocks are what is known of those of the hosts that have a session here. What comes of it is in the state, and by that each is judged anew, so
// that nothing is lost with this.
type clocks struct {
	mu sync.Mutex
	of map[resource.ID]*timepiece // guarded by mu
}

type timepiece struct {
	answered time.Time          // what this controller's clock showed when it last granted the host its lease; guarded by clocks.mu
	found    chan time.Duration // by which step the host's is off now, if that is to be written down: holds the newest
}

func (s *Server) time() time.Time {
	if s.Clock == nil {
		return time.Now()
	}
	return s.Clock()
}

// keepTime writes down, until the function that it gives is called, by how much a host's clock is off. No lease waits for that.
func (s *Server) keepTime(ctx context.Context, id resource.ID) (end func()) {
	is := &timepiece{found: make(chan time.Duration, 1)}
	s.clocks.mu.Lock()
	if s.clocks.of == nil {
		s.clocks.of = map[resource.ID]*timepiece{}
	}
	s.clocks.of[id] = is
	s.clocks.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var by time.Duration
			select {
			case by = <-is.found:
			case <-ctx.Done():
				return
			}
			if err := s.observe(ctx, id, host.ClockReport(id, by)); err == nil {
				slog.InfoContext(ctx, "a host's clock is off, or right again", "host", id, "by", by)
			} else if ctx.Err() == nil { // the next question finds it, too
				slog.WarnContext(ctx, "by how much a host's clock is off was not written down", "host", id, "by", by, "err", err)
			}
		}
	}()
	return func() {
		s.clocks.mu.Lock()
		if s.clocks.of[id] == is {
			delete(s.clocks.of, id)
		}
		s.clocks.mu.Unlock()
		cancel()
		<-done
	}
}

// compare finds out by how much the clock is off of a host that asked for its lease, and gives what this controller's shows as it answers. Only a question that
// follows an answer of this session says something: other controllers' clocks are others.
func (s *Server) compare(id resource.ID, q host.LeaseRequest, received time.Time) time.Time {
	now := s.time()
	s.clocks.mu.Lock()
	defer s.clocks.mu.Unlock()
	is := s.clocks.of[id]
	if is == nil {
		return now
	}
	if q.Answered.Equal(is.answered) {
		off, give, ok := host.Clock{Answered: is.answered, Held: q.Held, Asked: q.Clock, Received: received}.Off()
		if h, known := host.Table().PeekOne(s.Hub.State.Latest(), id); ok && known {
			if by := host.ClockStep(h.Clock.By, off, give); by != h.Clock.By {
				select {
				case <-is.found: // it was not taken yet
				default:
				}
				is.found <- by
			}
		}
	}
	is.answered = now
	return now
}
