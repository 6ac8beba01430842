package placement

import (
	"net/http"

	"github.com/unkai-cloud/unkai/core/compute"
)

// listCandidates answers on which hosts there is room for what is asked. Those that nothing new is put on are left out.
func (s *server) listCandidates(w http.ResponseWriter, r *http.Request) error {
	minor := minorOf(r)
	values, err := ask(r, func(name string) bool {
		since, wide := wideParameters[name]
		_, grouped := groupOf(name, minor)
		return grouped || wide && minor >= since
	})
	if err != nil {
		return err
	}
	q, err := readCandidates(values, minor)
	if err != nil {
		return err
	}
	needs := []compute.Need{q.root.Need}
	amounts, mappings := map[string]int64{}, map[string]bool{}
	for _, g := range q.groups {
		needs = append(needs, g.Need)
		mappings[g.suffix] = true
		for class, n := range g.Amounts {
			amounts[class] += n
		}
	}
	found, err := s.compute.Candidates(r.Context(), needs, q.limit)
	if err != nil {
		return err
	}
	if q.apart {
		found = nil
	}
	requests, summaries := []any{}, object{}
	for _, p := range found {
		requests = append(requests, requestView(minor, p, amounts, mappings))
		summaries[p.Host.ID.String()] = summaryView(minor, p, amounts)
	}
	return answer(w, r, http.StatusOK, s.now(), object{"allocation_requests": requests, "provider_summaries": summaries})
}

// requestView is what would be allocated if the server came there.
func requestView(minor int, p *compute.Provider, amounts map[string]int64, groups map[string]bool) object {
	uuid := p.Host.ID.String()
	if minor < 12 {
		return object{"allocations": []any{object{"resource_provider": object{"uuid": uuid}, "resources": amounts}}}
	}
	view := object{"allocations": object{uuid: object{"resources": amounts}}}
	if minor >= 34 {
		mappings := object{}
		for suffix := range groups {
			mappings[suffix] = []string{uuid}
		}
		view["mappings"] = mappings
	}
	return view
}

func summaryView(minor int, p *compute.Provider, amounts map[string]int64) object {
	resources := object{}
	for class, v := range p.Inventory {
		if _, asked := amounts[class]; asked || minor >= 27 {
			resources[class] = object{"capacity": v.Capacity(), "used": p.Used[class]}
		}
	}
	view := object{"resources": resources}
	if minor >= 17 {
		view["traits"] = p.Host.AllTraits()
	}
	if minor >= 29 {
		view["parent_provider_uuid"], view["root_provider_uuid"] = nil, p.Host.ID.String()
	}
	return view
}
