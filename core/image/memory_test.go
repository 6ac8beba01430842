package image_test

import (
	"context"
	"io"
	"runtime"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// TestConstantMemory uploads far more than may be held at once.
func TestConstantMemory(t *testing.T) {
	r := newRig(t, image.Config{})
	r.Service = image.New(r.State, sink{r.blobs}, image.Config{})
	i := r.make(t, r.owner, "big", func(q *image.Request) { q.Container = "ova" }) // not looked into: the sink keeps nothing
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := r.Upload(r.owner, i.ID, io.LimitReader(zeros{}, 32<<20), 32<<20); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
		t.Errorf("32 MiB took %d bytes", took)
	}
}

// sink keeps nothing.
type sink struct{ image.Blobs }

func (s sink) Create(ctx context.Context, id resource.ID, n int64) (image.Writer, error) {
	w, err := s.Blobs.Create(ctx, id, n)
	return sinkWriter{w}, err
}

type sinkWriter struct{ image.Writer }

func (sinkWriter) Write(b []byte) (int, error) { return len(b), nil }

// BenchmarkUpload is bound by the slower of the two digests.
func BenchmarkUpload(b *testing.B) {
	s, err := state.Open(b.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	svc := image.New(s, sink{new(imagetest.Memory)}, image.Config{})
	ctx := identity.As(b.Context(), &identity.Actor{UserID: user, ProjectID: user, Roles: []string{"member", "reader"}})
	b.SetBytes(64 << 20)
	for b.Loop() {
		i, err := svc.Create(ctx, image.Request{Spec: image.Spec{Format: "raw", Container: "ova"}})
		if err != nil {
			b.Fatal(err)
		}
		if err := svc.Upload(ctx, i.ID, io.LimitReader(zeros{}, 64<<20), 64<<20); err != nil {
			b.Fatal(err)
		}
	}
}
