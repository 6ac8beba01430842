package etcd_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

var errLost = errors.New("the answer is lost")

// lossy loses the answer of the next large enough transaction, whose fate is as told.
type lossy struct {
	clientv3.KV

	mu   sync.Mutex
	fate func(clientv3.Txn) // guarded by mu; nil: nothing is lost
}

func (l *lossy) lose(fate func(clientv3.Txn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fate = fate
}

func (l *lossy) Txn(ctx context.Context) clientv3.Txn {
	l.mu.Lock()
	defer l.mu.Unlock()
	fate := l.fate
	l.fate = nil
	if fate == nil {
		return l.KV.Txn(ctx)
	}
	return &lostTxn{l.KV.Txn(context.WithoutCancel(ctx)), fate}
}

type lostTxn struct {
	clientv3.Txn
	fate func(clientv3.Txn)
}

func (x *lostTxn) If(c ...clientv3.Cmp) clientv3.Txn  { x.Txn = x.Txn.If(c...); return x }
func (x *lostTxn) Then(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Then(o...); return x }
func (x *lostTxn) Else(o ...clientv3.Op) clientv3.Txn { x.Txn = x.Txn.Else(o...); return x }
func (x *lostTxn) Commit() (*clientv3.TxnResponse, error) {
	x.fate(x.Txn)
	return nil, errLost
}

// lossyEngine opens an engine whose answers can be lost.
func lossyEngine(t *testing.T, o etcd.Options) (*etcd.Engine, *lossy) {
	t.Helper()
	o.Dir = t.TempDir()
	e, err := etcd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lossy{}
	e.ReplaceKV(func(kv clientv3.KV) clientv3.KV { l.KV = kv; return l })
	return e, l
}

func batchAt(term, base int64, value string) state.Batch {
	return state.Batch{Term: term, Base: base,
		Records: []state.Record{{Kind: "thing", ID: resource.ID{1}, Version: 1, Value: []byte(`"` + value + `"`)}},
		Txs:     []state.TxInfo{{Revision: base + 1, Time: time.Unix(base+1, 0).UTC()}}}
}

func contentOf(t *testing.T, e state.Engine) (string, int64) {
	t.Helper()
	var value string
	head, err := e.Load(t.Context(), func(r state.Record) error { value = string(r.Value); return nil })
	if err != nil {
		t.Fatal(err)
	}
	return value, head.Revision
}

func lead(t *testing.T, e state.Engine) int64 {
	t.Helper()
	term, err := e.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func TestCommitWhoseAnswerIsLost(t *testing.T) {
	stored := func(x clientv3.Txn) {
		if _, err := x.Commit(); err != nil {
			t.Errorf("commit: %v", err)
		}
	}
	var late clientv3.Txn
	for name, test := range map[string]struct {
		fate    func(clientv3.Txn)
		rival   bool // another writer takes over before we can ask
		want    error
		content string
	}{
		"was stored":                           {stored, false, nil, `"new"`},
		"never arrived":                        {func(clientv3.Txn) {}, false, errLost, `"old"`},
		"arrives later":                        {func(x clientv3.Txn) { late = x }, false, errLost, `"old"`},
		"was stored before a rival took over":  {stored, true, nil, `"rival"`},
		"never arrived, and a rival took over": {func(clientv3.Txn) {}, true, state.ErrFenced, `"rival"`},
	} {
		t.Run(name, func(t *testing.T) {
			var e *etcd.Engine
			asked := false
			e, l := lossyEngine(t, etcd.Options{Fault: func(step string) error {
				if step != "settling" || asked {
					return nil
				}
				asked = true
				if test.rival {
					rival := e.Beside()
					defer rival.Close()
					for range 3 { // it, too, starts again and again
						_, base := contentOf(t, rival)
						if err := rival.Commit(t.Context(), batchAt(lead(t, rival), base, "rival")); err != nil {
							t.Errorf("the rival's commit: %v", err)
						}
					}
				}
				return nil
			}})
			term := lead(t, e)
			if err := e.Commit(t.Context(), batchAt(term, 0, "old")); err != nil {
				t.Fatal(err)
			}
			l.lose(test.fate)
			err := e.Commit(t.Context(), batchAt(term, 1, "new"))
			if !errors.Is(err, test.want) || errors.Is(err, state.ErrUncertain) {
				t.Errorf("commit answered %v, want %v", err, test.want)
			}
			if late != nil {
				answer, err := late.Commit()
				if err != nil || answer.Succeeded {
					t.Errorf("a transaction that was given up arrived late: %+v, %v", answer, err)
				}
				late = nil
			}
			content, head := contentOf(t, e)
			if content != test.content {
				t.Errorf("%s is stored, want %s", content, test.content)
			}
			if !asked {
				t.Error("the engine did not ask what became of the commit")
			}
			want := error(nil)
			if test.rival {
				want = state.ErrFenced
			}
			if err := e.Commit(t.Context(), batchAt(term, head, "next")); !errors.Is(err, want) {
				t.Errorf("the next commit: %v, want %v", err, want)
			}
		})
	}
}

func TestUncertainWhenNobodyAnswers(t *testing.T) {
	e, l := lossyEngine(t, etcd.Options{})
	term := lead(t, e)
	l.lose(func(clientv3.Txn) {
		// From here on the engine is cut off, for it is closed under it.
		e.Abort()
	})
	if err := e.Commit(t.Context(), batchAt(term, 0, "new")); !errors.Is(err, state.ErrUncertain) {
		t.Errorf("commit answered %v", err)
	}
}

func TestCancelledCommitIsSettled(t *testing.T) {
	e, l := lossyEngine(t, etcd.Options{})
	term := lead(t, e)
	ctx, cancel := context.WithCancel(t.Context())
	l.lose(func(x clientv3.Txn) {
		if _, err := x.Commit(); err != nil {
			t.Errorf("commit: %v", err)
		}
		cancel()
	})
	if err := e.Commit(ctx, batchAt(term, 0, "new")); err != nil {
		t.Errorf("a stored commit whose context ended: %v", err)
	}
}
