package etcd

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/unkai-cloud/unkai/base/state"
)

// pageObjects are read at once by Load. etcd counts the rest of the range for each
// page, so that many small ones would cost the square of the objects.
const pageObjects = 16384

// Load reads every object as of one revision of etcd, a page ahead of the caller.
func (e *Engine) Load(ctx context.Context, each func(state.Record) error) (state.Head, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.closed, cancel)()
	first, err := e.client.Get(ctx, e.layout.head())
	if err != nil {
		return state.Head{}, fmt.Errorf("read the head: %w", err)
	}
	if len(first.Kvs) == 0 {
		return state.Head{}, nil
	}
	head, err := parseHead(first.Kvs[0].Value)
	if err != nil {
		return state.Head{}, err
	}

	pages := make(chan []*mvccpb.KeyValue, 1)
	failed := make(chan error, 1)
	go func() {
		defer close(pages)
		failed <- e.readPages(ctx, first.Header.Revision, pages)
	}()
	for page := range pages {
		for i, kv := range page {
			r, err := e.record(kv)
			if err == nil {
				err = each(r)
			}
			if err != nil {
				cancel()
				for range pages { // until the reader has ended
				}
				return state.Head{}, err
			}
			page[i] = nil // or all values of the page live as long as one
		}
	}
	return head.stateHead(), <-failed
}

// Head reads how far the newest batch has come.
func (e *Engine) Head(ctx context.Context) (state.Head, error) {
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	read, err := e.readHead(ctx)
	if err != nil {
		return state.Head{}, err
	}
	if len(read.Kvs) == 0 {
		return state.Head{}, nil
	}
	head, err := parseHead(read.Kvs[0].Value)
	if err != nil {
		return state.Head{}, err
	}
	return head.stateHead(), nil
}

// readHead reads the head's key as it is now. When another member begins to lead meanwhile etcd says so instead of an answer, and that one is asked.
func (e *Engine) readHead(ctx context.Context) (*clientv3.GetResponse, error) {
	for {
		read, err := e.client.Get(ctx, e.layout.head())
		switch {
		case err == nil:
			return read, nil
		case !errors.Is(err, rpctypes.ErrLeaderChanged) || ctx.Err() != nil:
			return nil, fmt.Errorf("read the head: %w", err)
		}
	}
}

func (e *Engine) readPages(ctx context.Context, revision int64, pages chan<- []*mvccpb.KeyValue) error {
	end := clientv3.GetPrefixRangeEnd(e.layout.objects())
	for from := e.layout.objects(); ; {
		page, err := e.client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(revision), clientv3.WithLimit(pageObjects))
		if err != nil {
			return fmt.Errorf("read the objects: %w", err)
		}
		if len(page.Kvs) == 0 {
			return nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
		select {
		case pages <- page.Kvs:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !page.More {
			return nil
		}
	}
}

func (e *Engine) record(kv *mvccpb.KeyValue) (r state.Record, err error) {
	var ok bool
	if r.Kind, r.ID, ok = e.layout.parseObject(kv.Key); !ok {
		return r, fmt.Errorf("etcd has a key that is none of ours: %q", kv.Key)
	}
	r.Version, r.Tx, r.Value, err = parseValue(kv.Value)
	return r, err
}

// Watch reads the batches out of etcd's history and then follows it.
func (e *Engine) Watch(ctx context.Context, since int64, each func(state.Batch) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	defer context.AfterFunc(e.closed, cancel)()
	from, err := e.findRevision(ctx, since)
	if err != nil {
		return err
	}
	var pending []*clientv3.Event
	for answer := range e.client.Watch(ctx, e.layout.prefix, clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithRev(from)) {
		if answer.CompactRevision != 0 {
			return state.ErrCompacted
		}
		if err := answer.Err(); err != nil {
			return fmt.Errorf("watch etcd: %w", err)
		}
		for _, event := range answer.Events {
			pending = append(pending, event)
			if string(event.Kv.Key) != e.layout.head() {
				continue
			}
			b, err := e.batch(pending)
			if err != nil {
				return err
			}
			pending = nil
			if b.Head().Revision > since {
				if err := each(b); err != nil {
					return err
				}
			}
		}
	}
	if e.closed.Err() != nil {
		return errClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("etcd ended the watch")
}

// findRevision finds etcd's revision of the first batch above a revision of ours: the head
// only grows, so it can be halved.
func (e *Engine) findRevision(ctx context.Context, since int64) (int64, error) {
	now, err := e.readHead(ctx)
	if err != nil {
		return 0, err
	}
	newest := now.Header.Revision
	var failed error
	// headAt gives the head's revision at one of etcd's; false if that is compacted.
	headAt := func(revision int64) (int64, bool) {
		then, err := e.client.Get(ctx, e.layout.head(), clientv3.WithRev(revision), clientv3.WithSerializable())
		if errors.Is(err, rpctypes.ErrCompacted) {
			return 0, false
		}
		if err == nil && len(then.Kvs) == 1 {
			var head int64
			if head, err = headRevision(then.Kvs[0].Value); err == nil {
				return head, true
			}
		}
		failed = errors.Join(failed, err)
		return 0, true
	}
	n := sort.Search(int(newest), func(i int) bool {
		head, kept := headAt(int64(i) + 1)
		return kept && head > since
	})
	if failed != nil {
		return 0, fmt.Errorf("search the history: %w", failed)
	}
	from := int64(n) + 1
	if from > 1 && from <= newest {
		if _, kept := headAt(from - 1); !kept {
			return 0, state.ErrCompacted
		}
	}
	return from, failed
}

// batch puts together what one commit wrote; the head's event is the last.
func (e *Engine) batch(events []*clientv3.Event) (state.Batch, error) {
	headEvent := events[len(events)-1]
	head, err := parseHead(headEvent.Kv.Value)
	if err != nil {
		return state.Batch{}, err
	}
	b := state.Batch{Term: head.Term, Base: head.Txs[0].Revision - 1, Txs: head.Txs}
	gone := map[goneRecord]int{}
	for _, g := range head.Gone {
		gone[goneRecord{Kind: g.Kind, ID: g.ID}] = g.Tx
	}
	for _, r := range head.Earlier {
		b.Earlier = append(b.Earlier, state.Record{Kind: r.Kind, ID: r.ID, Tx: r.Tx, Version: r.Version, Value: r.Value})
	}
	for _, event := range events[:len(events)-1] {
		if event.Kv.ModRevision != headEvent.Kv.ModRevision {
			continue // the term key
		}
		r, err := e.recordOf(event, gone)
		if err != nil {
			return b, err
		}
		b.Records = append(b.Records, r)
	}
	return b, nil
}

func (e *Engine) recordOf(event *clientv3.Event, gone map[goneRecord]int) (r state.Record, err error) {
	if event.Type == clientv3.EventTypeDelete {
		var ok bool
		if r.Kind, r.ID, ok = e.layout.parseObject(event.Kv.Key); !ok {
			return r, fmt.Errorf("etcd has a key that is none of ours: %q", event.Kv.Key)
		}
		r.Tx = gone[goneRecord{Kind: r.Kind, ID: r.ID}]
	} else if r, err = e.record(event.Kv); err != nil {
		return r, err
	}
	if event.PrevKv != nil {
		r.BeforeVersion, _, r.Before, err = parseValue(event.PrevKv.Value)
		return r, err
	}
	if event.Type == clientv3.EventTypeDelete || !event.IsCreate() {
		return r, state.ErrCompacted // while we were reading
	}
	return r, nil
}
