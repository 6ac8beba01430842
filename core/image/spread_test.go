package image_test

import (
	"context"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

// late is a controller's copies, of which others have more.
type late struct {
	image.Blobs
	elsewhere map[resource.ID]bool
}

func (l *late) Elsewhere(_ context.Context, id resource.ID) bool { return l.elsewhere[id] }

// A controller that has not yet what another has is late, and nothing is wrong.
func TestAuditOfACopyThatIsLate(t *testing.T) {
	r := newRig(t, image.Config{})
	i := r.active(t, r.owner, "image")
	l := &late{r.blobs, map[resource.ID]bool{i.BlobID: true}}
	if err := r.blobs.Remove(t.Context(), i.BlobID); err != nil {
		t.Fatal(err)
	}
	audit := func() int {
		t.Helper()
		found, err := image.New(r.State, l, image.Config{}).Audit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return len(found)
	}
	if n := audit(); n != 0 {
		t.Errorf("another has it: %d contradictions", n)
	}
	clear(l.elsewhere)
	if n := audit(); n != 1 {
		t.Errorf("nobody has it: %d contradictions", n)
	}
}
