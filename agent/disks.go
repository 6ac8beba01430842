package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Disks watches how much is free of the disks on which a machine keeps what is its own, and its guests'.
type Disks struct {
	// Own is where that is: its data directory, and what lies there and may be another file system.
	Own []string
	// Shared says how many percent are free of the storage that it shares with others. It may take a while, and never hangs itself; nil: it
	// shares none.
	Shared func(context.Context) (int, error)
	Host   resource.ID

	told time.Time // whatever was told before
}

const lookAtDisks = 5 * time.Second

// Run tells the controllers until ctx ends.
func (d *Disks) Run(ctx context.Context, a *Agent) {
	tick := time.NewTicker(lookAtDisks)
	defer tick.Stop()
	free := host.Free{Own: 100, Shared: 100}
	for failing := false; ; {
		var err error
		free, err = d.look(ctx, free)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			slog.WarnContext(ctx, "could not see how full this machine's disks are; what was seen before counts", "err", err)
		}
		failing = err != nil
		d.tell(a, free, time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// look measures. What cannot be measured now is as it was.
func (d *Disks) look(ctx context.Context, was host.Free) (host.Free, error) {
	is := host.Free{Own: 100, Shared: 100}
	var failed error
	for _, dir := range d.Own {
		percent, err := FreeAt(dir)
		if err != nil {
			percent, failed = was.Own, err
		}
		is.Own = min(is.Own, percent)
	}
	if d.Shared != nil {
		var err error
		if is.Shared, err = d.Shared(ctx); err != nil {
			is.Shared, failed = was.Shared, errors.Join(failed, err)
		}
	}
	return is, failed
}

// FreeAt is how many percent of a directory's file system are free to who is not root. A directory that is not there has none.
func FreeAt(dir string) (int, error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); errors.Is(err, fs.ErrNotExist) {
		return 100, nil
	} else if err != nil {
		return 0, fmt.Errorf("ask for the disk of %s: %w", dir, err)
	}
	return host.FreePart(disk.Bavail, disk.Blocks-disk.Bfree+disk.Bavail), nil
}

// tell puts it into the outbox if the controller does not know it; now and then it does so all the same, for while the host counted as lost it
// was not taken in.
func (d *Disks) tell(a *Agent, free host.Free, now time.Time) {
	freeParts.WithLabelValues("own").Set(float64(free.Own) / 100)
	if d.Shared != nil {
		freeParts.WithLabelValues("shared").Set(float64(free.Shared) / 100)
	}
	again := now.Sub(d.told) >= resyncEvery
	if again {
		d.told = now
	}
	seen, err := json.Marshal(free)
	if err != nil {
		panic(err) // numbers are always spelled
	}
	a.tell(host.Key{Kind: host.DiskKind, ID: d.Host}, seen, again)
}
