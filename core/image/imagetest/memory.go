package imagetest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sync"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// Memory is a Blobs for tests and simulations. The zero value is ready.
type Memory struct {
	mu    sync.Mutex
	blobs map[resource.ID][]byte // guarded by mu
}

var _ image.Blobs = (*Memory)(nil)

func (m *Memory) Create(_ context.Context, id resource.ID, _ int64) (image.Writer, error) {
	return &memoryWriter{m: m, id: id}, nil
}

func (m *Memory) Open(_ context.Context, id resource.ID) (image.Blob, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blobs[id]
	if !ok {
		return nil, fault.Missing("Blob", id)
	}
	return memoryBlob{bytes.NewReader(b)}, nil
}

func (m *Memory) Remove(_ context.Context, id resource.ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.blobs, id)
	return nil
}

func (m *Memory) Present(context.Context) ([]resource.ID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	ids := make([]resource.ID, 0, len(m.blobs))
	for id := range m.blobs {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b resource.ID) int { return slices.Compare(a[:], b[:]) })
	return ids, nil
}

type memoryWriter struct {
	m     *Memory
	id    resource.ID
	bytes []byte
}

func (w *memoryWriter) Write(b []byte) (int, error) {
	w.bytes = append(w.bytes, b...)
	return len(b), nil
}

func (w *memoryWriter) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(w.bytes).ReadAt(b, off)
}

func (w *memoryWriter) Commit() error {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.m.blobs == nil {
		w.m.blobs = map[resource.ID][]byte{}
	}
	w.m.blobs[w.id] = w.bytes
	return nil
}

func (w *memoryWriter) Close() error { return nil }

type memoryBlob struct{ *bytes.Reader }

func (memoryBlob) Close() error { return nil }

var _ io.ReadSeekCloser = memoryBlob{}
