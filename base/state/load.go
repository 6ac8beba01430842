package state

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A loader turns records into tables while more records come: it decodes on every
// processor, and fills the tables on one goroutine.
type loader struct {
	tables  []*tableData
	chunk   *chunk
	order   chan *chunk // as they came
	work    chan *chunk
	running sync.WaitGroup
	failed  atomic.Pointer[error] // the first failure
}

// A chunk is decoded at once.
type chunk struct {
	records []Record
	objects []resource.Object
	decoded chan struct{} // closed when objects are there
}

const chunkRecords = 256

func newLoader() *loader {
	defs := tableDefs()
	l := &loader{tables: make([]*tableData, len(defs))}
	for i, def := range defs {
		l.tables[i] = newTableData(def)
	}
	workers := runtime.GOMAXPROCS(0)
	l.order, l.work = make(chan *chunk, 4*workers), make(chan *chunk, 4*workers)
	for range workers {
		l.running.Go(l.decode)
	}
	l.running.Go(l.fill)
	return l
}

// add takes one record.
func (l *loader) add(r Record) error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	if l.chunk == nil {
		l.chunk = &chunk{records: make([]Record, 0, chunkRecords), decoded: make(chan struct{})}
	}
	l.chunk.records = append(l.chunk.records, r)
	if len(l.chunk.records) == chunkRecords {
		l.flush()
	}
	return nil
}

func (l *loader) flush() {
	if l.chunk != nil {
		l.order <- l.chunk
		l.work <- l.chunk
		l.chunk = nil
	}
}

// finish waits for the tables. It must be called, also after a failure.
func (l *loader) finish() ([]*tableData, error) {
	l.flush()
	close(l.work)
	close(l.order)
	l.running.Wait()
	if err := l.failed.Load(); err != nil {
		return nil, *err
	}
	for _, def := range tableDefs() {
		l.tables[def.slot].fillTexts(def)
	}
	return l.tables, nil
}

func (l *loader) fail(err error) { l.failed.CompareAndSwap(nil, &err) }

func (l *loader) decode() {
	for c := range l.work {
		c.objects = make([]resource.Object, len(c.records))
		for i, r := range c.records {
			var err error
			if c.objects[i], err = decodeRecord(r); err != nil {
				l.fail(err)
				break
			}
		}
		close(c.decoded)
	}
}

func decodeRecord(r Record) (resource.Object, error) {
	def := defOf(r.Kind)
	if def == nil {
		return nil, fmt.Errorf("%w: stored objects of kind %q are of a newer release", ErrLevel, r.Kind)
	}
	obj, err := def.decode(r.Version, r.Value)
	if err != nil {
		return nil, fmt.Errorf("decode %s %s: %w", r.Kind, r.ID, err)
	}
	if obj.GetMeta().ID != r.ID {
		return nil, errors.New("decode " + r.Kind + " " + r.ID.String() + ": inside it is " + obj.GetMeta().ID.String())
	}
	return obj, nil
}

func (l *loader) fill() {
	for c := range l.order {
		<-c.decoded
		if l.failed.Load() != nil {
			continue // only until the channel is empty
		}
		for i, r := range c.records {
			def := defOf(r.Kind)
			l.tables[def.slot].admit(def, r.ID, c.objects[i])
		}
	}
}
