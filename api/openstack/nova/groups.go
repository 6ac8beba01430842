package nova

import (
	"net/http"
	"strconv"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

var (
	hardPolicies = oneOf("affinity", "anti-affinity")
	allPolicies  = oneOf("affinity", "anti-affinity", "soft-affinity", "soft-anti-affinity")
	newGroup     = object(
		need("name", name),
		since(1, until(14, need("policies", list(hardPolicies, 1, 1)))),
		since(15, until(63, need("policies", list(allPolicies, 1, 1)))),
		since(64, need("policy", allPolicies)),
		since(64, may("rules", object(may("max_server_per_host", number(1, maxInt))))),
	)
)

func groupView(minor int, g compute.GroupView) map[string]any {
	members := []string{}
	for _, id := range g.Members {
		members = append(members, id.String())
	}
	view := map[string]any{"id": g.ID.String(), "name": g.Name, "members": members}
	if minor >= 13 {
		view["project_id"], view["user_id"] = g.ProjectID.Hex(), g.UserID.Hex()
	}
	if minor < 64 {
		view["policies"], view["metadata"] = []string{string(g.Policy)}, map[string]string{}
		return view
	}
	rules := map[string]int{}
	if g.MaxPerHost > 0 {
		rules["max_server_per_host"] = g.MaxPerHost
	}
	view["policy"], view["rules"] = string(g.Policy), rules
	return view
}

func (s *server) createGroup(w http.ResponseWriter, r *http.Request) error {
	b, err := wrapped(r, "server_group", newGroup)
	if err != nil {
		return err
	}
	g := compute.Group{Meta: resource.Meta{Name: b.text("name")}, Policy: compute.Policy(b.text("policy"))}
	if policies := b.texts("policies"); len(policies) == 1 {
		g.Policy = compute.Policy(policies[0])
	}
	g.MaxPerHost = b.object("rules").int("max_server_per_host", 0)
	made, err := s.compute.CreateGroup(r.Context(), g)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"server_group": groupView(minorOf(r), compute.GroupView{Group: made})})
}

func (s *server) listGroups(w http.ResponseWriter, r *http.Request) error {
	if err := onlyKnown(r, 75, "all_projects", "limit", "offset"); err != nil {
		return err
	}
	values := r.URL.Query()
	limit, _, err := paging(values)
	if err != nil {
		return err
	}
	skip := 0
	if text := values.Get("offset"); text != "" {
		if skip, err = strconv.Atoi(text); err != nil || skip < 0 {
			return fault.Errorf(fault.Invalid, "Invalid input for query parameters offset. Value: %s.", text)
		}
	}
	all, err := s.compute.ListGroups(r.Context(), query.List{Limit: limit}, values.Has("all_projects"), skip)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, g := range all {
		views = append(views, groupView(minorOf(r), g))
	}
	return answer(w, http.StatusOK, map[string]any{"server_groups": views})
}

func (s *server) showGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r, "id", "Instance group")
	if err != nil {
		return err
	}
	g, err := s.compute.Group(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"server_group": groupView(minorOf(r), g)})
}

func (s *server) deleteGroup(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r, "id", "Instance group")
	if err != nil {
		return err
	}
	if err := s.compute.DeleteGroup(r.Context(), id); err != nil {
		return err
	}
	return accepted(w, http.StatusNoContent)
}
