package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/image"
)

// TestCrash ends the process at each step of an upload: the next one puts all right.
func TestCrash(t *testing.T) {
	for name, stage := range map[string]bool{"while uploading": false, "while staging": true} {
		for _, committed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, blob committed: %v", name, committed), func(t *testing.T) {
				r := newRig(t, image.Config{})
				i := r.make(t, r.owner, "x")
				reached := make(chan struct{})
				crash := errors.New("crash")
				// The process "dies" at a step: whatever it does afterwards must not count, so it never returns.
				src := readFunc(func() (int, error) { close(reached); select {} })
				r.Service = image.New(r.State, crashingBlobs{r.blobs, reached, committed, crash}, image.Config{})
				go func() {
					var body io.Reader = src
					if committed {
						body = strings.NewReader("abc")
					}
					if stage {
						r.Stage(r.owner, i.ID, body, -1)
					} else {
						r.Upload(r.owner, i.ID, body, -1)
					}
				}()
				<-reached
				want := map[bool]image.State{false: image.Receiving, true: image.Staging}[stage]
				if got := r.read(t, i.ID).State; got != want {
					t.Fatalf("at the crash it is %s, want %s", got, want)
				}
				old := r.State
				r.restart(t, image.Config{})
				if old == r.State {
					t.Fatal("not restarted")
				}
				r.settle(t)
				if _, err := r.Sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
				if i := r.read(t, i.ID); i.State != image.Queued || i.Trouble == "" {
					t.Errorf("left as %+v", i)
				}
				r.clean(t, 0)
			})
		}
	}
}

// crashingBlobs stops for ever once a blob is committed.
type crashingBlobs struct {
	image.Blobs
	reached   chan struct{}
	committed bool
	crash     error
}

func (b crashingBlobs) Create(ctx context.Context, id resource.ID, n int64) (image.Writer, error) {
	w, err := b.Blobs.Create(ctx, id, n)
	if !b.committed {
		return w, err
	}
	return crashingWriter{w, b}, err
}

type crashingWriter struct {
	image.Writer
	blobs crashingBlobs
}

func (w crashingWriter) Commit() error {
	if err := w.Writer.Commit(); err != nil {
		return err
	}
	close(w.blobs.reached)
	select {}
}

func TestSweep(t *testing.T) {
	r := newRig(t, image.Config{})
	kept := r.active(t, r.owner, "kept")
	w, err := r.blobs.Create(t.Context(), user, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if found, err := r.Audit(t.Context()); err != nil || len(found) != 1 {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	removed, err := r.Sweep(t.Context())
	if err != nil || len(removed) != 1 || removed[0] != user {
		t.Errorf("removed %v, %v", removed, err)
	}
	if _, b, err := r.Download(r.owner, kept.ID); err != nil {
		t.Error(err)
	} else {
		b.Close()
	}
	r.clean(t, 1)
}

// A state that knows none of the bytes that were there before it is no reason to remove them.
func TestSweepKeepsWhatIsOlderThanTheCloud(t *testing.T) {
	r := newRig(t, image.Config{})
	kept := r.active(t, r.owner, "kept")
	founded := r.State.Now()
	r.Service = image.New(r.State, r.blobs, image.Config{Founded: func(*state.Tx) time.Time { return founded }})
	older, newer := resource.NewID(founded.Add(-time.Second), nil), resource.NewID(founded.Add(time.Second), nil)
	for _, id := range []resource.ID{older, newer} {
		w, err := r.blobs.Create(t.Context(), id, -1)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := r.Sweep(t.Context()); err != nil || !slices.Equal(removed, []resource.ID{newer}) {
		t.Errorf("removed %v, %v", removed, err)
	}
	if found, err := r.Audit(t.Context()); err != nil || len(found) != 1 || !strings.Contains(found[0], older.String()+" belongs to no image and is older than this cloud") {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	if _, b, err := r.Download(r.owner, kept.ID); err != nil {
		t.Error(err)
	} else {
		b.Close()
	}
}

// TestLostBlob tells an image that was deleted from one that is broken.
func TestLostBlob(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	before := state.WithAsOf(r.owner, r.State.Latest().Revision())
	if err := r.blobs.Remove(t.Context(), i.BlobID); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Download(r.owner, i.ID); err == nil || fault.From(err) != nil {
		t.Errorf("a broken image is the owner's fault: %v", err)
	}
	if found, err := r.Audit(t.Context()); err != nil || len(found) != 1 {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	if err := r.Delete(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	_, _, err := r.Download(before, i.ID)
	wantKind(t, err, fault.NotFound)
}
