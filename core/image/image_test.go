package image_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A rig is a service on an empty state, and who may ask it.
type rig struct {
	*image.Service
	engine state.Engine
	blobs  image.Blobs

	project, second             resource.ID // two projects of the cloud
	owner, other, reader, admin context.Context
}

var user = resource.MustID("01900000-0000-7000-8000-0000000000b1")

func as(t *testing.T, project resource.ID, roles ...string) context.Context {
	return identity.As(t.Context(), &identity.Actor{UserID: user, ProjectID: project, Roles: roles})
}

func newRig(t *testing.T, c image.Config) *rig {
	t.Helper()
	r := &rig{engine: state.NewMemory(0), blobs: new(imagetest.Memory)}
	r.restart(t, c)
	people := identity.New(r.State, identity.Config{})
	domain := newProject(t, people, "d", resource.ID{})
	r.project, r.second = newProject(t, people, "one", domain), newProject(t, people, "two", domain)
	r.owner, r.other = as(t, r.project, "member", "reader"), as(t, r.second, "member", "reader")
	r.reader, r.admin = as(t, r.project, "reader"), as(t, r.second, "admin", "manager", "member", "reader")
	return r
}

// restart is a new process on the same state and blobs.
func (r *rig) restart(t *testing.T, c image.Config) {
	t.Helper()
	s, err := state.Open(t.Context(), r.engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r.Service = image.New(s, r.blobs, c)
}

// settle runs the service's reconciling until there is nothing to do at once.
func (r *rig) settle(t *testing.T) {
	t.Helper()
	task := r.Task()
	for _, id := range task.All(r.State.Latest()) {
		if _, err := task.Step(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

func (r *rig) make(t *testing.T, ctx context.Context, name string, edits ...func(*image.Request)) *image.Image {
	t.Helper()
	q := image.Request{Name: name, Spec: image.Spec{Format: "raw", Container: "bare"}}
	for _, e := range edits {
		e(&q)
	}
	i, err := r.Create(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (r *rig) active(t *testing.T, ctx context.Context, name string, edits ...func(*image.Request)) *image.Image {
	t.Helper()
	i := r.make(t, ctx, name, edits...)
	if err := r.Upload(ctx, i.ID, strings.NewReader("content of "+name), -1); err != nil {
		t.Fatal(err)
	}
	return r.read(t, i.ID)
}

func visible(v image.Visibility) func(*image.Request) {
	return func(q *image.Request) { q.Visibility = v }
}

// read gives an image as the cloud itself sees it.
func (r *rig) read(t *testing.T, id resource.ID) *image.Image {
	t.Helper()
	i, err := r.Get(identity.Internal(t.Context()), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// clean fails the test if anything is where it should not be.
func (r *rig) clean(t *testing.T, blobs int) {
	t.Helper()
	found, err := r.Audit(t.Context())
	if err != nil || len(found) > 0 {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	present, err := r.blobs.Present(t.Context())
	if err != nil || len(present) != blobs {
		t.Errorf("%d blobs, %v; want %d", len(present), err, blobs)
	}
	for o := range operation.Table().All(r.State.Latest()) {
		if o.Outcome == operation.Running {
			t.Errorf("operation %s on %s still runs", o.Verb, o.TargetID)
		}
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) || err == nil {
		t.Errorf("got %v, want a fault of kind %d", err, kind)
	}
}

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

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

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

func TestImport(t *testing.T) {
	r := newRig(t, image.Config{})
	good, bad := r.make(t, r.owner, "good"), r.make(t, r.owner, "bad")
	for id, content := range map[resource.ID]string{good.ID: "hello", bad.ID: "QFI\xfb"} {
		wantKind(t, r.Import(r.owner, id), fault.Conflict)
		if err := r.Stage(r.owner, id, strings.NewReader(content), -1); err != nil {
			t.Fatal(err)
		}
		if got := r.read(t, id).State; got != image.Staged {
			t.Errorf("staged as %s", got)
		}
		if _, b, err := r.Download(r.owner, id); b != nil || err != nil {
			t.Errorf("staged bytes are given out: %v", err)
		}
		if err := r.Import(r.owner, id); err != nil {
			t.Fatal(err)
		}
	}
	r.restart(t, image.Config{}) // an import goes on after a crash
	r.settle(t)
	if i := r.read(t, good.ID); i.State != image.Active || i.Bytes != 5 || !i.Usable {
		t.Errorf("imported as %+v", i)
	}
	if i := r.read(t, bad.ID); i.State != image.Queued || i.Bytes != 0 || !strings.Contains(i.Trouble, "qcow2") {
		t.Errorf("refused as %+v", i)
	}
	ops, err := r.Operations(r.owner, bad.ID)
	if err != nil || len(ops) != 2 || ops[0].Verb != "import" || ops[0].Outcome != operation.Failed {
		t.Errorf("operations %+v, %v", ops, err)
	}
	r.clean(t, 1)
}

func TestDelete(t *testing.T) {
	inUse := true
	r := newRig(t, image.Config{InUse: func(*state.Tx, resource.ID) bool { return inUse }})
	i := r.active(t, r.owner, "x")
	_, reader, err := r.Download(r.owner, i.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Protected = true; return nil }); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Delete(r.owner, i.ID), fault.Forbidden)
	if _, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Protected = false; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Delete(r.owner, i.ID), fault.NotFound)
	if page, err := r.List(r.owner, image.Query{}); err != nil || len(page.Items) != 0 {
		t.Errorf("still listed: %v, %v", page.Items, err)
	}
	// A host still makes a guest from it.
	if b, err := r.Open(t.Context(), i.ID); err != nil {
		t.Error(err)
	} else {
		b.Close()
	}
	inUse = false
	r.settle(t)
	_, err = r.Open(t.Context(), i.ID)
	wantKind(t, err, fault.NotFound)
	r.clean(t, 0)
	if got, err := io.ReadAll(reader); err != nil || string(got) != "content of x" {
		t.Errorf("a reader was disturbed: %q, %v", got, err)
	}
}

func TestDeactivate(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	wantKind(t, r.Deactivate(r.owner, r.make(t, r.owner, "queued").ID), fault.Forbidden)
	for range 2 {
		if err := r.Deactivate(r.owner, i.ID); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := r.Download(r.owner, i.ID)
	wantKind(t, err, fault.Forbidden)
	_, err = image.Lookup(r.owner, r.State.Latest(), i.ID)
	wantKind(t, err, fault.Invalid)
	if err := r.Reactivate(r.owner, i.ID); err != nil {
		t.Fatal(err)
	}
	if _, err = image.Lookup(r.owner, r.State.Latest(), i.ID); err != nil {
		t.Error(err)
	}
}

func TestQuota(t *testing.T) {
	var r *rig
	r = newRig(t, image.Config{Limits: func(_ *state.Tx, p resource.ID) image.Limits {
		if p == r.project {
			return image.Limits{Images: 2, Bytes: 100}
		}
		return image.Limits{}
	}})
	one, two := r.make(t, r.owner, "1"), r.make(t, r.owner, "2")
	_, err := r.Create(r.owner, image.Request{Name: "3"})
	wantKind(t, err, fault.OverQuota)
	if err := r.Upload(r.owner, one.ID, bytes.NewReader(make([]byte, 80)), -1); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 21)), -1), fault.TooLarge)
	wantKind(t, r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 21)), 21), fault.TooLarge)
	if err := r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 20)), -1); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(r.owner, one.ID); err != nil {
		t.Fatal(err)
	}
	three := r.make(t, r.owner, "3")
	if err := r.Upload(r.owner, three.ID, bytes.NewReader(make([]byte, 80)), 80); err != nil {
		t.Error(err)
	}
	r.clean(t, 2)
}

// who sees and who changes an image, by its visibility.
// TestNamespaceOnce: a namespace that is made, and changed, with an idempotency key is so once, and the answer is the first one again.
func TestNamespaceOnce(t *testing.T) {
	r := newRig(t, image.Config{})
	admin := as(t, user, "admin")
	once := func(key string) context.Context {
		return state.WithOnce(admin, &state.Once{Scope: "s", Key: key, Hash: "h"})
	}
	var first *image.Namespace
	for range 2 {
		n, err := r.CreateNamespace(once("make"), &image.Namespace{Meta: resource.Meta{Name: "words"}, Visibility: image.Public})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = n
		}
		if n.ID != first.ID || n.Name != "words" {
			t.Errorf("the second answer is %+v", n)
		}
	}
	for range 2 {
		n, err := r.UpdateNamespace(once("add"), "words", func(n *image.Namespace, now time.Time) error {
			n.Tags = append(n.Tags, image.Definition{Name: "tag", CreatedAt: now})
			return nil
		})
		if err != nil || len(n.Tags) != 1 {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if _, err := r.CreateNamespace(admin, &image.Namespace{Meta: resource.Meta{Name: "words"}, Visibility: image.Public}); !fault.Is(err, fault.Exists) {
		t.Errorf("without the key: %v", err)
	}
}

func TestPermissions(t *testing.T) {
	r := newRig(t, image.Config{})
	change := func(ctx context.Context, id resource.ID) error {
		_, err := r.Update(ctx, id, func(i *image.Image) error { i.Name += "x"; return nil })
		return err
	}
	for _, c := range []struct {
		visibility  image.Visibility
		seen        bool // by others
		listed, all bool // by default, and when all are asked for
	}{
		{image.Private, false, false, false},
		{image.Shared, false, false, false},
		{image.Community, true, false, true},
		{image.Public, true, true, true},
	} {
		t.Run(string(c.visibility), func(t *testing.T) {
			i := r.active(t, r.admin, string(c.visibility), func(q *image.Request) { q.ProjectID = r.project; q.Visibility = c.visibility })
			for who, ctx := range map[string]context.Context{"owner": r.owner, "reader": r.reader, "admin": r.admin} {
				if _, err := r.Get(ctx, i.ID); err != nil {
					t.Errorf("the %s does not see it: %v", who, err)
				}
			}
			_, err := r.Get(r.other, i.ID)
			_, _, dl := r.Download(r.other, i.ID)
			_, use := image.Lookup(r.other, r.State.Latest(), i.ID)
			if c.seen {
				if err != nil || dl != nil || use != nil {
					t.Errorf("others cannot see, load or use it: %v, %v, %v", err, dl, use)
				}
				wantKind(t, change(r.other, i.ID), fault.Forbidden)
				wantKind(t, r.Delete(r.other, i.ID), fault.Forbidden)
				wantKind(t, r.Deactivate(r.other, i.ID), fault.Forbidden)
			} else {
				for _, err := range []error{err, dl, use, change(r.other, i.ID), r.Delete(r.other, i.ID), r.Deactivate(r.other, i.ID)} {
					wantKind(t, err, fault.NotFound)
				}
			}
			wantKind(t, change(r.reader, i.ID), fault.Forbidden)
			for q, want := range map[image.Visibility]bool{"": c.listed, image.All: c.all, c.visibility: c.seen} {
				page, err := r.List(r.other, image.Query{Visibility: q})
				if err != nil {
					t.Fatal(err)
				}
				if got := has(page, i.ID); got != want {
					t.Errorf("listed to others with %q: %v", q, got)
				}
			}
		})
	}
	i := r.make(t, r.owner, "x")
	for to, kind := range map[image.Visibility]fault.Kind{image.Public: fault.Forbidden, "odd": fault.Invalid} {
		_, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.Visibility = to; return nil })
		wantKind(t, err, kind)
		_, err = r.Create(r.owner, image.Request{Spec: image.Spec{Visibility: to}})
		wantKind(t, err, kind)
	}
	_, err := r.Update(r.owner, i.ID, func(i *image.Image) error { i.ProjectID = r.second; return nil })
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.owner, image.Request{ProjectID: r.second})
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.reader, image.Request{})
	wantKind(t, err, fault.Forbidden)
	_, err = r.Create(r.owner, image.Request{ID: i.ID})
	wantKind(t, err, fault.Exists)
}

func has(p query.Page[image.Image], id resource.ID) bool {
	for _, i := range p.Items {
		if i.ID == id {
			return true
		}
	}
	return false
}

func TestMembers(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	listed := func(answer image.Answer) bool {
		t.Helper()
		page, err := r.List(r.other, image.Query{Answer: answer})
		if err != nil {
			t.Fatal(err)
		}
		return has(page, i.ID)
	}
	_, err := r.Share(r.other, i.ID, r.second)
	wantKind(t, err, fault.NotFound)
	m, err := r.Share(r.owner, i.ID, r.second)
	if err != nil || m.Answer != image.Pending || m.CreatedAt.IsZero() {
		t.Fatalf("shared as %+v, %v", m, err)
	}
	_, err = r.Share(r.owner, i.ID, r.second)
	wantKind(t, err, fault.Exists)
	if _, err := r.Get(r.other, i.ID); err != nil {
		t.Error(err)
	}
	if listed("") || !listed(image.Pending) || !listed(image.All) {
		t.Error("a pending offer is in the wrong lists")
	}
	_, err = r.Answer(r.owner, i.ID, r.second, image.Accepted)
	wantKind(t, err, fault.Forbidden)
	_, err = r.Answer(r.other, i.ID, r.second, "perhaps")
	wantKind(t, err, fault.Invalid)
	if m, err = r.Answer(r.other, i.ID, r.second, image.Accepted); err != nil || m.Answer != image.Accepted {
		t.Errorf("answered as %+v, %v", m, err)
	}
	if !listed("") || listed(image.Pending) {
		t.Error("an accepted offer is in the wrong lists")
	}
	third := resource.MustID("01900000-0000-7000-8000-0000000000a3")
	if _, err := r.Share(r.owner, i.ID, third); err != nil {
		t.Fatal(err)
	}
	if all, err := r.Members(r.owner, i.ID); err != nil || len(all) != 2 {
		t.Errorf("the owner sees %v, %v", all, err)
	}
	if all, err := r.Members(r.other, i.ID); err != nil || len(all) != 1 || all[0].ProjectID != r.second {
		t.Errorf("a member sees %v, %v", all, err)
	}
	_, err = r.Member(r.other, i.ID, third)
	wantKind(t, err, fault.NotFound)
	_, err = r.Answer(r.other, i.ID, third, image.Accepted)
	wantKind(t, err, fault.NotFound)
	wantKind(t, r.Unshare(r.other, i.ID, r.second), fault.Forbidden)
	if err := r.Unshare(r.owner, i.ID, r.second); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Unshare(r.owner, i.ID, r.second), fault.NotFound)
	_, err = r.Get(r.other, i.ID)
	wantKind(t, err, fault.NotFound)
	if listed("") {
		t.Error("listed although it is no longer shared")
	}
	private := r.make(t, r.owner, "private", visible(image.Private))
	_, err = r.Share(r.owner, private.ID, r.second)
	wantKind(t, err, fault.Forbidden)
}

// TestListPages walks a list of three merged streams page by page, in both directions and by another order.
func TestListPages(t *testing.T) {
	r := newRig(t, image.Config{})
	var want []resource.ID // oldest first
	for n := range 30 {
		var i *image.Image
		switch n % 4 {
		case 0:
			i = r.make(t, r.other, fmt.Sprint("own", n))
		case 1:
			i = r.make(t, r.admin, fmt.Sprint("public", n), visible(image.Public), func(q *image.Request) { q.ProjectID = r.project })
		case 2:
			i = r.make(t, r.owner, fmt.Sprint("shared", n))
			if _, err := r.Share(r.owner, i.ID, r.second); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Answer(r.other, i.ID, r.second, image.Accepted); err != nil {
				t.Fatal(err)
			}
		case 3:
			r.make(t, r.owner, fmt.Sprint("foreign", n), visible(image.Private))
			continue
		}
		want = append(want, i.ID)
	}
	walk := func(q image.Query) []resource.ID {
		t.Helper()
		var got []resource.ID
		q.Limit = 4
		for {
			page, err := r.List(r.other, q)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range page.Items {
				got = append(got, i.ID)
			}
			if !page.More {
				return got
			}
			if len(page.Items) != 4 {
				t.Fatalf("a page of %d with more to come", len(page.Items))
			}
			q.Marker = page.Items[3].ID
		}
	}
	reversed := slices.Clone(want)
	slices.Reverse(reversed)
	byID := slices.Clone(want) // made within one millisecond, they are in an order of their own
	slices.SortFunc(byID, func(a, b resource.ID) int { return slices.Compare(a[:], b[:]) })
	fromEnd := slices.Clone(byID)
	slices.Reverse(fromEnd)
	for name, c := range map[string]struct {
		sort []image.Order
		want []resource.ID
	}{
		"newest first":       {nil, reversed},
		"oldest first":       {[]image.Order{{Field: "created"}}, want},
		"by a field alike":   {[]image.Order{{Field: "bytes"}}, reversed},
		"by id":              {[]image.Order{{Field: "id"}}, byID},
		"by id, highest":     {[]image.Order{{Field: "id", Reverse: true}}, fromEnd},
		"by two, the newest": {[]image.Order{{Field: "format"}, {Field: "created", Reverse: true}}, reversed},
	} {
		if got := walk(image.Query{Sort: c.sort}); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: got %d\n%v\nwant %d\n%v", name, len(got), got, len(c.want), c.want)
		}
	}
	_, err := r.List(r.other, image.Query{List: query.List{Marker: user}})
	wantKind(t, err, fault.Invalid)
	_, err = r.List(r.other, image.Query{Sort: []image.Order{{Field: "odd"}}})
	wantKind(t, err, fault.Invalid)
}

func TestPlan(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "x")
	queued := r.make(t, r.owner, "y")
	rev := r.State.Latest().Revision()
	for name, do := range map[string]func(ctx context.Context) error{
		"delete": func(ctx context.Context) error { return r.Delete(ctx, i.ID) },
		"upload": func(ctx context.Context) error {
			return r.Upload(ctx, queued.ID, iotest.ErrReader(errors.New("a plan reads no body")), -1)
		},
	} {
		var p state.Plan
		if err := do(state.WithPlan(r.owner, &p)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(p.Changes()) == 0 {
			t.Errorf("%s would change nothing", name)
		}
	}
	if r.State.Latest().Revision() != rev {
		t.Error("a plan changed the state")
	}
	r.clean(t, 1)
}

func TestLookup(t *testing.T) {
	r := newRig(t, image.Config{})
	usable := r.active(t, r.owner, "usable")
	i, err := image.Lookup(r.owner, r.State.Latest(), usable.ID)
	if err != nil || i.Opened() != "raw" {
		t.Errorf("got %+v, %v", i, err)
	}
	for name, edit := range map[string]func(*image.Request){
		"a placeholder": func(q *image.Request) { q.Format = "qcow2" },
		"a container":   func(q *image.Request) { q.Container = "ova" },
		"a format":      func(q *image.Request) { q.Format = "vmdk" },
	} {
		i := r.active(t, r.owner, name, edit)
		_, err := image.Lookup(r.owner, r.State.Latest(), i.ID)
		wantKind(t, err, fault.Invalid)
	}
	if i, err := image.ByTail(r.owner, r.State.Latest(), usable.ID.Tail()); err != nil || i.ID != usable.ID {
		t.Errorf("by its tail: %v, %v", i, err)
	}
	_, err = image.ByTail(r.other, r.State.Latest(), usable.ID.Tail())
	wantKind(t, err, fault.NotFound)
}

func BenchmarkList(b *testing.B) {
	s, err := state.Open(b.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		b.Fatal(err)
	}
	svc := image.New(s, new(imagetest.Memory), image.Config{})
	ctx := identity.As(b.Context(), &identity.Actor{UserID: user, ProjectID: user, Roles: []string{"member", "reader"}})
	for n := range 100_000 {
		if _, err := svc.Create(ctx, image.Request{Name: fmt.Sprint("image", n), Spec: image.Spec{Format: "raw", Container: "bare"}}); err != nil {
			b.Fatal(err)
		}
	}
	for name, q := range map[string]image.Query{
		"first page":   {List: query.List{Limit: 100}},
		"by name":      {List: query.List{Limit: 100}, Name: "image777"},
		"sort by name": {List: query.List{Limit: 100}, Sort: []image.Order{{Field: "name"}}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if page, err := svc.List(ctx, q); err != nil || len(page.Items) == 0 {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestProjectEnds deletes a project: what it had goes along, what is everybody's stays.
func TestProjectEnds(t *testing.T) {
	r := newRig(t, image.Config{})
	people := identity.New(r.State, identity.Config{})
	admin := identity.Internal(t.Context())
	p := newProject(t, people, "p", newProject(t, people, "e", resource.ID{}))
	member := as(t, p, "member", "reader")
	own := r.active(t, member, "own")
	public := r.active(t, r.admin, "public", visible(image.Public), func(q *image.Request) { q.ProjectID = p })
	stray := r.active(t, r.admin, "stray", func(q *image.Request) { q.ProjectID = user })
	shared := r.active(t, r.admin, "shared", func(q *image.Request) { q.ProjectID = r.project })
	if _, err := r.Share(r.admin, shared.ID, p); err != nil {
		t.Fatal(err)
	}
	if err := people.DeleteProject(admin, p, false, false); err != nil {
		t.Fatal(err)
	}
	task := r.Task()
	for range 2 {
		for _, id := range append(task.All(r.State.Latest()), p) {
			if _, err := task.Step(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := r.Get(r.admin, own.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("its image is still there: %v", err)
	}
	for _, i := range []*image.Image{public, stray, shared} {
		if got := r.read(t, i.ID); got.State != image.Active || len(got.Members) != 0 {
			t.Errorf("%s is %+v", i.Name, got)
		}
	}
	r.clean(t, 3)
}

// newProject makes a project, or a domain when it is in none.
func newProject(t *testing.T, people *identity.Service, name string, domain resource.ID) resource.ID {
	t.Helper()
	p, err := people.CreateProject(identity.Internal(t.Context()), &identity.Project{Meta: resource.Meta{Name: name}, DomainID: domain, Enabled: true})
	if err != nil {
		t.Fatal(err)
	}
	return p.ID
}

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
