package native

import (
	"errors"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestRelocation(t *testing.T) {
	w := newWorld(t)
	path := "/servers/" + w.mine.String() + "/move"
	for _, at := range []string{path, path + "/plan"} {
		w.do("two", "POST", at, `{}`).must(t, 404)
		w.do("admin", "POST", "/servers/x"+strings.TrimPrefix(at, "/servers/"+w.mine.String()), `{}`).must(t, 404)
		for _, body := range []string{``, `[]`, `{"to":1}`, `{"where":"x"}`, `{"to":"nowhere"}`} {
			if answer := w.do("admin", "POST", at, body); answer.status != 400 && answer.status != 409 {
				t.Errorf("%s %s answers %d", at, body, answer.status)
			}
		}
	}
}

// An operator is told what a move would take, then has it done.
func TestRelocationOfARunningServer(t *testing.T) {
	w := newWorld(t)
	w.update(func(tx *state.Tx) error {
		from, _ := host.Find(tx, w.host)
		from.Capacity = host.Capacity{VCPUs: 8, MemoryMiB: 8192, DiskGiB: 100, Moves: true, WireMbps: 400}
		there := &host.Host{Meta: resource.Meta{ID: tx.NewID(), Name: "node-there"}, Zone: "nova", Capacity: from.Capacity}
		srv, _ := compute.Servers().Find(tx, w.mine)
		srv.Task, srv.Seen.Power, srv.LaunchedAt = "", compute.On, tx.Now()
		return errors.Join(host.Table().Put(tx, from), host.Table().Put(tx, there), compute.Servers().Put(tx, srv))
	})
	path := "/servers/" + w.mine.String() + "/move"
	before := w.state.Latest().Revision()
	var f forecast
	w.do("admin", "POST", path+"/plan", `{}`).must(t, 200).into(t, &f)
	if f.To != "node-there" || !f.Live || f.Outcome != "unknown" || f.Unknown == "" || f.Wire.Basis != "declared" || f.Wire.Most != 50e6 || f.Seconds.Least <= 0 || len(f.Doubts) == 0 {
		t.Errorf("it is told %+v", f)
	}
	w.do("one", "POST", path+"/plan", `{}`).must(t, 403)
	w.do("one", "POST", path, `{}`).must(t, 403)
	w.do("admin", "POST", path, `{}`, "Unkai-Plan", "true").must(t, 200)
	if w.state.Latest().Revision() != before {
		t.Error("a plan changed something")
	}
	var op object
	w.do("admin", "POST", path, `{"to":"node-there"}`).must(t, 202).into(t, &op)
	if op["verb"] != string(compute.LiveMigrating) || op["outcome"] != "running" || op["target_id"] != w.mine.String() {
		t.Errorf("the operation is %v", op)
	}
	w.do("admin", "POST", path, `{}`).must(t, 409).code(t)
	w.do("admin", "POST", path+"/plan", `{}`).must(t, 409).code(t)
}
