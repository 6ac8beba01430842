package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// An Uploader brings the copy of a guest's disk into its image at a controller. It returns at once, and comes again until all is
// there. An *ImageError says that it will never be.
type Uploader interface {
	Upload(ctx context.Context, guest resource.ID, s compute.Snapshot, c compute.Copy) (done bool, percent int, err error)
	Forget(guest resource.ID)
}

// copying is half of the work, and bringing the copy to a controller the other.
func half(percent int) int { return min(max(percent, 0), 100) / 2 }

// snapshot has a guest's disk copied, and brings the copy into its image. The driver sees to the guest itself as ever.
func (g *Guests) snapshot(ctx context.Context, want *compute.Guest) (any, time.Duration, error) {
	report := compute.Seen{Wish: want.Wish, Copy: compute.Copying{Number: want.Snapshot.Number}}
	driver, ok := g.Driver.(compute.Snapshotter)
	if !ok || g.Uploads == nil {
		seen, err := g.seen(ctx, want.ID)
		report.Observation, report.Copy.Trouble = seen, "The server's host cannot copy its disk."
		return report, whileWell, err
	}
	if again, err := g.prepare(ctx, want); err != nil || again > 0 {
		return g.wait(ctx, want, again, err)
	}
	seen, made, err := driver.Snapshot(ctx, *want)
	if err != nil {
		return nil, 0, err
	}
	report.Observation, report.Copy.Percent, report.Copy.Trouble = seen, half(made.Percent), made.Trouble
	if made.Trouble != "" {
		return report, whileWell, nil
	}
	if !made.Done {
		return report, whileMoving, nil
	}
	done, percent, err := g.Uploads.Upload(ctx, want.ID, *want.Snapshot, made)
	var never *ImageError
	switch {
	case errors.As(err, &never):
		report.Copy.Trouble = never.Message
		return report, whileWell, nil
	case err != nil:
		return report, 0, err
	case done:
		report.Copy.Percent, report.Copy.Done = 100, true
		return report, whileWell, nil
	}
	report.Copy.Percent = 50 + half(percent)
	return report, whileMoving, nil
}

// Answered is the outcome of an upload to a controller in the same process, which has answered so: what the owner has to be told is
// final, anything else is tried again.
func Answered(err error) (done bool, percent int, _ error) {
	if f := fault.From(err); f != nil && f.Kind != fault.Conflict && f.Kind != fault.Unavailable {
		return false, 0, &ImageError{f.Message}
	}
	return err == nil, 0, err
}

// Uploads is an Uploader to controllers elsewhere. Uploads go on by themselves, one for each guest.
type Uploads struct {
	// Put brings bytes into an image.
	Put func(ctx context.Context, image resource.ID, body io.Reader, bytes int64) error
	// Ended is called when one has ended, well or not.
	Ended func(guest resource.ID)

	mu  sync.Mutex
	all map[resource.ID]*upload // by guest; guarded by mu
	run sync.WaitGroup
}

// An upload is one copy on its way, or one that has arrived. The owner's mu guards it.
type upload struct {
	what     compute.Snapshot
	cancel   context.CancelFunc
	busy     bool
	done     bool
	sent     int64
	bytes    int64
	failures int
	err      error // of the last attempt
	next     time.Time
}

// Upload implements Uploader. What it begins goes on after the step that has called it, until Forget or Close.
func (u *Uploads) Upload(_ context.Context, guest resource.ID, s compute.Snapshot, c compute.Copy) (bool, int, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.all[guest]
	if up != nil && up.what != s {
		up.cancel()
		up = nil
	}
	if up == nil {
		if u.all == nil {
			u.all = map[resource.ID]*upload{}
		}
		up = &upload{what: s, bytes: c.Bytes, cancel: func() {}}
		u.all[guest] = up
	}
	if never := (*ImageError)(nil); errors.As(up.err, &never) {
		return false, 0, never
	}
	if !up.busy && !up.done && !time.Now().Before(up.next) {
		ctx, cancel := context.WithCancel(context.Background())
		up.busy, up.cancel, up.sent = true, cancel, 0
		u.run.Go(func() {
			defer cancel()
			err := u.put(ctx, up, c)
			u.end(guest, up, err)
		})
	}
	percent := 0
	if up.bytes > 0 {
		percent = int(100 * up.sent / up.bytes)
	}
	return up.done, percent, nil
}

func (u *Uploads) put(ctx context.Context, up *upload, c compute.Copy) error {
	body, err := c.Open()
	if err != nil {
		return err
	}
	defer body.Close()
	// Nobody waits for a controller that takes nothing any more.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(stalled, func() { cancel(fmt.Errorf("not a byte was taken for %v", stalled)) })
	defer silence.Stop()
	counted := readerFunc(func(b []byte) (int, error) {
		silence.Reset(stalled)
		n, err := body.Read(b)
		u.mu.Lock()
		defer u.mu.Unlock()
		if up.sent += int64(n); errors.Is(err, io.EOF) {
			silence.Reset(judging) // it is looked at, and made durable on most controllers
		}
		return n, err
	})
	return because(ctx, u.Put(ctx, up.what.ImageID, counted, c.Bytes))
}

// judging is how long a controller may take from the last byte to its answer.
const judging = 15 * time.Minute

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func (u *Uploads) end(guest resource.ID, up *upload, err error) {
	u.mu.Lock()
	up.busy, up.done, up.err = false, err == nil, err
	if err != nil {
		up.failures++
		up.next = time.Now().Add(reconcile.Backoff(up.failures))
	}
	wanted := u.all[guest] == up
	u.mu.Unlock()
	if !wanted {
		return
	}
	if err != nil {
		slog.Warn("could not bring the copy of a guest's disk to a controller", "guest", guest, "image", up.what.ImageID, "err", err)
	}
	if u.Ended != nil {
		u.Ended(guest)
	}
}

// Forget gives up what is on its way of a guest.
func (u *Uploads) Forget(guest resource.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if up := u.all[guest]; up != nil {
		up.cancel()
		delete(u.all, guest)
	}
}

// Close gives up everything, and waits for it to have ended.
func (u *Uploads) Close() {
	u.mu.Lock()
	for guest, up := range u.all {
		up.cancel()
		delete(u.all, guest)
	}
	u.mu.Unlock()
	u.run.Wait()
}
