// Package imagetest holds the contract of image.Blobs, and one in memory.
package imagetest

import (
	"bytes"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// TestBlobs holds an implementation against the contract. open gives one on the same place
// each time it is called within a test: a second one is what the next process would see.
func TestBlobs(t *testing.T, open func(t *testing.T) (again func() image.Blobs)) {
	for name, test := range map[string]func(*testing.T, func() image.Blobs){
		"what was committed is read back":             readBack,
		"what was not committed leaves nothing":       uncommitted,
		"removal is repeatable":                       removal,
		"an open blob outlives its removal":           outlives,
		"what is written can be read before the end":  readBefore,
		"an empty blob is one":                        empty,
		"a blob that is written again is the new one": again,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}

func newID() resource.ID { return resource.NewID(time.Now(), nil) }

// pattern is bytes that differ from place to place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

func create(t *testing.T, b image.Blobs, id resource.ID, expect int64) image.Writer {
	t.Helper()
	w, err := b.Create(t.Context(), id, expect)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, b image.Blobs, id resource.ID, data []byte) {
	t.Helper()
	w := create(t, b, id, int64(len(data)))
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Commit())
	must(t, w.Close())
}

func get(t *testing.T, b image.Blobs, id resource.ID) []byte {
	t.Helper()
	r, err := b.Open(t.Context(), id)
	must(t, err)
	data, err := io.ReadAll(r)
	must(t, err)
	must(t, r.Close())
	return data
}

func present(t *testing.T, b image.Blobs, want ...resource.ID) {
	t.Helper()
	got, err := b.Present(t.Context())
	must(t, err)
	slices.SortFunc(got, func(a, b resource.ID) int { return slices.Compare(a[:], b[:]) })
	slices.SortFunc(want, func(a, b resource.ID) int { return slices.Compare(a[:], b[:]) })
	if !slices.Equal(got, want) {
		t.Errorf("present are %v, want %v", got, want)
	}
}

func readBack(t *testing.T, open func() image.Blobs) {
	b, one, two := open(), newID(), newID()
	put(t, b, one, pattern(3<<20+5))
	put(t, b, two, pattern(10))
	for _, b := range []image.Blobs{b, open()} {
		if got := get(t, b, one); !bytes.Equal(got, pattern(3<<20+5)) {
			t.Errorf("%d other bytes came back", len(got))
		}
		present(t, b, one, two)
	}
	r, err := b.Open(t.Context(), one)
	must(t, err)
	defer r.Close()
	part := make([]byte, 100)
	if _, err := r.ReadAt(part, 1<<20); err != nil || !bytes.Equal(part, pattern(3 << 20)[1<<20:1<<20+100]) {
		t.Errorf("a part in the middle: %v", err)
	}
	if end, err := r.Seek(0, io.SeekEnd); err != nil || end != 3<<20+5 {
		t.Errorf("the end is at %d, %v", end, err)
	}
}

func uncommitted(t *testing.T, open func() image.Blobs) {
	b, id := open(), newID()
	w := create(t, b, id, -1)
	_, err := w.Write(pattern(1000))
	must(t, err)
	present(t, b)
	if _, err := b.Open(t.Context(), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("an unfinished blob opens: %v", err)
	}
	must(t, w.Close())
	present(t, b)
	// A writer that nobody closes, as in a crash.
	w = create(t, b, id, 1<<20)
	_, err = w.Write(pattern(1000))
	must(t, err)
	next := open()
	present(t, next)
	put(t, next, id, pattern(5))
	present(t, next, id)
	must(t, w.Close())
	present(t, next, id)
}

func removal(t *testing.T, open func() image.Blobs) {
	b, id, other := open(), newID(), newID()
	put(t, b, id, pattern(10))
	put(t, b, other, pattern(10))
	for range 2 {
		must(t, b.Remove(t.Context(), id))
		present(t, b, other)
	}
	if _, err := b.Open(t.Context(), id); !fault.Is(err, fault.NotFound) {
		t.Errorf("a removed blob opens: %v", err)
	}
	must(t, b.Remove(t.Context(), newID()))
}

func outlives(t *testing.T, open func() image.Blobs) {
	b, id := open(), newID()
	put(t, b, id, pattern(1<<20))
	r, err := b.Open(t.Context(), id)
	must(t, err)
	must(t, b.Remove(t.Context(), id))
	data, err := io.ReadAll(r)
	must(t, err)
	if !bytes.Equal(data, pattern(1<<20)) {
		t.Errorf("%d other bytes came back", len(data))
	}
	must(t, r.Close())
}

func readBefore(t *testing.T, open func() image.Blobs) {
	w := create(t, open(), newID(), -1)
	_, err := w.Write(pattern(5000))
	must(t, err)
	part := make([]byte, 100)
	if _, err := w.ReadAt(part, 4000); err != nil || !bytes.Equal(part, pattern(5000)[4000:4100]) {
		t.Errorf("read before the end: %v", err)
	}
	if n, err := w.ReadAt(part, 4950); n != 50 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	must(t, w.Close())
}

func empty(t *testing.T, open func() image.Blobs) {
	b, id := open(), newID()
	put(t, b, id, nil)
	present(t, b, id)
	if got := get(t, b, id); len(got) != 0 {
		t.Errorf("%d bytes in an empty blob", len(got))
	}
}

func again(t *testing.T, open func() image.Blobs) {
	b, id := open(), newID()
	put(t, b, id, pattern(100))
	put(t, b, id, pattern(50))
	if got := get(t, b, id); !bytes.Equal(got, pattern(50)) {
		t.Errorf("got %d bytes, want the second 50", len(got))
	}
	present(t, b, id)
}
