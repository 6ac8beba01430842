package native

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestMaintenance(t *testing.T) {
	w := newWorld(t)
	path := "/hosts/" + w.host.String()
	for _, deny := range []string{"/maintenance", "/maintenance/plan", "/fenced"} {
		w.do("one", "POST", path+deny, `{}`).must(t, 404)
	}
	for _, body := range []string{``, `[]`, `{"at_once":-1}`, `{"at_once":1000}`, `{"stop":1}`, `{"when":"now"}`, `{"reason":"` + strings.Repeat("x", 256) + `"}`} {
		w.do("admin", "POST", path+"/maintenance", body).must(t, 400).code(t)
	}
	before := w.state.Latest().Revision()
	var plan leavings
	w.do("admin", "POST", path+"/maintenance/plan", `{"stop":true}`).must(t, 200).into(t, &plan)
	if len(plan.Servers) != 2 || plan.Servers[0].ServerID != w.mine || plan.Servers[0].Name != "mine" || plan.Servers[0].Way == "" || plan.Servers[0].Why == "" {
		t.Errorf("planned is %+v", plan)
	}
	if w.state.Latest().Revision() != before {
		t.Error("a plan changed something")
	}
	var op object
	w.do("admin", "POST", path+"/maintenance", `{"reason":"new fans"}`).must(t, 202).into(t, &op)
	if op["verb"] != "drain" || op["outcome"] != "running" || op["target_id"] != w.host.String() {
		t.Errorf("the operation is %v", op)
	}
	var h object
	w.get("admin", path).must(t, 200).into(t, &h)
	if h["maintenance"] != true || h["disabled"] != true || h["disabled_reason"] != "new fans" || h["drain"].(map[string]any)["operation_id"] != op["id"] {
		t.Errorf("the host is %v", h)
	}
	w.do("admin", "POST", path+"/maintenance", `{}`).must(t, 409).code(t)
	w.do("admin", "PATCH", path, `{"disabled":false}`).must(t, 200).into(t, &h)
	if h["maintenance"] != false || h["drain"] != nil {
		t.Errorf("enabled it is %v", h)
	}
	w.get("admin", "/operations/"+op["id"].(string)).must(t, 200).into(t, &op)
	if op["outcome"] != "cancelled" {
		t.Errorf("the operation is %v", op)
	}
}

func TestFencing(t *testing.T) {
	w := newWorld(t)
	path := "/hosts/" + w.host.String()
	w.do("one", "PUT", path+"/fencing", `{"driver":"exec","program":"ipmi"}`).must(t, 404)
	for _, body := range []string{`{"driver":"shell"}`, `{"driver":"exec"}`, `{"driver":"exec","program":"../x"}`, `{"driver":"exec","program":"a b"}`, `{"program":"x"}`,
		`{"driver":"redfish"}`, `{"driver":"redfish","url":"http://bmc/x"}`, `{"driver":"redfish","url":"https://u:p@bmc/x"}`,
		`{"driver":"redfish","url":"https://bmc/x","fingerprint":"xx"}`, `{"driver":"exec","program":"x","command":"rm"}`} {
		w.do("admin", "PUT", path+"/fencing", body).must(t, 400).code(t)
	}
	said := w.do("admin", "PUT", path+"/fencing", `{"driver":"redfish","url":"https://bmc/redfish/v1/Systems/1","username":"u","password":"SECRET-bmc"}`).must(t, 200)
	if strings.Contains(string(said.body), "SECRET") || !strings.Contains(string(said.body), `"url":"https://bmc/redfish/v1/Systems/1"`) {
		t.Errorf("it says %s", said.body)
	}
	w.do("admin", "POST", path+"/fenced", ``).must(t, 409).code(t)
	w.update(func(tx *state.Tx) error {
		h, _ := host.Find(tx, w.host)
		h.Lost = tx.Now()
		return host.Table().Put(tx, h)
	})
	var h object
	w.do("admin", "POST", path+"/fenced", ``, "Unkai-Plan", "true").must(t, 200)
	w.do("admin", "POST", path+"/fenced", ``).must(t, 200).into(t, &h)
	fenced := h["fenced"].(map[string]any)
	if fenced["how"] != "word" || fenced["user_id"] != w.tokens["admin"].UserID.String() {
		t.Errorf("it is %v", h)
	}
	w.do("admin", "PUT", path+"/fencing", `{}`).must(t, 200)
}

func TestKeep(t *testing.T) {
	w := newWorld(t)
	path := "/servers/" + w.mine.String() + "/keep"
	w.do("two", "PATCH", path, `{"elsewhere":true}`).must(t, 404)
	w.do("roleless", "PATCH", path, `{"elsewhere":true}`).must(t, 404)
	for _, body := range []string{``, `{"priority":101}`, `{"priority":"x"}`, `{"on_crash":"explode"}`, `{"host":"x"}`} {
		w.do("one", "PATCH", path, body).must(t, 400).code(t)
	}
	var s object
	w.do("one", "PATCH", path, `{"elsewhere":true,"priority":7}`).must(t, 200).into(t, &s)
	w.do("one", "PATCH", path, `{"on_crash":"stay"}`).must(t, 200).into(t, &s)
	keep := s["keep"].(map[string]any)
	if keep["elsewhere"] != true || keep["priority"] != json.Number("7") && keep["priority"] != float64(7) || keep["on_crash"] != "stay" {
		t.Errorf("it is %v", keep)
	}
	srv, _ := compute.Servers().Find(w.state.Latest(), w.mine)
	if srv.Sworn == 0 || srv.Sworn != srv.Wish {
		t.Errorf("its host has to know wish %d of %d", srv.Sworn, srv.Wish)
	}
	if _, shown := s["sworn"]; shown {
		t.Error("its owner is shown what is between us and the host")
	}
}

func TestKeeping(t *testing.T) {
	w := newWorld(t)
	w.get("one", "/keeping").must(t, 403)
	w.do("one", "PATCH", "/keeping", `{"leases":true}`).must(t, 403)
	for _, body := range []string{``, `{"storm_percent":101}`, `{"at_once":0}`, `{"cpu_ratio":-1}`, `{"cpu_ratio":100.5}`, `{"memory_ratio":11}`, `{"disk_ratio":1e300}`, `{"cpu_ratio":"8"}`, `{"x":1}`} {
		w.do("admin", "PATCH", "/keeping", body).must(t, 400).code(t)
	}
	if got := strings.TrimSpace(string(w.get("admin", "/keeping").must(t, 200).body)); got != `{"leases":false,"storm_percent":25,"at_once":10,"stay_off":false,"stay_crashed":false,"pack":false,"cpu_ratio":0,"memory_ratio":0,"disk_ratio":0,"shelved_stay_seconds":0,"ratios_in_force":{"cpu":8,"memory":1,"disk":1}}` {
		t.Error(got)
	}
	w.do("admin", "PATCH", "/keeping", `{"leases":true,"at_once":3,"cpu_ratio":4.5,"memory_ratio":1.25}`).must(t, 200)
	if got := strings.TrimSpace(string(w.get("admin", "/keeping").must(t, 200).body)); got != `{"leases":true,"storm_percent":25,"at_once":3,"stay_off":false,"stay_crashed":false,"pack":false,"cpu_ratio":4.5,"memory_ratio":1.25,"disk_ratio":0,"shelved_stay_seconds":0,"ratios_in_force":{"cpu":4.5,"memory":1.25,"disk":1}}` {
		t.Error(got)
	}
}
