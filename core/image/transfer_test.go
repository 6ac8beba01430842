package image_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

func TestUpload(t *testing.T) {
	r := newRig(t, image.Config{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000)
	i := r.make(t, r.owner, "big")
	if i.State != image.Queued || i.Visibility != image.Shared || i.ProjectID != r.project {
		t.Errorf("made as %+v", i)
	}
	if err := r.Upload(r.owner, i.ID, bytes.NewReader(data), int64(len(data))); err != nil {
		t.Fatal(err)
	}
	i = r.read(t, i.ID)
	md, sha := md5.Sum(data), sha512.Sum512(data)
	if i.State != image.Active || i.Bytes != int64(len(data)) || i.VirtualBytes != i.Bytes || !i.Usable ||
		i.MD5 != hex.EncodeToString(md[:]) || i.SHA512 != hex.EncodeToString(sha[:]) {
		t.Errorf("became %+v", i)
	}
	_, b, err := r.Download(r.reader, i.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read %d bytes back, %v", len(got), err)
	}
	wantKind(t, r.Upload(r.owner, i.ID, bytes.NewReader(data), -1), fault.Conflict)
	wantKind(t, r.Upload(r.reader, r.make(t, r.owner, "x").ID, bytes.NewReader(data), -1), fault.Forbidden)
	wantKind(t, r.Upload(r.other, r.make(t, r.owner, "x").ID, bytes.NewReader(data), -1), fault.NotFound)
	r.clean(t, 1)
}

// failedUploads all leave a queued image and nothing else, and a r.second try works.
var failedUploads = map[string]struct {
	src    io.Reader
	expect int64
	format string
	kind   fault.Kind
}{
	"the client leaves":          {io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(io.ErrUnexpectedEOF)), -1, "raw", fault.Invalid},
	"the body is short":          {strings.NewReader("abc"), 4, "raw", fault.Invalid},
	"the body is too long":       {bytes.NewReader(make([]byte, 2<<20)), -1, "raw", fault.TooLarge},
	"a length is too long":       {strings.NewReader("abc"), 2 << 20, "raw", fault.TooLarge},
	"the content is another":     {strings.NewReader("QFI\xfb\x00\x00\x00\x02"), -1, "raw", fault.Invalid},
	"the content is not at all":  {bytes.NewReader(make([]byte, 1<<20)), -1, "qcow2", fault.Invalid},
	"the context ends meanwhile": {nil, -1, "raw", fault.Invalid},
}

func TestUploadFails(t *testing.T) {
	for name, c := range failedUploads {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, image.Config{MaxBytes: 1 << 20})
			i := r.make(t, r.owner, name, func(q *image.Request) { q.Format = c.format })
			ctx, src := r.owner, c.src
			if src == nil {
				var cancel context.CancelFunc
				ctx, cancel = context.WithCancel(ctx)
				src = io.MultiReader(strings.NewReader("abc"), readFunc(func() (int, error) { cancel(); return 0, nil }))
			}
			err := r.Upload(ctx, i.ID, src, c.expect)
			wantKind(t, err, c.kind)
			i = r.read(t, i.ID)
			if i.State != image.Queued || i.Bytes != 0 || !i.BlobID.IsZero() || !i.TransferID.IsZero() {
				t.Errorf("left as %+v", i)
			}
			if c.expect < 1<<20 && i.Trouble == "" {
				t.Error("the owner is not told why")
			}
			r.clean(t, 0)
			if c.format == "raw" {
				if err := r.Upload(r.owner, i.ID, strings.NewReader("x"), 1); err != nil {
					t.Errorf("a r.second try: %v", err)
				}
				if i := r.read(t, i.ID); i.Trouble != "" {
					t.Errorf("after a good try there is still trouble: %s", i.Trouble)
				}
				r.clean(t, 1)
			}
		})
	}
}

type readFunc func() (int, error)

func (f readFunc) Read([]byte) (int, error) { return f() }

// fullBlobs has no room after some bytes.
type fullBlobs struct{ image.Blobs }

func (b fullBlobs) Create(ctx context.Context, id resource.ID, n int64) (image.Writer, error) {
	w, err := b.Blobs.Create(ctx, id, n)
	return fullWriter{w}, err
}

type fullWriter struct{ image.Writer }

func (fullWriter) Write([]byte) (int, error) { return 0, fault.Errorf(fault.Exhausted, "no room") }

func TestUploadNoRoom(t *testing.T) {
	r := newRig(t, image.Config{})
	r.Service = image.New(r.State, fullBlobs{r.blobs}, image.Config{})
	i := r.make(t, r.owner, "x")
	// More than all buffers hold, so that the reader would wait for ever for one that fails.
	wantKind(t, r.Upload(r.owner, i.ID, io.LimitReader(zeros{}, 64<<20), -1), fault.Exhausted)
	if i = r.read(t, i.ID); i.State != image.Queued {
		t.Errorf("left as %+v", i)
	}
	r.clean(t, 0)
}

func TestDeleteDuringUpload(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.make(t, r.owner, "x")
	started := make(chan struct{})
	gone := make(chan struct{})
	var once bool
	src := readFunc(func() (int, error) {
		if once {
			return 0, io.EOF
		}
		once = true
		close(started)
		<-gone
		return 0, nil
	})
	done := make(chan error)
	go func() { done <- r.Upload(r.owner, i.ID, src, -1) }()
	<-started
	if err := r.Delete(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	close(gone)
	wantKind(t, <-done, fault.Gone)
	_, err := r.Get(r.owner, i.ID)
	wantKind(t, err, fault.NotFound)
	r.clean(t, 0)
}

func TestDeadline(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.make(t, r.owner, "x")
	started := make(chan struct{})
	expired := make(chan struct{})
	var once bool
	src := readFunc(func() (int, error) {
		if once {
			return 0, io.EOF
		}
		once = true
		close(started)
		<-expired
		return 0, nil
	})
	done := make(chan error)
	go func() { done <- r.Upload(r.owner, i.ID, src, -1) }()
	<-started
	err := r.State.Update(t.Context(), func(tx *state.Tx) error {
		o := operation.Active(tx, i.ID)
		if o == nil {
			return errors.New("no operation runs")
		}
		if err := r.Expire(tx, o); err != nil {
			return err
		}
		return operation.End(tx, o, operation.Failed, "late")
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Task().Step(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	close(expired)
	wantKind(t, <-done, fault.Gone)
	if i := r.read(t, i.ID); i.State != image.Queued || i.Trouble == "" {
		t.Errorf("left as %+v", i)
	}
	r.clean(t, 0)
}

func TestCancel(t *testing.T) {
	r := newRig(t, image.Config{})
	ops := &operation.Service{State: r.State, Cancellers: map[string]operation.Canceller{image.Table().Kind(): r.Cancel}}
	i := r.make(t, r.owner, "x")
	started, cancelled := make(chan struct{}), make(chan struct{})
	var once sync.Once
	src := readFunc(func() (int, error) {
		once.Do(func() { close(started) })
		<-cancelled
		return 0, nil
	})
	done := make(chan error)
	go func() { done <- r.Upload(r.owner, i.ID, src, -1) }()
	<-started
	upload := operation.Active(r.State.Latest(), i.ID)
	_, err := ops.Cancel(r.other, upload.ID)
	wantKind(t, err, fault.NotFound)
	_, err = ops.Cancel(r.reader, upload.ID)
	wantKind(t, err, fault.Forbidden)
	if o, err := ops.Cancel(r.owner, upload.ID); err != nil || o.Outcome != operation.Cancelled {
		t.Errorf("the upload is %+v, %v", o, err)
	}
	if _, err := r.Task().Step(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	close(cancelled)
	wantKind(t, <-done, fault.Gone)
	if i := r.read(t, i.ID); i.State != image.Queued || i.Trouble != "The transfer was cancelled." {
		t.Errorf("left as %+v", i)
	}
	r.clean(t, 0)
	if err := r.Upload(r.owner, i.ID, strings.NewReader("again"), -1); err != nil {
		t.Fatal(err)
	}
	_, err = ops.Cancel(r.owner, upload.ID) // twice is once, whatever came after
	if i := r.read(t, i.ID); err != nil || i.State != image.Active {
		t.Errorf("cancelled again it is %s, %v", i.State, err)
	}
}

// Whoever looks at an image while its bytes come in, however slowly, neither ends that nor takes the bytes away.
func TestSettleLeavesWhatRuns(t *testing.T) {
	r := newRig(t, image.Config{})
	step := r.Task().Step
	var looking sync.WaitGroup
	for range 150 {
		i := r.make(t, r.owner, "x")
		done, end := context.WithCancel(t.Context())
		for range 8 {
			looking.Go(func() {
				for done.Err() == nil {
					if _, err := step(t.Context(), i.ID); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		if err := r.Upload(r.owner, i.ID, strings.NewReader("bytes"), -1); err != nil {
			t.Error(err)
		}
		end()
		looking.Wait()
		if t.Failed() {
			return
		}
	}
	r.clean(t, 150)
}
