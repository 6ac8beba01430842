package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

// A rig is a small cloud: accounts, flavors, and images with bytes.
type rig struct {
	state  *state.State
	blobs  *imagetest.Memory
	images *image.Service
	ctx    context.Context
	made   []resource.ID
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{state: s, blobs: new(imagetest.Memory), ctx: identity.Internal(t.Context())}
	r.images = image.New(s, r.blobs, image.Config{})
	if err := identity.Bootstrap(r.ctx, s, identity.BootstrapOptions{AdminPassword: "the-admins-password", DemoPassword: "the-demos-password", AltPassword: "the-alts-password"}); err != nil {
		t.Fatal(err)
	}
	if err := compute.Bootstrap(r.ctx, s); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		i, err := r.images.Create(r.ctx, image.Request{Name: fmt.Sprint("i", n), ProjectID: identity.ProjectNamed(s.Latest(), "admin"),
			Spec: image.Spec{Format: "raw", Container: "bare"}})
		if err != nil {
			t.Fatal(err)
		}
		r.made = append(r.made, i.ID)
		if n == 2 {
			break // one without bytes
		}
		if err := r.images.Upload(r.ctx, i.ID, strings.NewReader(strings.Repeat(fmt.Sprint(n), 1000)), -1); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

var secrets = []byte(`{"Admin":"…"}`)

func (r *rig) source() Source {
	return Source{Tx: r.state.Latest(), Images: r.images, Secrets: secrets, Release: "1.2.3", Now: time.Now()}
}

func (r *rig) write(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(t.Context(), &b, r.source()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// target is somewhere else.
type target struct {
	engine  *state.Memory
	blobs   *imagetest.Memory
	secrets []byte
}

func (a *target) restore(t *testing.T, r io.Reader) (Header, error) {
	t.Helper()
	a.engine, a.blobs = state.NewMemory(0), new(imagetest.Memory)
	h, found, err := Restore(t.Context(), r, Target{Engine: a.engine, Blobs: a.blobs, Header: func(Header) error { return nil },
		Secrets: func(b []byte) error { a.secrets = b; return nil }})
	for _, f := range found {
		t.Errorf("the auditor finds %v", f)
	}
	return h, err
}

// everything is all records of a state.
func everything(t *testing.T, tx *state.Tx) []string {
	t.Helper()
	var all []string
	for rec, err := range state.Records(tx) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf("%s %s %d %s", rec.Kind, rec.ID, rec.Version, rec.Value))
	}
	return all
}

func TestACloudIsMadeAgain(t *testing.T) {
	r := newRig(t)
	text := r.write(t)
	then := r.state.Latest()
	var a target
	h, err := a.restore(t, iotest.OneByteReader(bytes.NewReader(text)))
	if err != nil {
		t.Fatal(err)
	}
	if h.Release != "1.2.3" || h.Revision != then.Revision() || !h.Time.Equal(then.Now()) || h.Images != 2 || h.Records == 0 {
		t.Errorf("its header says %+v", h)
	}
	if !bytes.Equal(a.secrets, secrets) {
		t.Errorf("its secrets are %s", a.secrets)
	}
	s, err := state.Open(t.Context(), a.engine, state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(everything(t, then), everything(t, s.Latest())); diff != "" {
		t.Error(diff)
	}
	again := image.New(s, a.blobs, image.Config{})
	for _, id := range r.made[:2] {
		was, is := read(t, r.images, r.ctx, id), read(t, again, r.ctx, id)
		if was != is || len(is) != 1000 {
			t.Errorf("image %s has %d bytes", id, len(is))
		}
	}
	_, first, _ := bytes.Cut(text, []byte("\nsecrets "))
	_, second, _ := bytes.Cut(r.write(t), []byte("\nsecrets "))
	if !bytes.Equal(first[:len(first)-65], second[:len(second)-65]) {
		t.Error("a second one of the same moment is another")
	}
}

func read(t *testing.T, images *image.Service, ctx context.Context, id resource.ID) string {
	t.Helper()
	b, err := images.Open(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	text, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWhatWasCutOffIsNoBackup(t *testing.T) {
	text := newRig(t).write(t)
	step := max(1, len(text)/2000)
	for n := 0; n < len(text); n += step {
		if _, err := Check(bytes.NewReader(text[:n])); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for all", n, len(text))
		}
	}
	for n := len(text) - 200; n < len(text); n++ {
		if _, err := Check(bytes.NewReader(text[:n])); !errors.Is(err, ErrDamaged) {
			t.Fatalf("the first %d of %d bytes: %v", n, len(text), err)
		}
	}
	if _, err := Check(io.MultiReader(bytes.NewReader(text), strings.NewReader("x"))); !errors.Is(err, ErrDamaged) {
		t.Errorf("with something behind it: %v", err)
	}
	if _, err := Check(iotest.TimeoutReader(iotest.HalfReader(bytes.NewReader(text)))); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

func TestWhatWasAlteredIsNoBackup(t *testing.T) {
	text := newRig(t).write(t)
	step := max(1, len(text)/2000)
	for n := 0; n < len(text); n += step {
		for _, flip := range []byte{1, 0x80} {
			altered := bytes.Clone(text)
			altered[n] ^= flip
			if _, err := Check(bytes.NewReader(altered)); err == nil {
				t.Fatalf("byte %d of %d was changed, and nobody saw", n, len(text))
			}
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	text := string(newRig(t).write(t))
	for what, c := range map[string]struct{ text, want string }{
		"nothing":              {"", "no backup"},
		"another file":         {"PK\x03\x04 something else\n", "no backup"},
		"a newer format":       {strings.Replace(text, magic+" 1\n", magic+" 2\n", 1), "format 2"},
		"no header":            {magic + " 1\nrecords 0\n", "header"},
		"a second header":      {strings.Replace(text, "secrets ", "header 77\n"+`{"Revision":1,"Time":"2030-01-01T00:00:00Z","Made":"2030-01-01T00:00:00Z"}`+" \nsecrets ", 1), "damaged"},
		"a part nobody knows":  {strings.Replace(text, "secrets ", "extras ", 1), "extras"},
		"a size that lies":     {magic + " 1\nheader 99999999999999\n{}", "99999999999999"},
		"a size below nothing": {magic + " 1\nheader -1\n{}", "no size"},
		"a writer's failure":   {magic + " 1\nfailed 12\nno such disk", "no such disk"},
	} {
		var a target
		if _, err := a.restore(t, strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// While somebody holds them, the bytes of what is deleted stay; then they go.
func TestBytesStayWhileABackupIsWritten(t *testing.T) {
	r := newRig(t)
	release := r.images.Hold()
	src := r.source()
	if err := r.images.Delete(r.ctx, r.made[0]); err != nil {
		t.Fatal(err)
	}
	if removed, err := r.images.Sweep(t.Context()); err != nil || len(removed) != 0 {
		t.Errorf("a sweep takes %v, %v", removed, err)
	}
	var b bytes.Buffer
	if err := Write(t.Context(), &b, src); err != nil {
		t.Fatal(err)
	}
	release()
	task := r.images.Task()
	for _, id := range task.All(r.state.Latest()) {
		if _, err := task.Step(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := r.blobs.Present(t.Context()); err != nil || len(left) != 1 {
		t.Errorf("there are still %v, %v", left, err)
	}
	var a target
	if h, err := a.restore(t, &b); err != nil || h.Images != 2 {
		t.Errorf("it holds %+v, %v", h, err)
	}
	if present, err := a.blobs.Present(t.Context()); err != nil || len(present) != 2 {
		t.Errorf("of the images' bytes are there %v, %v", present, err)
	}
}

func TestAWriterSaysWhyItFailed(t *testing.T) {
	r := newRig(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var b bytes.Buffer
	if err := Write(gone, &b, r.source()); !errors.Is(err, context.Canceled) {
		t.Errorf("the writer answers %v", err)
	}
	if _, err := Check(&b); err == nil || !strings.Contains(err.Error(), "could not be written") {
		t.Errorf("the reader answers %v", err)
	}
	b.Reset()
	for _, i := range image.StoredAt(r.state.Latest()) {
		if err := r.blobs.Remove(t.Context(), i.BlobID); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(t.Context(), &b, r.source()); err == nil {
		t.Error("an image has lost its bytes, and nobody says so")
	}
	if _, err := Check(&b); err == nil || !strings.Contains(err.Error(), "could not be written") {
		t.Errorf("the reader answers %v", err)
	}
	if err := Write(t.Context(), full{}, r.source()); err == nil {
		t.Error("a full disk is no failure")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func FuzzRead(f *testing.F) {
	f.Add([]byte(magic + " 1\nheader 2\n{}"))
	f.Add([]byte(magic + " 1\nheader 77\n{\"Revision\":1,\"Time\":\"2030-01-01T00:00:00Z\",\"Made\":\"2030-01-01T00:00:00Z\"}\nimage 0 3\nabc"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if _, err := Check(bytes.NewReader(text)); err == nil && len(text) < 64 {
			t.Errorf("%q is taken for a backup", text)
		}
	})
}
