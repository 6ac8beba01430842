package nova

import (
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// consoleBase is where consoles are reached.
func (s *server) consoleBase(r *http.Request) string {
	if s.consoles != "" {
		return s.consoles
	}
	return wire.BaseURL(r) + "/console"
}

// consoleAddress is what opens a console: for VNC a page that connects to the websocket, for the serial
// port the websocket itself.
func consoleAddress(base, kind, token string) string {
	if kind == compute.Serial {
		return "ws" + strings.TrimPrefix(base, "http") + "/websockify?token=" + token
	}
	path := "console/websockify?token=" + token
	return base + "/vnc_lite.html?path=" + url.QueryEscape(path)
}

// actionWords are Nova's names for operations in its action log; others are named alike.
var actionWords = map[string]string{
	"reboot-hard": "reboot", "resize-revert": "revertResize", "resize-confirm": "confirmResize",
	"create-image": "createImage", "create-backup": "createBackup", "shelve-offload": "shelveOffload",
	"attach-interface": "attach_interface", "detach-interface": "detach_interface",
}

func actionWord(verb string) string {
	if word, ok := actionWords[verb]; ok {
		return word
	}
	return verb
}

// actionTime is a time as the action log shows it.
func actionTime(t time.Time) string { return isoTime(t) }

func actionView(minor int, o *operation.Operation) map[string]any {
	view := map[string]any{"action": actionWord(o.Verb), "instance_uuid": o.TargetID.String(), "request_id": o.RequestID,
		"user_id": o.UserID.Hex(), "project_id": o.AsProject.Hex(), "start_time": actionTime(o.CreatedAt), "message": nil}
	if o.Outcome == operation.Failed {
		view["message"] = "Error"
	}
	if minor >= 58 {
		view["updated_at"] = actionTime(o.UpdatedAt)
	}
	return view
}

func (s *server) listActions(w http.ResponseWriter, r *http.Request) error {
	minor := minorOf(r)
	if minor >= 58 {
		if err := onlyKnown(r, 58, "limit", "marker", "changes-since", "changes-before"); err != nil {
			return err
		}
	}
	all, err := s.operations(r)
	if err != nil {
		return err
	}
	more := false
	if minor >= 58 {
		if all, more, err = pageOfActions(r, all); err != nil {
			return err
		}
	}
	views := []map[string]any{}
	for _, o := range all {
		views = append(views, actionView(minor, o))
	}
	doc := map[string]any{"instanceActions": views}
	if more {
		doc["links"] = []any{link("next", openstack.NextLink(r, s.prefix, all[len(all)-1].RequestID))}
	}
	return answer(w, http.StatusOK, doc)
}

// operations are those of the server in the path, the newest first. Those of a server that is gone can
// be read from 2.21 on.
func (s *server) operations(r *http.Request) ([]*operation.Operation, error) {
	id, err := serverID(r)
	if err != nil {
		return nil, err
	}
	if minorOf(r) < 21 {
		if _, _, err := s.compute.Get(r.Context(), id); err != nil {
			return nil, err
		}
	}
	return s.compute.Operations(r.Context(), id)
}

func pageOfActions(r *http.Request, all []*operation.Operation) (page []*operation.Operation, more bool, err error) {
	values := r.URL.Query()
	marker := values.Get("marker")
	values.Del("marker")
	limit, _, err := paging(values)
	if err != nil {
		return nil, false, err
	}
	var since, before time.Time
	if text := values.Get("changes-since"); text != "" {
		if since, err = readTime("changes-since", text); err != nil {
			return nil, false, err
		}
	}
	if text := values.Get("changes-before"); text != "" {
		if minorOf(r) < 66 {
			return nil, false, fault.Errorf(fault.Invalid, "Invalid input for query parameters changes-before. Additional properties are not allowed ('changes-before' was unexpected)")
		}
		if before, err = readTime("changes-before", text); err != nil {
			return nil, false, err
		}
	}
	seen := marker == ""
	for _, o := range all {
		if !seen {
			seen = o.RequestID == marker
			continue
		}
		if o.UpdatedAt.Before(since) || !before.IsZero() && o.UpdatedAt.After(before) {
			continue
		}
		if len(page) == limit {
			return page, limit > 0, nil
		}
		page = append(page, o)
	}
	if !seen {
		return nil, false, fault.Errorf(fault.Invalid, "marker [%s] not found", marker)
	}
	return page, false, nil
}

func (s *server) showAction(w http.ResponseWriter, r *http.Request) error {
	all, err := s.operations(r)
	if err != nil {
		return err
	}
	for _, o := range all {
		if o.RequestID != r.PathValue("request") {
			continue
		}
		view := actionView(minorOf(r), o)
		if minorOf(r) >= 51 || identity.ActorOf(r.Context()).Admin() {
			view["events"] = s.eventViews(r, o)
		}
		return answer(w, http.StatusOK, map[string]any{"instanceAction": view})
	}
	return fault.Errorf(fault.NotFound, "Action for request_id %s on instance %s not found", r.PathValue("request"), r.PathValue("id"))
}

// results are Nova's words for how an event ended.
var results = map[operation.Outcome]any{operation.Running: nil, operation.Succeeded: "Success", operation.Failed: "Error", operation.Cancelled: "Error"}

// eventViews are the steps of an operation; without any, the whole of it is one.
func (s *server) eventViews(r *http.Request, o *operation.Operation) []map[string]any {
	steps := o.Steps
	if len(steps) == 0 {
		steps = []operation.Step{{Name: "compute_" + strings.ReplaceAll(o.Verb, "-", "_"), StartedAt: o.CreatedAt, EndedAt: o.EndedAt,
			Outcome: o.Outcome, Message: o.Message}}
	}
	minor, admin := minorOf(r), identity.ActorOf(r.Context()).Admin()
	views := []map[string]any{}
	for _, step := range steps {
		view := map[string]any{"event": step.Name, "start_time": actionTime(step.StartedAt), "finish_time": nil, "result": results[step.Outcome]}
		if !step.EndedAt.IsZero() {
			view["finish_time"] = actionTime(step.EndedAt)
		}
		if admin || minor < 51 {
			view["traceback"] = nil
		}
		if minor >= 62 {
			h, _ := host.Table().PeekOne(s.compute.State.Latest(), step.HostID)
			view["hostId"] = ""
			if h != nil {
				view["hostId"] = hostIDFor(o.ProjectID, h).String()
			}
			if admin {
				view["host"] = nil
				if h != nil {
					view["host"] = h.Name
				}
			}
		}
		if minor >= 84 {
			view["details"] = orNil(step.Message)
		}
		views = append(views, view)
	}
	return views
}

// guestStates are Nova's words in diagnostics.
var guestStates = map[compute.Power]string{"": "pending", compute.On: "running", compute.Paused: "paused", compute.Off: "shutdown",
	compute.Crashed: "crashed", compute.Suspended: "suspended", compute.Unknown: "pending"}

// showDiagnostics answers what the cloud knows of a guest without asking inside it.
func (s *server) showDiagnostics(w http.ResponseWriter, r *http.Request) error {
	tx, srv, err := s.oneWithView(r)
	if err != nil {
		return err
	}
	if err := identity.Allow(r.Context(), "server.diagnose", srv.Meta); err != nil {
		return err
	}
	if srv.HostID.IsZero() {
		return fault.Errorf(fault.Conflict, "Instance %s is not ready", srv.ID)
	}
	if minorOf(r) < 48 {
		return answer(w, http.StatusOK, map[string]any{"memory": srv.Shape.MemoryMiB * 1024, "memory-actual": srv.Shape.MemoryMiB * 1024})
	}
	var up any
	if at := srv.Seen.StartedAt; !at.IsZero() && srv.Seen.Power == compute.On {
		up = int(s.compute.State.Now().Sub(at).Seconds())
	}
	nics := []map[string]any{}
	for _, p := range compute.Ports(tx, srv) {
		nic := map[string]any{"mac_address": p.MAC}
		for _, word := range []string{"rx_octets", "rx_errors", "rx_drop", "rx_packets", "rx_rate", "tx_octets", "tx_errors", "tx_drop", "tx_packets", "tx_rate"} {
			nic[word] = nil
		}
		nics = append(nics, nic)
	}
	cpus := []map[string]any{}
	for n := range srv.Shape.VCPUs {
		cpus = append(cpus, map[string]any{"id": n, "time": nil, "utilisation": nil})
	}
	disks := 1 + boolInt(srv.Shape.EphemeralGiB > 0) + boolInt(srv.Shape.SwapMiB > 0)
	// "libvirt" is the one of Nova's words that means QEMU.
	return answer(w, http.StatusOK, map[string]any{"state": guestStates[srv.Seen.Power], "driver": "libvirt", "hypervisor": "qemu",
		"hypervisor_os": "linux", "uptime": up, "config_drive": srv.ConfigDrive, "num_cpus": srv.Shape.VCPUs, "num_nics": len(nics),
		"num_disks": disks, "memory_details": map[string]any{"maximum": srv.Shape.MemoryMiB, "used": nil}, "cpu_details": cpus,
		"nic_details": nics, "disk_details": []any{}})
}

// showTopology answers one node of memory with all processors: guests here have no others.
func (s *server) showTopology(w http.ResponseWriter, r *http.Request) error {
	if err := notBefore(r, 78); err != nil {
		return err
	}
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	cpus := []int{}
	for n := range srv.Shape.VCPUs {
		cpus = append(cpus, n)
	}
	node := map[string]any{"memory_mb": srv.Shape.MemoryMiB, "vcpu_set": cpus, "siblings": []any{}}
	topology := map[string]any{"nodes": []any{node}}
	if identity.ActorOf(r.Context()).Admin() {
		topology["pagesize_kb"], node["host_node"], node["cpu_pinning"] = nil, nil, map[string]int{}
	}
	return answer(w, http.StatusOK, topology)
}

func (s *server) listAttachments(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.one(r); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"volumeAttachments": []any{}})
}

func (s *server) showAttachment(w http.ResponseWriter, r *http.Request) error {
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	return fault.Errorf(fault.NotFound, "Instance %s is not attached to volume %s.", srv.ID, r.PathValue("volume"))
}

func (s *server) resize(w http.ResponseWriter, r *http.Request, id resource.ID, b body) error {
	var manual *bool
	if b.has("OS-DCF:diskConfig") {
		is := b.text("OS-DCF:diskConfig") == "MANUAL"
		manual = &is
	}
	if err := s.compute.Reshape(r.Context(), id, b.text("flavorRef"), manual); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) confirmResize(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if err := s.compute.Confirm(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}

func (s *server) revertResize(w http.ResponseWriter, r *http.Request, id resource.ID, _ body) error {
	if err := s.compute.Revert(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

// showAuditLog answers that no usage audit runs: what a server cost is told elsewhere.
func (s *server) listAuditLog(w http.ResponseWriter, r *http.Request) error {
	return s.auditLog(w, r, s.compute.State.Now())
}

func (s *server) showAuditLog(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.list", resource.Meta{}); err != nil {
		return err
	}
	at, err := time.Parse("2006-01-02 15:04:05.999999", r.PathValue("before"))
	if err != nil {
		if at, err = time.Parse("2006-01-02 15:04:05", r.PathValue("before")); err != nil {
			return fault.Errorf(fault.Invalid, "Invalid timestamp for date %s", r.PathValue("before"))
		}
	}
	return s.auditLog(w, r, at)
}

func (s *server) auditLog(w http.ResponseWriter, r *http.Request, before time.Time) error {
	_, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	names := []string{}
	for _, h := range all {
		names = append(names, h.Name)
	}
	before = before.UTC()
	end := time.Date(before.Year(), before.Month(), 1, 0, 0, 0, 0, time.UTC)
	word := "instance_usage_audit_logs"
	if r.PathValue("before") != "" {
		word = "instance_usage_audit_log"
	}
	return answer(w, http.StatusOK, map[string]any{word: map[string]any{
		"hosts_not_run": names, "log": map[string]any{}, "num_hosts": len(names), "num_hosts_done": 0, "num_hosts_not_run": len(names),
		"num_hosts_running": 0, "overall_status": "0 of 0 hosts done. 0 errors.", "total_errors": 0, "total_instances": 0,
		"period_beginning": end.AddDate(0, -1, 0).Format("2006-01-02 15:04:05"), "period_ending": end.Format("2006-01-02 15:04:05")}})
}

// externalEvent is something that another service tells of a server.
var externalEvent = object(need("name", oneOf("network-changed", "network-vif-plugged", "network-vif-unplugged", "network-vif-deleted",
	"volume-extended", "power-update", "accelerator-request-bound")), need("server_uuid", uuid), may("status", oneOf("failed", "completed", "in-progress")),
	may("tag", text(1, 255)))

// externalEvents takes in what other services tell. What they could tell is known here already, so that there is
// nothing more to be done than to say which servers there are.
func (s *server) externalEvents(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	b, err := read(r, object(need("events", list(externalEvent, 1, 0))))
	if err != nil {
		return err
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	views, status, found := []map[string]any{}, http.StatusOK, 0
	for _, item := range b.list("events") {
		m, _ := item.(map[string]any)
		e := body(m)
		view := map[string]any{"name": e.text("name"), "server_uuid": e.text("server_uuid"), "status": "completed", "code": http.StatusOK}
		if e.has("status") {
			view["status"] = e.text("status")
		}
		if e.has("tag") {
			view["tag"] = e.text("tag")
		}
		switch srv, ok := compute.Servers().PeekOne(tx, e.id("server_uuid")); {
		case !ok:
			view["status"], view["code"], status = "failed", http.StatusNotFound, http.StatusMultiStatus
		case srv.HostID.IsZero():
			view["status"], view["code"], status = "failed", http.StatusUnprocessableEntity, http.StatusMultiStatus
		default:
			found++
		}
		views = append(views, view)
	}
	if found == 0 {
		return fault.Errorf(fault.NotFound, "No instances found for any event")
	}
	return answer(w, status, map[string]any{"events": views})
}

// showPassword answers what a guest has told of the password that it made, encrypted for its key.
func (s *server) showPassword(w http.ResponseWriter, r *http.Request) error {
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	told, err := s.compute.ToldPassword(r.Context(), srv.ID)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]string{"password": told})
}

func (s *server) deletePassword(w http.ResponseWriter, r *http.Request) error {
	srv, err := s.one(r)
	if err != nil {
		return err
	}
	if err := s.compute.ForgetPassword(r.Context(), srv.ID); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}
