package image_test

import (
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/operation"
)

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
