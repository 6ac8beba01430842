package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/unkai-cloud/unkai/base/state"
)

// Options of Open. Give Dir or Endpoints.
type Options struct {
	// Dir is where a server inside this process keeps its data. One process may use it.
	Dir string
	// QuotaBytes is how much the server's file may hold before users can make nothing new; 5 GiB when 0. The
	// file itself may grow half as large again, for what makes room.
	QuotaBytes int64
	// Member, when set, makes the server one of several.
	Member *Member
	// Starting, when set, is told, before the server can answer, how to ask it which member leads; 0 while it knows none. Open
	// takes until one does.
	Starting func(leader func() uint64)

	// Endpoints are those of a server elsewhere. It must allow large transactions:
	// --max-txn-ops=65536 --max-request-bytes=134217728.
	Endpoints          []string
	TLS                *tls.Config
	Username, Password string
	// Candidate, when it is not 0, names this engine among those of several controllers: one of those that Stand is elected to lead.
	Candidate uint64

	// Prefix of every key; "/unkai/" when empty. Two clouds may share a server elsewhere.
	Prefix string
	// History is compacted in windows of so many commits, or so many bytes, whichever
	// comes first; of the past between one and two windows are kept. 8,192 and 128 MiB when 0.
	WindowCommits int64
	WindowBytes   int64

	// Fault, when set, is called at each step of a commit, for tests that fail or die
	// there; see Steps. Its error is taken for an answer that got lost.
	Fault func(step string) error
}

// Steps names the places where Options.Fault is called during a commit.
var Steps = []string{"encoded", "sent", "settling", "settled", "committed"}

var (
	// ErrInUse: another process has the data directory open.
	ErrInUse  = errors.New("the data directory is in use by another process")
	errClosed = errors.New("the engine is closed")
)

const (
	askWithin    = 5 * time.Second  // for an answer to one request
	settleWithin = 10 * time.Second // to find out what became of a commit
	settleEvery  = 100 * time.Millisecond
)

// Engine is a state.Engine on etcd.
type Engine struct {
	options  Options
	layout   layout
	client   *clientv3.Client
	server   *server    // nil when it runs elsewhere
	election *candidacy // of a candidate, else nil

	closed  context.Context // ends with the engine
	close   context.CancelFunc
	running sync.WaitGroup // the goroutines that the engine started

	reachMu sync.Mutex
	reach   context.Context // ends while the member has no leader: nobody would answer; guarded by reachMu

	handing atomic.Bool // another is to lead

	mu      sync.Mutex
	term    int64 // 0: this engine does not lead; guarded by mu
	fence   int64 // revision at which we last wrote the term key; guarded by mu
	attempt int64 // how often we have; guarded by mu
	seq     int64 // of the newest commit in this term; guarded by mu
	window  window
}

var _ state.Engine = (*Engine)(nil)

// Open starts a server in the directory, or connects to the endpoints.
func Open(ctx context.Context, o Options) (*Engine, error) {
	if (o.Dir == "") == (len(o.Endpoints) == 0) {
		return nil, errors.New("etcd: either a directory or endpoints, not both")
	}
	o = o.withDefaults()
	if o.Dir != "" {
		s, err := startServer(ctx, o)
		if err != nil {
			return nil, err
		}
		e := newEngine(o, s.client(), s)
		if o.Member != nil {
			e.running.Go(e.watchReach)
			e.running.Go(func() { s.catchUp(e.closed, o.Member.URL) })
		}
		if o.Member != nil && len(o.Member.Existing) == 0 {
			err = e.moveTo(ctx, o.Member.URL)
		}
		if err != nil {
			return nil, errors.Join(err, e.Close())
		}
		return e, nil
	}
	client, err := clientv3.New(clientv3.Config{
		Context: context.WithoutCancel(ctx), Endpoints: o.Endpoints, TLS: o.TLS, Username: o.Username, Password: o.Password,
		DialTimeout: askWithin, DialKeepAliveTime: askWithin, DialKeepAliveTimeout: askWithin,
		MaxCallSendMsgSize: 2 * maxRequestBytes, RejectOldCluster: true, Logger: zapTo(slog.Default()),
	})
	if err != nil {
		return nil, fmt.Errorf("connect to etcd at %s: %w", strings.Join(o.Endpoints, ", "), o.whyNot(ctx, err))
	}
	e := newEngine(o, client, nil)
	if o.Candidate != 0 {
		e.election = newCandidacy(e)
	}
	return e, nil
}

// whyNot finds out why an etcd cannot be connected to: its client only says that it tried for long enough.
func (o Options) whyNot(ctx context.Context, failed error) error {
	transport := &http.Transport{TLSClientConfig: o.TLS}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	for _, endpoint := range o.Endpoints {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/version", nil)
		if err != nil || req.URL.Host == "" {
			return failed
		}
		res, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		if err := res.Body.Close(); err != nil {
			return err
		}
	}
	return failed
}

func (o Options) withDefaults() Options {
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 5 << 30 // with the reserve that is what etcd advises at most
	}
	if o.Prefix == "" {
		o.Prefix = "/unkai/"
	}
	if o.WindowCommits == 0 {
		o.WindowCommits = 8192
	}
	if o.WindowBytes == 0 {
		o.WindowBytes = 128 << 20
	}
	return o
}

func newEngine(o Options, client *clientv3.Client, s *server) *Engine {
	e := &Engine{options: o, layout: layout{o.Prefix}, client: client, server: s}
	e.closed, e.close = context.WithCancel(context.Background())
	e.reach = e.closed
	return e
}

// Close ends every call under way, and stops the server if it is ours.
func (e *Engine) Close() error {
	e.close()
	e.running.Wait()
	err := e.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // so says the in-process client when all is well
	}
	if e.server != nil {
		err = errors.Join(err, e.server.stop())
	}
	return err
}

// Lead raises the term, which fences whoever led before.
func (e *Engine) Lead(ctx context.Context) (int64, error) {
	term, err := e.raiseTerm(ctx)
	if !errors.Is(err, rpctypes.ErrNoSpace) {
		return term, err
	}
	// A full file must not keep us from ever leading again.
	room, cancel := e.within(ctx, tidyWithin)
	defer cancel()
	if err := e.makeRoom(room); err != nil {
		return 0, fmt.Errorf("make room in a full file: %w", err)
	}
	return e.raiseTerm(ctx)
}

func (e *Engine) raiseTerm(ctx context.Context) (int64, error) {
	ctx, cancel := e.within(ctx, askWithin+settleWithin)
	defer cancel()
	for {
		was, err := e.client.Get(ctx, e.layout.term())
		if err != nil {
			return 0, fmt.Errorf("read the term: %w", err)
		}
		var term, at int64
		if len(was.Kvs) == 1 {
			if term, err = parseTerm(was.Kvs[0].Value); err != nil {
				return 0, err
			}
			at = was.Kvs[0].ModRevision
		}
		term++
		put, err := e.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(e.layout.term()), "=", at)).
			Then(clientv3.OpPut(e.layout.term(), spellTerm(term, 0))).
			Commit()
		if err != nil {
			return 0, fmt.Errorf("raise the term: %w", err)
		}
		if put.Succeeded {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.term, e.fence, e.attempt, e.seq = term, put.Header.Revision, 0, 0
			e.window.begin(put.Header.Revision)
			return term, nil
		}
	}
}

// within bounds a call by time, by the engine's own life, and by that of a majority of members.
func (e *Engine) within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, d)
	e.reachMu.Lock()
	reach := e.reach
	e.reachMu.Unlock()
	stop := context.AfterFunc(reach, cancel)
	return ctx, func() { stop(); cancel() }
}

// fault calls the test's hook.
func (e *Engine) fault(step string) error {
	if e.options.Fault == nil {
		return nil
	}
	return e.options.Fault(step)
}

// notStored gives the error for a transaction that was refused without doing any of it, and
// nil for an error that may hide a success: even "no space" is also said after the fact.
func notStored(err error) error {
	if errors.Is(err, rpctypes.ErrRequestTooLarge) || errors.Is(err, rpctypes.ErrTooManyOps) ||
		status.Code(err) == codes.ResourceExhausted && strings.Contains(err.Error(), "larger than max") {
		return fmt.Errorf("%w: %w", state.ErrTooLarge, err)
	}
	return nil
}
