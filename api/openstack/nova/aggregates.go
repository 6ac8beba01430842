package nova

import (
	"maps"
	"net/http"
	"strconv"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

var (
	zoneName        = orNull(pattern(1, 255, `^[^:]+$`))
	newAggregate    = object(need("name", name), may("availability_zone", zoneName))
	changeAggregate = object(may("name", name), may("availability_zone", zoneName))
	hostBody        = object(need("host", pattern(1, 255, `^[a-zA-Z0-9-._]*$`)))
	aggregateBodies = object(may("add_host", hostBody), may("remove_host", hostBody),
		may("set_metadata", object(need("metadata", pairs(`^[a-zA-Z0-9-_:. ]{1,255}$`, orNull(text(0, 255)))))))
)

// zoneKey is the metadata in which an aggregate's zone shows.
const zoneKey = "availability_zone"

func aggregateView(tx *state.Tx, minor int, a *compute.Aggregate) map[string]any {
	hosts := []string{}
	for _, id := range a.Hosts {
		if h, ok := host.Table().PeekOne(tx, id); ok {
			hosts = append(hosts, h.Name)
		}
	}
	metadata := map[string]string{}
	maps.Copy(metadata, a.Metadata)
	if a.Zone != "" {
		metadata[zoneKey] = a.Zone
	}
	view := map[string]any{"id": a.Number, "name": a.Name, "availability_zone": orNil(a.Zone), "hosts": hosts, "metadata": metadata,
		"created_at": isoTime(a.CreatedAt), "updated_at": nil, "deleted": false, "deleted_at": nil}
	if a.UpdatedAt.After(a.CreatedAt) {
		view["updated_at"] = isoTime(a.UpdatedAt)
	}
	if minor >= 41 {
		view["uuid"] = a.ID.String()
	}
	return view
}

func (s *server) writeAggregate(w http.ResponseWriter, r *http.Request, a *compute.Aggregate, err error) error {
	if err != nil {
		return err
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"aggregate": aggregateView(tx, minorOf(r), a)})
}

// aggregateNumber reads the aggregate in the path; who is no operator is told so first.
func aggregateNumber(r *http.Request, action string) (int, error) {
	if err := identity.Allow(r.Context(), action, resource.Meta{}); err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		return 0, fault.Errorf(fault.NotFound, "Aggregate %s could not be found.", r.PathValue("id"))
	}
	return n, nil
}

func (s *server) listAggregates(w http.ResponseWriter, r *http.Request) error {
	all, err := s.compute.ListAggregates(r.Context())
	if err != nil {
		return err
	}
	tx, err := s.compute.State.View(r.Context())
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, a := range all {
		views = append(views, aggregateView(tx, minorOf(r), a))
	}
	return answer(w, http.StatusOK, map[string]any{"aggregates": views})
}

func (s *server) showAggregate(w http.ResponseWriter, r *http.Request) error {
	n, err := aggregateNumber(r, "aggregate.get")
	if err != nil {
		return err
	}
	a, err := s.compute.Aggregate(r.Context(), n)
	return s.writeAggregate(w, r, a, err)
}

func (s *server) createAggregate(w http.ResponseWriter, r *http.Request) error {
	if err := identity.Allow(r.Context(), "aggregate.create", resource.Meta{}); err != nil {
		return err
	}
	b, err := wrapped(r, "aggregate", newAggregate)
	if err != nil {
		return err
	}
	a, err := s.compute.CreateAggregate(r.Context(), b.text("name"), b.text("availability_zone"))
	if err != nil {
		return err
	}
	view := aggregateView(s.compute.State.Latest(), minorOf(r), a)
	delete(view, "hosts") // what Nova leaves out of this one answer
	delete(view, "metadata")
	return answer(w, http.StatusOK, map[string]any{"aggregate": view})
}

func (s *server) updateAggregate(w http.ResponseWriter, r *http.Request) error {
	n, err := aggregateNumber(r, "aggregate.update")
	if err != nil {
		return err
	}
	b, err := wrapped(r, "aggregate", changeAggregate)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return wrong("aggregate", map[string]any{}, "It does not have enough properties")
	}
	a, err := s.compute.UpdateAggregate(r.Context(), n, b.pointer("name"), b.pointer("availability_zone"))
	return s.writeAggregate(w, r, a, err)
}

func (s *server) deleteAggregate(w http.ResponseWriter, r *http.Request) error {
	n, err := aggregateNumber(r, "aggregate.delete")
	if err != nil {
		return err
	}
	if err := s.compute.DeleteAggregate(r.Context(), n); err != nil {
		return err
	}
	return accepted(w, http.StatusOK)
}

func (s *server) aggregateAction(w http.ResponseWriter, r *http.Request) error {
	n, err := aggregateNumber(r, "aggregate.update")
	if err != nil {
		return err
	}
	b, err := read(r, aggregateBodies)
	if err != nil {
		return err
	}
	if len(b) != 1 {
		return fault.Errorf(fault.Invalid, "Malformed request body: it must name one action.")
	}
	var a *compute.Aggregate
	switch {
	case b.has("add_host"):
		a, err = s.compute.AddHost(r.Context(), n, b.object("add_host").text("host"))
	case b.has("remove_host"):
		a, err = s.compute.RemoveHost(r.Context(), n, b.object("remove_host").text("host"))
	default:
		m := b.object("set_metadata").object("metadata")
		set := map[string]*string{}
		var zone *string
		for key, value := range m {
			text, ok := value.(string)
			switch {
			case key == zoneKey:
				zone = &text
			case ok:
				set[key] = &text
			default:
				set[key] = nil
			}
		}
		a, err = s.compute.SetAggregateMetadata(r.Context(), n, set, zone)
	}
	return s.writeAggregate(w, r, a, err)
}

func (s *server) listZones(w http.ResponseWriter, r *http.Request) error { return s.zones(w, r, false) }

func (s *server) listZonesDetail(w http.ResponseWriter, r *http.Request) error {
	return s.zones(w, r, true)
}

func (s *server) zones(w http.ResponseWriter, r *http.Request, detail bool) error {
	all, err := s.compute.ListZones(r.Context(), detail)
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, z := range all {
		view := map[string]any{"zoneName": z.Name, "zoneState": map[string]bool{"available": z.Up}, "hosts": nil}
		if detail {
			hosts := map[string]any{}
			for _, h := range z.Hosts {
				hosts[h.Name] = map[string]any{binary: map[string]any{"available": h.Up(), "active": !h.Disabled, "updated_at": isoTime(h.UpdatedAt)}}
			}
			view["hosts"] = hosts
		}
		views = append(views, view)
	}
	return answer(w, http.StatusOK, map[string]any{"availabilityZoneInfo": views})
}
