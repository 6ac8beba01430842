package nova

import (
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) listHosts(w http.ResponseWriter, r *http.Request) error {
	tx, all, err := s.hosts(r, "host.list")
	if err != nil {
		return err
	}
	zones := compute.ZonesOf(tx)
	views := []map[string]string{}
	for _, h := range all {
		if zone := r.URL.Query().Get("zone"); zone == "" || zone == zones.Of(h) {
			views = append(views, map[string]string{"host_name": h.Name, "service": "compute", "zone": zones.Of(h)})
		}
	}
	return answer(w, http.StatusOK, map[string]any{"hosts": views})
}

// hostNamed finds the host that the path names.
func hostNamed(tx *state.Tx, r *http.Request) (*host.Host, error) {
	h, ok := host.ByName(tx, r.PathValue("name"))
	if !ok {
		return nil, fault.Errorf(fault.NotFound, "Compute host %s could not be found.", r.PathValue("name"))
	}
	return h, nil
}

func (s *server) showHost(w http.ResponseWriter, r *http.Request) error {
	tx, _, err := s.hosts(r, "host.get")
	if err != nil {
		return err
	}
	h, err := hostNamed(tx, r)
	if err != nil {
		return err
	}
	_, used := compute.Load(tx, h)
	line := func(project string, cpu, memory, disk int64) map[string]any {
		return map[string]any{"resource": map[string]any{"host": h.Name, "project": project, "cpu": cpu, "memory_mb": memory, "disk_gb": disk}}
	}
	return answer(w, http.StatusOK, map[string]any{"host": []any{
		line("(total)", int64(h.Capacity.VCPUs), int64(h.Capacity.MemoryMiB), int64(h.Capacity.DiskGiB)),
		line("(used_now)", used[0], used[1], used[2]), line("(used_max)", used[0], used[1], used[2])}})
}

var hostUpdate = object(may("status", pattern(0, 255, `^(?i)\s*(enable|disable)\s*$`)), may("maintenance_mode", pattern(0, 255, `^(?i)\s*(enable|disable)\s*$`)))

func (s *server) updateHost(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	b, err := read(r, hostUpdate)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return wrong("body", map[string]any{}, "It does not have enough properties")
	}
	h, err := hostNamed(s.compute.State.Latest(), r)
	if err != nil {
		return err
	}
	if b.has("maintenance_mode") {
		return fault.Errorf(fault.Unsupported, "Virt driver does not implement host maintenance mode.").WithCode("not-implemented")
	}
	disable := strings.EqualFold(strings.TrimSpace(b.text("status")), "disable")
	hosts := host.Service{State: s.compute.State}
	if err := hosts.SetDisabled(r.Context(), h.ID, disable, ""); err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"host": h.Name, "status": map[bool]string{true: "disabled", false: "enabled"}[disable]})
}

// powerHost is for switching hosts themselves, which is not the cloud's to do.
func (s *server) powerHost(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "host.update", resource.Meta{}); err != nil {
		return err
	}
	switch r.PathValue("verb") {
	case "startup", "shutdown", "reboot":
		if _, err := hostNamed(s.compute.State.Latest(), r); err != nil {
			return err
		}
		return fault.Errorf(fault.Unsupported, "Virt driver does not implement host power management.").WithCode("not-implemented")
	}
	return absent()
}
