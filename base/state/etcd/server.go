package etcd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

// Settings of the server inside the process.
const (
	// One member needs no patience with others: it elects itself within this time.
	tick     = 20 * time.Millisecond
	election = 100 * time.Millisecond
	// state.State puts at most some 37,000 objects of a few KiB into one batch.
	maxTxnOps       = 1 << 16
	maxRequestBytes = 128 << 20
	// How many log entries lie between two snapshots, and are read again at a start.
	snapshotEvery = 100
	// How many applied log entries stay in memory for followers. There are none.
	catchUpEntries = 16
	// bbolt may lag behind the write-ahead log, which is what makes a commit durable.
	backendInterval = 250 * time.Millisecond
	// The part of the quota that the file may grow beyond it, for what makes room.
	reservePart = 2
	// At a start the file gives room back when more than this is free.
	defragAboveMiB = 2048
)

// server is an etcd server inside this process. Nothing outside can reach it, but other members.
type server struct {
	etcd    *embed.Etcd
	lock    *os.File
	watches watches
}

// watches counts those of the client in this process. The server closes its file as it stops, and a watch that still reads from it then is
// a panic.
type watches struct {
	etcdserverpb.WatchServer
	running sync.WaitGroup
}

func (w *watches) Watch(stream etcdserverpb.Watch_WatchServer) error {
	w.running.Add(1)
	defer w.running.Done()
	return w.WatchServer.Watch(stream) // when it returns it reads no more
}

// plain hides a context's values from etcd, which would spell them, and read what others write.
type plain struct{ clientv3.Watcher }

type plainContext struct{ context.Context }

func (plainContext) String() string { return "" }

func (p plain) Watch(ctx context.Context, key string, o ...clientv3.OpOption) clientv3.WatchChan {
	return p.Watcher.Watch(plainContext{ctx}, key, o...)
}

// Kept reports whether there is a server's data in a directory. A directory without any is a new server's, or one whose disk is missing.
func Kept(dir string) bool { return wal.Exist(filepath.Join(dir, "member", "wal")) }

func startServer(ctx context.Context, o Options) (*server, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	if err := os.Chmod(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("close the data directory to others: %w", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &server{lock: lock}
	if err := s.start(ctx, o); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// lockDir makes sure that no other process uses the directory. The kernel lets the
// lock go when the process ends, however it ends.
func lockDir(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s", ErrInUse, dir)
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return lock, nil
}

func (s *server) start(ctx context.Context, o Options) error {
	// A member that died while it was first made may be unable to start, ever. Nothing
	// was stored in it then, so it is made again. But one that joins others and has begun its log may have told them what is in
	// it, and must not forget that; it starts as if nothing had been.
	member, unfinished := filepath.Join(o.Dir, "member"), filepath.Join(o.Dir, "unfinished")
	joins := o.Member != nil && len(o.Member.Existing) > 0
	_, err := os.Stat(unfinished)
	marked := err == nil
	if marked && !(joins && wal.Exist(filepath.Join(member, "wal"))) {
		if err := os.RemoveAll(member); err != nil {
			return fmt.Errorf("remove the unfinished member: %w", err)
		}
	}
	if _, err := os.Stat(member); errors.Is(err, fs.ErrNotExist) && !marked {
		marked = true
		if err := writeMark(unfinished); err != nil {
			return fmt.Errorf("mark the member as unfinished: %w", err)
		}
	}
	c := config(o)
	if o.Member != nil {
		if err := o.Member.apply(c); err != nil {
			return err
		}
	}
	if s.etcd, err = embed.StartEtcd(c); err != nil {
		return fmt.Errorf("start etcd in %s: %w", o.Dir, err)
	}
	if o.Starting != nil {
		o.Starting(func() uint64 { return uint64(s.etcd.Server.Leader()) })
	}
	if o.Member != nil {
		var helping sync.WaitGroup
		help, done := context.WithCancel(ctx)
		helping.Go(func() { s.catchUp(help, o.Member.URL) })
		defer helping.Wait()
		defer done()
	}
	select {
	case <-s.etcd.Server.ReadyNotify():
	case <-s.etcd.Server.StopNotify():
		return fmt.Errorf("etcd in %s stopped as it started", o.Dir)
	case <-ctx.Done():
		return fmt.Errorf("start etcd in %s: %w", o.Dir, ctx.Err())
	}
	if marked {
		if err := os.Remove(unfinished); err != nil {
			return fmt.Errorf("mark the member as finished: %w", err)
		}
		return syncDir(o.Dir)
	}
	return nil
}

// writeMark makes an empty file that survives a crash of the machine.
func writeMark(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func config(o Options) *embed.Config {
	c := embed.NewConfig()
	c.Name, c.Dir = "unkai", o.Dir
	// A member has to have addresses, but this one never listens at them.
	nowhere := []url.URL{{Scheme: "http", Host: "127.0.0.1:1"}}
	c.AdvertisePeerUrls, c.AdvertiseClientUrls = nowhere, nowhere
	c.ListenPeerUrls, c.ListenClientUrls, c.EnableGRPCGateway = nil, nil, false
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = uint(tick.Milliseconds()), uint(election.Milliseconds())
	c.MaxTxnOps, c.MaxRequestBytes = maxTxnOps, maxRequestBytes
	c.QuotaBackendBytes = fileQuota(o)
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotEvery, catchUpEntries
	c.MaxSnapFiles, c.MaxWalFiles = 2, 2
	c.BackendBatchInterval = backendInterval
	c.BootstrapDefragThresholdMegabytes = defragAboveMiB
	c.WarningApplyDuration, c.WarningUnaryRequestDuration = time.Second, 2*time.Second
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zapTo(slog.Default()))
	return c
}

// fileQuota is how large etcd lets its file become: always larger than it is, or else nothing could ever
// be deleted from a full one.
func fileQuota(o Options) int64 {
	reserve := o.QuotaBytes / reservePart
	file, err := os.Stat(filepath.Join(o.Dir, "member", "snap", "db"))
	if err != nil { // there is none yet, or etcd will say what is wrong with it
		return o.QuotaBytes + reserve
	}
	return max(o.QuotaBytes, file.Size()) + reserve
}

func (s *server) client() *clientv3.Client {
	c := v3client.New(s.etcd.Server)
	s.watches.WatchServer = v3rpc.NewWatchServer(s.etcd.Server)
	c.Watcher = plain{clientv3.NewWatchFromWatchClient(adapter.WatchServerToWatchClient(&s.watches), c)}
	return c
}

// stop ends the server. Its client is closed before.
func (s *server) stop() error {
	if s.etcd != nil {
		s.watches.running.Wait()
		// All is stored then, and nobody comes in any more. Closing waits a second yet for connections on which nothing was ever asked.
		s.etcd.Server.Stop()
		for _, peers := range s.etcd.Peers {
			peers.Listener.Close()
		}
		go s.etcd.Close()
	}
	// Not only closed: a process that is being forked just now holds the same file until it executes its program.
	if err := errors.Join(syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN), s.lock.Close()); err != nil {
		return fmt.Errorf("unlock the data directory: %w", err)
	}
	return nil
}
