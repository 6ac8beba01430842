package etcd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/unkai-cloud/unkai/base/state"
)

// Commit stores a batch. When etcd's answer is lost it asks what became of the batch, so
// that ErrUncertain is answered only when etcd cannot be asked either.
func (e *Engine) Commit(ctx context.Context, b state.Batch) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.term == 0 || b.Term != e.term {
		return state.ErrFenced
	}
	e.seq++
	head := headOf(b, e.seq)
	ops, size, err := e.spell(b, head)
	if err != nil {
		return err
	}
	if err := e.fault("encoded"); err != nil {
		return err
	}
	revision, err := e.tryAndSettle(ctx, b, head, ops)
	if errors.Is(err, rpctypes.ErrNoSpace) && !errors.Is(err, state.ErrUncertain) {
		// It was not stored, and there may be room now.
		revision, err = e.tryAndSettle(context.WithoutCancel(ctx), b, head, ops)
	}
	if err != nil {
		return err
	}
	e.compactBehind(revision, size)
	return e.committed()
}

// tryAndSettle sends the transaction and does not return before it is known what became of it, if that can be known. When
// the file is full it makes room before it asks.
func (e *Engine) tryAndSettle(ctx context.Context, b state.Batch, head headValue, ops []clientv3.Op) (int64, error) {
	revision, err := e.try(ctx, b, head, ops)
	if err == nil {
		err = e.fault("sent")
	}
	if err == nil || errors.Is(err, state.ErrFenced) || errors.Is(err, state.ErrTooLarge) {
		return revision, err
	}
	if errors.Is(err, rpctypes.ErrNoSpace) {
		e.reclaim()
	}
	return e.settle(ctx, head, err)
}

// committed is the last step: the batch is stored, whatever happens now.
func (e *Engine) committed() error {
	if e.fault("committed") != nil {
		return state.ErrUncertain
	}
	return nil
}

// spell turns a batch into etcd's operations, the head last: who watches knows by it that
// the batch is complete.
func (e *Engine) spell(b state.Batch, head headValue) (ops []clientv3.Op, size int64, err error) {
	ops = make([]clientv3.Op, 0, len(b.Records)+1)
	for _, r := range b.Records {
		key := e.layout.object(r.Kind, r.ID)
		if r.Value == nil {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		size += int64(len(r.Value))
		ops = append(ops, clientv3.OpPut(key, spellValue(r)))
	}
	spelled, err := spellHead(head)
	if err != nil {
		return nil, 0, err
	}
	return append(ops, clientv3.OpPut(e.layout.head(), spelled)), size + int64(len(spelled)), nil
}

// try sends the transaction once and gives etcd's revision of it.
func (e *Engine) try(ctx context.Context, b state.Batch, head headValue, ops []clientv3.Op) (int64, error) {
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	answer, err := e.client.Txn(ctx).If(e.conditions(b)...).Then(ops...).Else(clientv3.OpGet(e.layout.head())).Commit()
	if err != nil {
		if refused := notStored(err); refused != nil {
			return 0, refused
		}
		return 0, fmt.Errorf("commit to etcd: %w", err)
	}
	if answer.Succeeded {
		return answer.Header.Revision, nil
	}
	// The transaction may have been delivered twice; then the second fails its conditions.
	ours, revision, err := isHead(answer.Responses[0], head)
	if err == nil && !ours {
		err = state.ErrFenced
	}
	return revision, err
}

func (e *Engine) conditions(b state.Batch) []clientv3.Cmp {
	conditions := []clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(e.layout.term()), "=", e.fence)}
	if b.Base == 0 {
		return append(conditions, clientv3.Compare(clientv3.CreateRevision(e.layout.head()), "=", 0))
	}
	return append(conditions,
		clientv3.Compare(clientv3.Value(e.layout.head()), ">", mark(b.Base)+" "),
		clientv3.Compare(clientv3.Value(e.layout.head()), "<", mark(b.Base)+"!"))
}

// isHead reports whether the head that was read is that of a certain batch.
func isHead(read *etcdserverpb.ResponseOp, want headValue) (bool, int64, error) {
	kvs := read.GetResponseRange().Kvs
	if len(kvs) == 0 {
		return false, 0, nil
	}
	is, err := parseHead(kvs[0].Value)
	if err != nil {
		return false, 0, err
	}
	return is.Term == want.Term && is.Seq == want.Seq, kvs[0].ModRevision, nil
}

// settle finds out whether a batch was stored. To rewrite the term key makes the answer final: a
// transaction still on its way then fails its conditions. The caller holds mu.
func (e *Engine) settle(ctx context.Context, head headValue, cause error) (int64, error) {
	ctx, cancel := e.within(context.WithoutCancel(ctx), settleWithin)
	defer cancel()
	for {
		err := e.fault("settling")
		if err == nil {
			var stored bool
			var revision int64
			if stored, revision, err = e.askWhetherStored(ctx, head); err == nil {
				err = e.fault("settled")
			}
			switch {
			case err == nil && stored:
				return revision, nil
			case err == nil:
				return 0, fmt.Errorf("not stored: %w", cause)
			case errors.Is(err, state.ErrFenced), errors.Is(err, state.ErrUncertain):
				return 0, err
			}
		}
		select {
		case <-time.After(settleEvery):
		case <-ctx.Done():
			return 0, fmt.Errorf("%w: %w; and then: %w", state.ErrUncertain, cause, err)
		}
	}
}

func (e *Engine) askWhetherStored(ctx context.Context, head headValue) (stored bool, revision int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	term, attempt := e.layout.term(), e.attempt+1
	answer, err := e.client.Txn(ctx).
		If(clientv3.Compare(clientv3.ModRevision(term), "=", e.fence)).
		Then(clientv3.OpGet(e.layout.head()), clientv3.OpPut(term, spellTerm(e.term, attempt))).
		Else(clientv3.OpGet(e.layout.head()), clientv3.OpGet(term)).
		Commit()
	if err != nil {
		return false, 0, err
	}
	e.attempt = attempt
	if answer.Succeeded {
		e.fence = answer.Header.Revision
		return isHead(answer.Responses[0], head)
	}
	kvs := answer.Responses[1].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return false, 0, errors.New("the term key is gone")
	}
	is, err := parseTerm(kvs[0].Value)
	if err != nil {
		return false, 0, err
	}
	if is == e.term {
		// An attempt before this one rewrote the key, and its answer was lost.
		e.fence = kvs[0].ModRevision
		return isHead(answer.Responses[0], head)
	}
	return e.storedBefore(ctx, kvs[0].ModRevision, head)
}

// storedBefore looks for a batch in the moment before another writer took over, which was
// at the revision or earlier: what was not stored then never will be.
func (e *Engine) storedBefore(ctx context.Context, revision int64, head headValue) (bool, int64, error) {
	for {
		was, err := e.client.Get(ctx, e.layout.term(), clientv3.WithRev(revision-1))
		if errors.Is(err, rpctypes.ErrCompacted) {
			return false, 0, fmt.Errorf("%w: the history is gone", state.ErrUncertain)
		}
		if err != nil {
			return false, 0, err
		}
		if len(was.Kvs) == 0 {
			return false, 0, state.ErrFenced
		}
		term, err := parseTerm(was.Kvs[0].Value)
		if err != nil {
			return false, 0, err
		}
		if term > e.term {
			revision = was.Kvs[0].ModRevision
			continue
		}
		then, err := e.client.Get(ctx, e.layout.head(), clientv3.WithRev(revision-1))
		if err != nil {
			return false, 0, err
		}
		if len(then.Kvs) == 1 {
			is, err := parseHead(then.Kvs[0].Value)
			if err != nil {
				return false, 0, err
			}
			if is.Term == head.Term && is.Seq == head.Seq {
				return true, then.Kvs[0].ModRevision, nil
			}
		}
		return false, 0, state.ErrFenced
	}
}
