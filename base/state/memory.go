package state

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"sync"
)

// Memory is an Engine without a disk, for tests and simulation. What it holds
// outlives the State on it, as a disk would: open another State on it to simulate a restart.
type Memory struct {
	// Fault, when set, is called at each named step of a commit ("before", "after"); its
	// error makes the commit fail as a crash there would: with "before" nothing is stored, with
	// "after" everything is, and the caller is not told.
	Fault func(step string) error

	mu      sync.Mutex
	term    int64          // guarded by mu
	head    Head           // guarded by mu
	records map[key]Record // guarded by mu
	log     []Batch        // guarded by mu
	keep    int            // batches of the log
	floor   int64          // guarded by mu
	changed chan struct{}  // guarded by mu
}

type key struct {
	kind string
	id   [16]byte
}

// NewMemory makes an empty engine that remembers its newest keep batches; 1,000 when 0.
func NewMemory(keep int) *Memory {
	if keep == 0 {
		keep = 1000
	}
	return &Memory{records: map[key]Record{}, keep: keep, changed: make(chan struct{})}
}

func (m *Memory) Lead(context.Context) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.term++
	return m.term, nil
}

func (m *Memory) Load(_ context.Context, each func(Record) error) (Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.records {
		if err := each(r); err != nil {
			return Head{}, err
		}
	}
	return m.head, nil
}

func (m *Memory) Head(context.Context) (Head, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, nil
}

func (m *Memory) Commit(_ context.Context, b Batch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b.Term != m.term || b.Base != m.head.Revision {
		return ErrFenced
	}
	twice := make(map[key]bool, len(b.Records))
	for _, r := range b.Records {
		at := key{r.Kind, r.ID}
		if twice[at] {
			return fmt.Errorf("the batch writes %s %s twice", r.Kind, r.ID)
		}
		twice[at] = true
	}
	if m.Fault != nil {
		if err := m.Fault("before"); err != nil {
			return err
		}
	}
	logged := b
	logged.Records = nil
	for _, r := range b.Records {
		at := key{r.Kind, r.ID}
		was, ok := m.records[at]
		if !ok && r.Value == nil {
			continue
		}
		r.Before, r.BeforeVersion = was.Value, was.Version
		logged.Records = append(logged.Records, r)
		if r.Value == nil {
			delete(m.records, at)
		} else {
			m.records[at] = Record{Kind: r.Kind, ID: r.ID, Version: r.Version, Value: r.Value}
		}
	}
	m.head = b.Head()
	m.log = append(m.log, logged)
	if drop := len(m.log) - m.keep; drop > 0 {
		m.floor = m.log[drop-1].Head().Revision
		m.log = append([]Batch(nil), m.log[drop:]...)
	}
	close(m.changed)
	m.changed = make(chan struct{})
	if m.Fault != nil {
		if err := m.Fault("after"); err != nil {
			return ErrUncertain
		}
	}
	return nil
}

func (m *Memory) Watch(ctx context.Context, since int64, each func(Batch) error) error {
	for {
		m.mu.Lock()
		if since < m.floor {
			m.mu.Unlock()
			return ErrCompacted
		}
		newer := sort.Search(len(m.log), func(i int) bool { return m.log[i].Head().Revision > since })
		next := slices.Clone(m.log[newer:])
		changed := m.changed
		m.mu.Unlock()
		for _, b := range next {
			if err := each(b); err != nil {
				return err
			}
			since = b.Head().Revision
		}
		if len(next) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Compact forgets the batches so far; what they stored stays.
func (m *Memory) Compact() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log, m.floor = nil, m.head.Revision
}

// Forget is Compact for whoever knows only an Engine.
func (m *Memory) Forget(context.Context) error {
	m.Compact()
	return nil
}

// Close forgets nothing: see Memory.
func (m *Memory) Close() error { return nil }
