package placement

import (
	"net/http"
	"regexp"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// Nova's types of consumers, and the only ones here.
const instance, migration = "INSTANCE", "MIGRATION"

func (s *server) showAllocations(w http.ResponseWriter, r *http.Request) error {
	id, err := resource.ParseID(r.PathValue("consumer"))
	if err != nil {
		id = resource.ID{} // which nobody has
	}
	held, err := s.compute.Holding(r.Context(), id)
	if err != nil {
		return err
	}
	if held == nil {
		return answer(w, r, http.StatusOK, s.now(), object{"allocations": object{}})
	}
	view := object{"allocations": object{held.Provider.ID.String(): object{"generation": held.Provider.Revision, "resources": held.Amounts}}}
	if minorOf(r) >= 12 {
		view["project_id"], view["user_id"] = held.ProjectID.Hex(), held.UserID.Hex()
	}
	if minorOf(r) >= 28 {
		view["consumer_generation"] = held.Generation
	}
	if minorOf(r) >= 38 {
		view["consumer_type"] = instance
		if held.Migration {
			view["consumer_type"] = migration
		}
	}
	return answer(w, r, http.StatusOK, held.Since, view)
}

func (s *server) showProviderAllocations(w http.ResponseWriter, r *http.Request) error {
	id, err := uuidOf(r)
	if err != nil {
		_, err = s.provider(r)
		return err
	}
	p, held, err := s.compute.HoldingsOn(r.Context(), id)
	if err != nil {
		return named(r, err)
	}
	all, newest := object{}, p.Host.UpdatedAt
	for _, h := range held {
		one := object{"resources": h.Amounts}
		if minorOf(r) >= 28 {
			one["consumer_generation"] = h.Generation
		}
		all[h.Consumer.String()] = one
		newest = later(newest, h.Since)
	}
	return answer(w, r, http.StatusOK, newest, object{"allocations": all, "resource_provider_generation": p.Generation()})
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refuseAllocations says why nobody can write allocations: they are what servers take.
func (s *server) refuseAllocations(w http.ResponseWriter, r *http.Request) error {
	if err := s.compute.MayProvide(r.Context()); err != nil {
		return err
	}
	var body map[string]any
	if err := openstack.Decode(r, &body); err != nil {
		return err
	}
	if len(body) == 0 {
		return fault.Errorf(fault.Invalid, "JSON does not validate: allocations is a required property")
	}
	return fault.Errorf(fault.Conflict, "Allocations are what servers take of their hosts here, counted from the servers themselves: they change with them, and cannot be written.")
}

func (s *server) deleteAllocations(w http.ResponseWriter, r *http.Request) error {
	if err := s.compute.MayProvide(r.Context()); err != nil {
		return err
	}
	consumer := r.PathValue("consumer")
	id, err := resource.ParseID(consumer)
	if err != nil {
		id = resource.ID{}
	}
	held, err := s.compute.Holding(r.Context(), id)
	if err != nil {
		return err
	}
	if held == nil {
		return fault.Errorf(fault.NotFound, "No allocations for consumer '%.60s'", consumer).WithCode("allocation-not-found")
	}
	return fault.Errorf(fault.Conflict, "Server %s holds what it takes of its hosts for as long as it is there, or its move can be taken back. Delete the server, or end the move.", held.ServerID)
}

func (s *server) showProviderUsages(w http.ResponseWriter, r *http.Request) error {
	p, err := s.provider(r)
	if err != nil {
		return err
	}
	return answer(w, r, http.StatusOK, s.now(), object{"resource_provider_generation": p.Generation(), "usages": p.Used})
}

var consumerType = regexp.MustCompile(`^([A-Z0-9_]{1,255}|all|unknown)$`)

// showUsages is what a project's servers take, or a user's in it.
func (s *server) showUsages(w http.ResponseWriter, r *http.Request) error {
	known := []string{"project_id", "user_id"}
	if minorOf(r) >= 38 {
		known = append(known, "consumer_type")
	}
	values, err := ask(r, only(known...))
	if err != nil {
		return err
	}
	project, user, typ := last(values, "project_id"), last(values, "user_id"), last(values, "consumer_type")
	switch {
	case project == "" || len(project) > 255:
		return bad("'project_id' is a required property of 1 to 255 characters")
	case values.Has("user_id") && (user == "" || len(user) > 255):
		return bad("'user_id' must be of 1 to 255 characters")
	case values.Has("consumer_type") && !consumerType.MatchString(typ):
		return bad("'consumer_type' must be of capital letters, digits and underscores, or all or unknown")
	}
	projectID, err := resource.ParseID(project)
	if err != nil {
		projectID = resource.ID{} // which nobody has
	}
	var userID resource.ID
	if values.Has("user_id") {
		if userID, err = resource.ParseID(user); err != nil || userID.IsZero() {
			projectID = resource.ID{}
		}
	}
	taken, count, err := s.compute.Taken(r.Context(), projectID, userID)
	if err != nil {
		return err
	}
	usages := object{}
	for class, n := range taken {
		usages[class] = n
	}
	if minorOf(r) >= 38 {
		usages = byType(usages, count, typ)
	}
	return answer(w, r, http.StatusOK, s.now(), object{"usages": usages})
}

// byType groups usages by the type of the consumers, which are all servers.
func byType(usages object, count int64, typ string) object {
	if typ == "" {
		typ = instance
	}
	if count == 0 || typ != instance && typ != "all" {
		return object{}
	}
	usages["consumer_count"] = count
	return object{typ: usages}
}
