package nova

import (
	"encoding/json"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// binary is what Nova calls the program on each host.
const binary = "nova-compute"

// numberOf is a host's ID where Nova wants a number (below 2.53).
func numberOf(h *host.Host) int { return int(crc32.ChecksumIEEE(h.ID[:])>>1) + 1 }

func hostIDView(r *http.Request, h *host.Host) any {
	if minorOf(r) >= 53 {
		return h.ID.String()
	}
	return numberOf(h)
}

func enabled(h *host.Host) string {
	if h.Disabled {
		return "disabled"
	}
	return "enabled"
}

func upDown(h *host.Host) string {
	if h.Up() {
		return "up"
	}
	return "down"
}

// hosts gives an operator every host, by name.
func (s *server) hosts(r *http.Request, action string) (*state.Tx, []*host.Host, error) {
	if err := identity.Allow(r.Context(), action, resource.Meta{}); err != nil {
		return nil, nil, err
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return nil, nil, err
	}
	var all []*host.Host
	for h := range host.Table().Range(tx, "name", state.Range{}) {
		all = append(all, h)
	}
	return tx, all, nil
}

func serviceView(r *http.Request, tx *state.Tx, h *host.Host) map[string]any {
	view := map[string]any{"id": hostIDView(r, h), "binary": binary, "host": h.Name, "zone": compute.ZonesOf(tx).Of(h), "status": enabled(h),
		"state": upDown(h), "updated_at": isoTime(h.UpdatedAt), "disabled_reason": orNil(h.DisabledReason)}
	if minorOf(r) >= 11 {
		view["forced_down"] = h.Dead()
	}
	return view
}

func (s *server) listServices(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "host", "binary"); err != nil {
		return err
	}
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	values := r.URL.Query()
	views := []map[string]any{}
	for _, h := range all {
		if (values.Has("host") && values.Get("host") != h.Name) || values.Has("binary") && values.Get("binary") != binary {
			continue
		}
		views = append(views, serviceView(r, tx, h))
	}
	return answer(w, http.StatusOK, map[string]any{"services": views})
}

var (
	oldServiceBody = open(need("host", pattern(1, 255, `^[a-zA-Z0-9-._]*$`)), need("binary", text(1, 255)), may("disabled_reason", text(1, 255)),
		may("forced_down", boolean))
	serviceBody = object(may("status", oneOf("enabled", "disabled")), may("disabled_reason", text(1, 255)), may("forced_down", boolean))
)

// updateService keeps new servers off a host, or lets them on it again. Before 2.53 the path says which.
func (s *server) updateService(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	if minorOf(r) < 53 {
		return s.updateOldService(w, r)
	}
	b, err := read(r, serviceBody)
	if err != nil {
		return err
	}
	id, err := pathID(r, "id", "Service")
	if err != nil {
		return fault.Errorf(fault.Invalid, "Invalid uuid %s", r.PathValue("id"))
	}
	hosts := host.Service{State: s.compute.State}
	if b.has("forced_down") {
		if err := forceDown(r, &hosts, id, b.bool("forced_down")); err != nil {
			return err
		}
		if !b.has("status") && !b.has("disabled_reason") {
			return s.answerService(w, r, id)
		}
	}
	if !b.has("status") || b.has("disabled_reason") && b.text("status") != "disabled" {
		return fault.Errorf(fault.Invalid, "Specifying disabled_reason requires that status is 'disabled'.")
	}
	if err := hosts.SetDisabled(r.Context(), id, b.text("status") == "disabled", b.text("disabled_reason")); err != nil {
		return err
	}
	return s.answerService(w, r, id)
}

// forceDown takes the word of whoever has fenced a host: that is what Nova's clients say it for. A host that can be heard is not
// down, and one that is dead is up again when it is heard.
func forceDown(r *http.Request, hosts *host.Service, id resource.ID, down bool) error {
	h, err := hosts.Get(r.Context(), id)
	switch {
	case err != nil:
		return err
	case down && h.Up():
		return fault.Errorf(fault.Invalid, "A host is down when it cannot be heard; %s can be.", h.Name)
	case down:
		_, err := hosts.Vouch(r.Context(), id)
		return err
	case h.Dead():
		return fault.Errorf(fault.Invalid, "Host %s is up again when it is heard.", h.Name)
	}
	return nil
}

func (s *server) answerService(w http.ResponseWriter, r *http.Request, id resource.ID) error {
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	h, ok := host.Find(tx, id)
	if !ok {
		return fault.Missing("Service", id)
	}
	return answer(w, http.StatusOK, map[string]any{"service": serviceView(r, tx, h)})
}

func (s *server) updateOldService(w http.ResponseWriter, r *http.Request) error {
	what := r.PathValue("id")
	disable := what == "disable" || what == "disable-log-reason"
	forced := what == "force-down" && minorOf(r) >= 11
	if what != "enable" && !disable && !forced {
		return fault.Errorf(fault.NotFound, "Unknown action")
	}
	b, err := read(r, oldServiceBody)
	if err != nil {
		return err
	}
	if what == "disable-log-reason" && !b.has("disabled_reason") {
		return fault.Errorf(fault.Invalid, "Missing disabled reason field")
	}
	h, ok := host.ByName(s.compute.State.Latest(), b.text("host"))
	if !ok || b.text("binary") != binary {
		return fault.Errorf(fault.NotFound, "Could not find binary %s on host %s.", b.text("binary"), b.text("host"))
	}
	hosts := host.Service{State: s.compute.State}
	if forced {
		if !b.has("forced_down") {
			return fault.Errorf(fault.Invalid, "Missing forced_down field")
		}
		if err := forceDown(r, &hosts, h.ID, b.bool("forced_down")); err != nil {
			return err
		}
		return answer(w, http.StatusOK, map[string]any{"service": map[string]any{"host": h.Name, "binary": binary, "forced_down": b.bool("forced_down")}})
	}
	if err := hosts.SetDisabled(r.Context(), h.ID, disable, b.text("disabled_reason")); err != nil {
		return err
	}
	view := map[string]any{"host": h.Name, "binary": binary, "status": "enabled"}
	if disable {
		view["status"] = "disabled"
	}
	if what == "disable-log-reason" {
		view["disabled_reason"] = b.text("disabled_reason")
	}
	return answer(w, http.StatusOK, map[string]any{"service": view})
}

// deleteService takes a host out of the cloud.
func (s *server) deleteService(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.delete", resource.Meta{}); err != nil {
		return err
	}
	id, err := pathID(r, "id", "Service")
	if err != nil {
		return err
	}
	err = s.compute.DismissHost(r.Context(), id)
	switch {
	case fault.Is(err, fault.NotFound):
		return fault.Errorf(fault.NotFound, "Service %s could not be found.", id)
	case err != nil:
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// hypervisorView is a host as a microversion shows it.
func (s *server) hypervisorView(r *http.Request, tx *state.Tx, h *host.Host, detail bool) map[string]any {
	minor := minorOf(r)
	view := map[string]any{"id": hostIDView(r, h), "hypervisor_hostname": h.Name, "state": upDown(h), "status": enabled(h)}
	if minor >= 53 && r.URL.Query().Has("with_servers") && boolish[r.URL.Query().Get("with_servers")] {
		if on := serversOn(tx, h.ID); len(on) > 0 || minor >= 75 {
			view["servers"] = on
		}
	}
	if !detail {
		return view
	}
	count, used := compute.Load(tx, h)
	c := h.Capacity
	address := ""
	if h.Address.IsValid() {
		address = h.Address.String()
	}
	view["host_ip"], view["hypervisor_type"], view["hypervisor_version"] = orLoopback(address), strings.ToUpper(c.Driver), releaseNumber(c.Release)
	view["service"] = map[string]any{"host": h.Name, "id": hostIDView(r, h), "disabled_reason": orNil(h.DisabledReason)}
	if minor >= 88 {
		view["uptime"] = uptime(h)
		return view
	}
	view["vcpus"], view["vcpus_used"] = c.VCPUs, used[0]
	view["memory_mb"], view["memory_mb_used"], view["free_ram_mb"] = c.MemoryMiB, used[1], int64(c.MemoryMiB)-used[1]
	view["local_gb"], view["local_gb_used"], view["free_disk_gb"] = c.DiskGiB, used[2], int64(c.DiskGiB)-used[2]
	view["disk_available_least"], view["running_vms"], view["current_workload"] = int64(c.DiskGiB)-used[2], count, 0
	info := map[string]any{"arch": c.Arch, "model": c.CPUModel, "vendor": "", "features": []string{}, "topology": map[string]int{"cores": c.VCPUs, "threads": 1, "sockets": 1}}
	view["cpu_info"] = info
	if minor < 28 {
		text, err := json.Marshal(info)
		if err == nil {
			view["cpu_info"] = string(text)
		}
	}
	return view
}

func orLoopback(address string) string {
	if address == "" {
		return "127.0.0.1" // a host that carries no other host's traffic
	}
	return address
}

// releaseNumber is "7.2.1" as 7002001.
func releaseNumber(release string) int {
	n := 0
	parts := strings.SplitN(release, ".", 3)
	for i := range 3 {
		part := 0
		if i < len(parts) {
			digits := strings.IndexFunc(parts[i]+"x", func(c rune) bool { return c < '0' || c > '9' })
			part, _ = strconv.Atoi(parts[i][:digits]) // no digits: 0
		}
		n = n*1000 + part%1000
	}
	return max(n, 1)
}

// uptime tells, as the program of that name does, since when the host has been here.
func uptime(h *host.Host) any {
	if !h.Up() {
		return nil
	}
	up := h.UpdatedAt.Sub(h.Joined).Round(time.Minute)
	return h.UpdatedAt.UTC().Format("15:04:05") + " up " + up.String()
}

func serversOn(tx *state.Tx, id resource.ID) []map[string]string {
	on := []map[string]string{}
	for srv := range compute.Servers().Peek(tx, "host", state.Range{Prefix: state.KeyOf(id)}) {
		on = append(on, map[string]string{"name": instanceName(srv.ID), "uuid": srv.ID.String()})
	}
	return on
}

func (s *server) listHypervisors(w http.ResponseWriter, r *http.Request) error {
	return s.hypervisors(w, r, false)
}

func (s *server) listHypervisorsDetail(w http.ResponseWriter, r *http.Request) error {
	return s.hypervisors(w, r, true)
}

func (s *server) hypervisors(w http.ResponseWriter, r *http.Request, detail bool) error {
	minor := minorOf(r)
	if err := onlyKnown(r, 53, "limit", "marker", "hypervisor_hostname_pattern", "with_servers"); err != nil {
		return err
	}
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	values := r.URL.Query()
	if minor >= 53 && values.Has("hypervisor_hostname_pattern") {
		part := values.Get("hypervisor_hostname_pattern")
		if values.Has("limit") || values.Has("marker") {
			return fault.Errorf(fault.Invalid, "Paging over hypervisors with the hypervisor_hostname_pattern query parameter is not supported.")
		}
		if all = named(all, part); len(all) == 0 {
			return fault.Errorf(fault.NotFound, "No hypervisor matching '%s' could be found.", part)
		}
	}
	more := false
	if minor >= 33 {
		if all, more, err = pageOfHosts(r, all); err != nil {
			return err
		}
	}
	views := []map[string]any{}
	for _, h := range all {
		views = append(views, s.hypervisorView(r, tx, h, detail))
	}
	doc := map[string]any{"hypervisors": views}
	if more {
		last := all[len(all)-1]
		marker := last.ID.String()
		if minor < 53 {
			marker = strconv.Itoa(numberOf(last))
		}
		doc["hypervisors_links"] = []any{link("next", openstack.NextLink(r, s.prefix, marker))}
	}
	return answer(w, http.StatusOK, doc)
}

func named(all []*host.Host, part string) []*host.Host {
	var found []*host.Host
	for _, h := range all {
		if strings.Contains(h.Name, part) {
			found = append(found, h)
		}
	}
	return found
}

// is reports whether a text names the host, in the way of the microversion.
func isHost(minor int, h *host.Host, text string) bool {
	if minor >= 53 {
		return h.ID.String() == text
	}
	return strconv.Itoa(numberOf(h)) == text
}

func pageOfHosts(r *http.Request, all []*host.Host) (page []*host.Host, more bool, err error) {
	values := r.URL.Query()
	marker := values.Get("marker")
	values.Del("marker")
	limit, _, err := paging(values)
	if err != nil {
		return nil, false, err
	}
	if marker != "" {
		at := -1
		for i, h := range all {
			if isHost(minorOf(r), h, marker) {
				at = i
			}
		}
		if at < 0 {
			return nil, false, fault.Errorf(fault.Invalid, "marker [%s] not found", marker)
		}
		all = all[at+1:]
	}
	if len(all) > limit {
		return all[:limit], limit > 0, nil
	}
	return all, false, nil
}

func (s *server) showHypervisor(w http.ResponseWriter, r *http.Request) error {
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	for _, h := range all {
		if isHost(minorOf(r), h, id) {
			return answer(w, http.StatusOK, map[string]any{"hypervisor": s.hypervisorView(r, tx, h, true)})
		}
	}
	return noHypervisor(r, id)
}

func noHypervisor(r *http.Request, id string) error {
	if _, err := resource.ParseID(id); err != nil && minorOf(r) >= 53 {
		return fault.Errorf(fault.Invalid, "Invalid uuid %s", id)
	}
	return fault.Errorf(fault.NotFound, "Hypervisor with ID '%s' could not be found.", id)
}

func (s *server) showHypervisorStatistics(w http.ResponseWriter, r *http.Request) error {
	if err := notAfter(r, 87); err != nil {
		return err
	}
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	sum := map[string]int64{}
	for _, word := range []string{"count", "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used",
		"free_disk_gb", "disk_available_least", "running_vms", "current_workload"} {
		sum[word] = 0
	}
	for _, h := range all {
		if h.Disabled {
			continue
		}
		count, used := compute.Load(tx, h)
		for word, n := range map[string]int64{"count": 1, "vcpus": int64(h.Capacity.VCPUs), "vcpus_used": used[0], "memory_mb": int64(h.Capacity.MemoryMiB),
			"memory_mb_used": used[1], "free_ram_mb": int64(h.Capacity.MemoryMiB) - used[1], "local_gb": int64(h.Capacity.DiskGiB), "local_gb_used": used[2],
			"free_disk_gb": int64(h.Capacity.DiskGiB) - used[2], "disk_available_least": int64(h.Capacity.DiskGiB) - used[2], "running_vms": count} {
			sum[word] += n
		}
	}
	return answer(w, http.StatusOK, map[string]any{"hypervisor_statistics": sum})
}

// showHypervisorPart answers what stands below one hypervisor: its uptime, or, found by a part of its
// name, itself or its servers.
func (s *server) showHypervisorPart(w http.ResponseWriter, r *http.Request) error {
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	id, part := r.PathValue("id"), r.PathValue("part")
	switch {
	case part == "uptime":
		if err := notAfter(r, 87); err != nil {
			return err
		}
		for _, h := range all {
			if !isHost(minorOf(r), h, id) {
				continue
			}
			up := uptime(h)
			if up == nil {
				return fault.Errorf(fault.Invalid, "Host %s cannot be heard.", h.Name)
			}
			view := s.hypervisorView(r, tx, h, false)
			view["uptime"] = up
			return answer(w, http.StatusOK, map[string]any{"hypervisor": view})
		}
		return noHypervisor(r, id)
	case part == "search" || part == "servers":
		if err := notAfter(r, 52); err != nil {
			return err
		}
		found := named(all, id)
		if len(found) == 0 {
			return fault.Errorf(fault.NotFound, "No hypervisor matching '%s' could be found.", id)
		}
		views := []map[string]any{}
		for _, h := range found {
			view := s.hypervisorView(r, tx, h, false)
			if on := serversOn(tx, h.ID); part == "servers" && len(on) > 0 {
				view["servers"] = on
			}
			views = append(views, view)
		}
		return answer(w, http.StatusOK, map[string]any{"hypervisors": views})
	}
	return absent()
}
