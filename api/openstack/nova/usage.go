package nova

import (
	"math"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

const usageTime = "2006-01-02T15:04:05.000000"

// usageSpan reads of when, and from 2.40 on which page (os-simple-tenant-usage). A time that is left out is now.
func usageSpan(r *http.Request, now time.Time, project resource.ID) (compute.Span, error) {
	q := compute.Span{ProjectID: project, From: now.Add(-time.Microsecond), Until: now}
	if err := onlyKnown(r, 75, "start", "end", "detailed", "limit", "marker"); err != nil {
		return q, err
	}
	values := r.URL.Query()
	for name, into := range map[string]*time.Time{"start": &q.From, "end": &q.Until} {
		text := values.Get(name)
		if text == "" {
			continue
		}
		var err error
		for _, layout := range []string{"2006-01-02T15:04:05", "2006-01-02 15:04:05"} { // with or without parts of a second
			if *into, err = time.Parse(layout, text); err == nil {
				break
			}
		}
		if err != nil {
			return q, fault.Errorf(fault.Invalid, "Datetime is in invalid format")
		}
	}
	if !q.From.Before(q.Until) {
		return q, fault.Errorf(fault.Invalid, "Invalid start time. The start time cannot occur after the end time.")
	}
	if minorOf(r) < 40 {
		return q, nil
	}
	var err error
	if q.Most, q.After, err = paging(values); q.Most == 0 {
		q.Most = pageSize
	}
	return q, err
}

// listUsage is what every project used, or one page of servers did; the servers themselves only if asked for.
func (s *server) listUsage(w http.ResponseWriter, r *http.Request) error {
	now := s.compute.State.Now().UTC()
	q, err := usageSpan(r, now, resource.ID{})
	if err != nil {
		return err
	}
	all, more, err := s.compute.Uses(r.Context(), q)
	if err != nil {
		return err
	}
	var order []resource.ID
	projects := map[resource.ID][]*compute.Use{}
	for _, u := range all {
		if projects[u.ProjectID] == nil {
			order = append(order, u.ProjectID)
		}
		projects[u.ProjectID] = append(projects[u.ProjectID], u)
	}
	list := []any{}
	for _, id := range order {
		list = append(list, s.usageView(q, now, id, projects[id], r.URL.Query().Get("detailed") == "1"))
	}
	doc := map[string]any{"tenant_usages": list}
	if more {
		doc["tenant_usages_links"] = []any{link("next", openstack.NextLink(r, s.prefix, all[len(all)-1].ID.String()))}
	}
	return answer(w, http.StatusOK, doc)
}

func (s *server) showUsage(w http.ResponseWriter, r *http.Request) error {
	project, err := projectOf(r, r.PathValue("id"))
	if err != nil {
		return err
	}
	now := s.compute.State.Now().UTC()
	q, err := usageSpan(r, now, project)
	if err != nil {
		return err
	}
	all, more, err := s.compute.Uses(r.Context(), q)
	if err != nil {
		return err
	}
	// Nova leaves all out when there is nothing to add up; its client then ends with a traceback.
	doc := map[string]any{"tenant_usage": s.usageView(q, now, project, all, true)}
	if more {
		doc["tenant_usage_links"] = []any{link("next", openstack.NextLink(r, s.prefix, all[len(all)-1].ID.String()))}
	}
	return answer(w, http.StatusOK, doc)
}

// usageView sums up the uses of one project.
func (s *server) usageView(q compute.Span, now time.Time, project resource.ID, all []*compute.Use, detailed bool) map[string]any {
	var hours, cpus, memory, disk float64
	each := []any{}
	for _, u := range all {
		h := u.Hours(q.From, earlier(q.Until, now)) // what is still to come was not used
		hours += h
		cpus += h * float64(u.VCPUs)
		memory += h * float64(u.MemoryMiB)
		disk += h * float64(u.DiskGiB)
		state, ended, until := "terminated", any(u.Until.UTC().Format(usageTime)), u.Until
		if u.Until.IsZero() {
			state, ended, until = s.vmState(u.ID), nil, now
		}
		each = append(each, map[string]any{"instance_id": u.ID.String(), "name": u.Name, "tenant_id": u.ProjectID.Hex(), "flavor": u.Flavor,
			"vcpus": u.VCPUs, "memory_mb": u.MemoryMiB, "local_gb": u.DiskGiB, "hours": h, "state": state,
			"started_at": u.From.UTC().Format(usageTime), "ended_at": ended, "uptime": int(math.Max(0, until.Sub(u.From).Seconds()))})
	}
	view := map[string]any{"tenant_id": project.Hex(), "start": q.From.UTC().Format(usageTime), "stop": q.Until.UTC().Format(usageTime),
		"total_hours": hours, "total_vcpus_usage": cpus, "total_memory_mb_usage": memory, "total_local_gb_usage": disk}
	if detailed {
		view["server_usages"] = each
	}
	return view
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// vmState is Nova's word for how a server stands now.
func (s *server) vmState(id resource.ID) string {
	srv, ok := compute.Servers().PeekOne(s.compute.State.Latest(), id)
	if !ok {
		return "terminated" // since we looked
	}
	return vmStates[srv.Stage()]
}
