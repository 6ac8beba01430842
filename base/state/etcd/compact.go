package etcd

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/unkai-cloud/unkai/base/state"
)

// A window is a stretch of etcd's history. When one is full, what came before it
// is compacted away and the next one begins.
type window struct {
	from    int64 // etcd's revision at which it began
	commits int64
	bytes   int64
	busy    chan struct{} // not nil while a compaction runs; closed when it ends
}

func (w *window) begin(revision int64) { w.from, w.commits, w.bytes = revision, 0, 0 }

const tidyWithin = 10 * time.Minute // compaction and defragmentation of a very large file

// compactBehind counts a commit, and compacts when the window is full. The caller holds mu.
func (e *Engine) compactBehind(revision, size int64) {
	w := &e.window
	if e.seq == 1 && e.idle() {
		// The state has been read, which left as much garbage as state.
		e.tidy(func(context.Context) error { debug.FreeOSMemory(); return nil })
	}
	w.commits++
	w.bytes += size
	if !e.idle() {
		return
	}
	if room := e.Room(); room.Quota > 0 && room.Used >= room.Quota && (w.commits >= 64 || w.bytes > room.Reserve/8) {
		// Before anybody is refused, history goes.
		w.begin(revision)
		e.tidy(func(ctx context.Context) error { return e.compact(ctx, revision) })
		return
	}
	if w.commits < e.options.WindowCommits && w.bytes < e.options.WindowBytes {
		return
	}
	upTo := w.from
	w.begin(revision)
	e.tidy(func(ctx context.Context) error { return e.compact(ctx, upTo) })
}

// reclaim makes room when the file has reached its quota, after whatever tidying is under way: nothing can be
// stored until then anyway. The caller holds mu.
func (e *Engine) reclaim() {
	ctx, cancel := e.within(context.Background(), tidyWithin)
	defer cancel()
	if !e.idle() {
		select {
		case <-e.window.busy:
		case <-ctx.Done():
			return
		}
	}
	if err := e.makeRoom(ctx); err != nil {
		slog.Error("the state's file is full, and no room could be made", "err", err)
	}
}

// makeRoom forgets all history, gives what is free back, and lets etcd write again.
func (e *Engine) makeRoom(ctx context.Context) error {
	head, err := e.client.Get(ctx, e.layout.head(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	if err := e.compact(ctx, head.Header.Revision); err != nil {
		return err
	}
	if err := e.defragment(ctx); err != nil {
		return err
	}
	// The zero alarm stands for all of them. Should there still be no room, etcd raises it again.
	_, err = e.client.AlarmDisarm(ctx, &clientv3.AlarmMember{Alarm: etcdserverpb.AlarmType_NONE})
	return err
}

// Forget lets go of all history so far.
func (e *Engine) Forget(ctx context.Context) error {
	ctx, cancel := e.within(ctx, tidyWithin)
	defer cancel()
	head, err := e.client.Get(ctx, e.layout.head(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	return e.compact(ctx, head.Header.Revision)
}

// Room says how full the file of our own server is; of one elsewhere nothing is known.
func (e *Engine) Room() state.Room {
	if e.server == nil {
		return state.Room{}
	}
	return state.Room{Used: e.server.etcd.Server.Backend().SizeInUse(), Quota: e.options.QuotaBytes, Reserve: e.options.QuotaBytes / reservePart}
}

// defragment makes the files smaller. Who uses a file meanwhile has to wait.
func (e *Engine) defragment(ctx context.Context) error {
	if e.server != nil {
		return e.server.etcd.Server.Defragment()
	}
	for _, endpoint := range e.options.Endpoints {
		if _, err := e.client.Defragment(ctx, endpoint); err != nil {
			return err
		}
	}
	return nil
}

func (e *Engine) compact(ctx context.Context, revision int64) error {
	_, err := e.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if errors.Is(err, rpctypes.ErrCompacted) {
		return nil // by someone else, further
	}
	return err
}

// idle reports whether no tidying runs. The caller holds mu.
func (e *Engine) idle() bool {
	if e.window.busy == nil {
		return true
	}
	select {
	case <-e.window.busy:
		return true
	default:
		return false
	}
}

// tidy runs work beside the commits. The caller holds mu.
func (e *Engine) tidy(work func(context.Context) error) {
	done := make(chan struct{})
	e.window.busy = done
	e.running.Go(func() {
		defer close(done)
		ctx, cancel := e.within(context.Background(), tidyWithin)
		defer cancel()
		err := work(ctx)
		if e.server != nil { // it has read its whole file
			err = errors.Join(err, e.server.releasePages())
		}
		if err != nil && e.closed.Err() == nil {
			slog.Warn("etcd was not tidied; the next window tries again", "err", err)
		}
	})
}
