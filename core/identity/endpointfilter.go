package identity

import (
	"context"
	"encoding/json"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// An EndpointGroup is a set of endpoints that are shown to a project together: those that
// have all of its values.
type EndpointGroup struct {
	resource.Meta
	Description string
	OfferID     resource.ID // zero: of any service
	Interface   string      // "": any
	Region      string      // "": any
	Enabled     *bool       // nil: either
	Filters     Extra       // as they were written
}

var endpointGroups = state.NewTable[EndpointGroup]("endpoint-group")

// An EndpointFilter shows an endpoint, or a group of them, to a project. A project with none sees all.
type EndpointFilter struct {
	resource.Meta
	InProjectID resource.ID
	EndpointID  resource.ID // or
	GroupID     resource.ID
}

var endpointFilters = state.NewTable("endpoint-filter",
	state.Unique("whole", func(f *EndpointFilter) state.Key { return state.KeyOf(f.InProjectID, f.EndpointID, f.GroupID) }),
	state.Index("project", func(f *EndpointFilter) state.Key { return state.KeyOf(f.InProjectID) }),
	state.Index("endpoint", func(f *EndpointFilter) state.Key { return state.KeyOf(f.EndpointID) }),
	state.Index("group", func(f *EndpointFilter) state.Key { return state.KeyOf(f.GroupID) }),
)

// filterOf tells which endpoints a project is shown.
func filterOf(tx *state.Tx, project resource.ID) func(*Endpoint) bool {
	single, sets := map[resource.ID]bool{}, []*EndpointGroup{}
	if !project.IsZero() {
		for f := range endpointFilters.Peek(tx, "project", state.Range{Prefix: state.KeyOf(project)}) {
			if g, ok := endpointGroups.PeekOne(tx, f.GroupID); ok {
				sets = append(sets, g)
			} else {
				single[f.EndpointID] = true
			}
		}
	}
	return func(e *Endpoint) bool {
		if len(single) == 0 && len(sets) == 0 || single[e.ID] {
			return true
		}
		for _, g := range sets {
			if g.holds(e) {
				return true
			}
		}
		return false
	}
}

func (g *EndpointGroup) holds(e *Endpoint) bool {
	return (g.OfferID.IsZero() || g.OfferID == e.OfferID) && (g.Interface == "" || g.Interface == e.Interface) &&
		(g.Region == "" || g.Region == e.Region) && (g.Enabled == nil || *g.Enabled == e.Enabled)
}

// read takes the filters apart.
func (g *EndpointGroup) read() error {
	if err := checkWords(text{"name", g.Name}); err != nil {
		return err
	}
	if err := checkTexts(text{"description", g.Description}); err != nil {
		return err
	}
	if err := g.Filters.check(); err != nil {
		return err
	}
	g.OfferID, g.Interface, g.Region, g.Enabled = resource.ID{}, "", "", nil
	for name, raw := range g.Filters {
		var err error
		switch name {
		case "service_id":
			var text string
			if err = json.Unmarshal(raw, &text); err == nil {
				g.OfferID, err = resource.ParseID(text)
			}
		case "interface":
			err = json.Unmarshal(raw, &g.Interface)
		case "region_id":
			err = json.Unmarshal(raw, &g.Region)
		case "enabled":
			err = json.Unmarshal(raw, &g.Enabled)
		default:
			return fault.InvalidField("filters", "must be of service_id, region_id, interface and enabled")
		}
		if err != nil {
			return fault.InvalidField("filters", "has a wrong value for %s", name)
		}
	}
	return checkName(g.Name, 255)
}

// CreateEndpointGroup makes a group of endpoints.
func (s *Service) CreateEndpointGroup(ctx context.Context, g *EndpointGroup) (*EndpointGroup, error) {
	if err := mayManage(ctx, "endpoint_group.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := g.read(); err != nil {
		return nil, err
	}
	return create(ctx, s, endpointGroups, func(tx *state.Tx) (*EndpointGroup, error) {
		made := *g
		made.ID = tx.NewID()
		return &made, nil
	})
}

// EndpointGroup gives one group.
func (s *Service) EndpointGroup(ctx context.Context, id resource.ID) (*EndpointGroup, error) {
	if err := mayRead(ctx, "endpoint_group.get", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return endpointGroups.Get(tx, id)
}

// EndpointGroups lists the groups; those of one project, if it is not zero.
func (s *Service) EndpointGroups(ctx context.Context, project resource.ID) ([]*EndpointGroup, error) {
	if err := mayRead(ctx, "endpoint_group.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if project.IsZero() {
		return collect(endpointGroups.All(tx), nil), nil
	}
	all := []*EndpointGroup{}
	for f := range endpointFilters.Peek(tx, "project", state.Range{Prefix: state.KeyOf(project)}) {
		if g, ok := endpointGroups.Find(tx, f.GroupID); ok {
			all = append(all, g)
		}
	}
	return all, nil
}

// UpdateEndpointGroup changes a group.
func (s *Service) UpdateEndpointGroup(ctx context.Context, id resource.ID, change func(*EndpointGroup) error) (*EndpointGroup, error) {
	if err := mayManage(ctx, "endpoint_group.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, endpointGroups, id, func(tx *state.Tx, g *EndpointGroup) error {
		if err := change(g); err != nil {
			return err
		}
		return g.read()
	})
}

// DeleteEndpointGroup deletes a group and its place in projects.
func (s *Service) DeleteEndpointGroup(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "endpoint_group.delete", resource.ID{}); err != nil {
			return err
		}
		if err := deleteEach(tx, endpointFilters, "group", state.KeyOf(id)); err != nil {
			return err
		}
		return endpointGroups.Delete(tx, id)
	})
}

// ShowEndpoint shows an endpoint, or a group of them, to a project; or with show false takes that back.
func (s *Service) ShowEndpoint(ctx context.Context, f EndpointFilter, show bool) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "endpoint_filter.change", resource.ID{}); err != nil {
			return err
		}
		if err := f.check(tx); err != nil {
			return err
		}
		old, ok := endpointFilters.Lookup(tx, "whole", state.KeyOf(f.InProjectID, f.EndpointID, f.GroupID))
		switch {
		case show && ok:
			return nil
		case show:
			f.Meta = resource.Meta{ID: tx.NewID()}
			return endpointFilters.Put(tx, &f)
		case !ok:
			return fault.Errorf(fault.NotFound, "The endpoint is not associated with the project.")
		}
		return endpointFilters.Delete(tx, old.ID)
	})
}

func (f *EndpointFilter) check(tx *state.Tx) error {
	if !projects.Has(tx, f.InProjectID) {
		return notFound("project", f.InProjectID.Hex())
	}
	if f.GroupID.IsZero() && !endpoints.Has(tx, f.EndpointID) {
		return notFound("endpoint", f.EndpointID.Hex())
	}
	if !f.GroupID.IsZero() && !endpointGroups.Has(tx, f.GroupID) {
		return notFound("Endpoint Group", f.GroupID.Hex())
	}
	return nil
}

// EndpointShown asks whether an endpoint or a group is associated with a project.
func (s *Service) EndpointShown(ctx context.Context, f EndpointFilter) error {
	if err := mayRead(ctx, "endpoint_filter.check", resource.ID{}); err != nil {
		return err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	if err := f.check(tx); err != nil {
		return err
	}
	if _, ok := endpointFilters.Lookup(tx, "whole", state.KeyOf(f.InProjectID, f.EndpointID, f.GroupID)); !ok {
		return fault.Errorf(fault.NotFound, "The endpoint is not associated with the project.")
	}
	return nil
}

// EndpointsShown lists the endpoints that a project's filters name or hold.
func (s *Service) EndpointsShown(ctx context.Context, project resource.ID) ([]*Endpoint, error) {
	if err := mayRead(ctx, "endpoint_filter.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if !projects.Has(tx, project) {
		return nil, notFound("project", project.Hex())
	}
	if len(endpointFilters.IDs(tx, "project", state.KeyOf(project))) == 0 {
		return []*Endpoint{}, nil
	}
	return collect(endpoints.All(tx), filterOf(tx, project)), nil
}

// ProjectsShown lists the projects that an endpoint, or a group of them, is associated with.
func (s *Service) ProjectsShown(ctx context.Context, f EndpointFilter) ([]*Project, error) {
	if err := mayRead(ctx, "endpoint_filter.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	index, key := "endpoint", state.KeyOf(f.EndpointID)
	if !f.GroupID.IsZero() {
		index, key = "group", state.KeyOf(f.GroupID)
	}
	all := []*Project{}
	for shown := range endpointFilters.Peek(tx, index, state.Range{Prefix: key}) {
		if p, ok := projects.Find(tx, shown.InProjectID); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// EndpointsIn lists the endpoints that a group holds.
func (s *Service) EndpointsIn(ctx context.Context, group resource.ID) ([]*Endpoint, error) {
	g, err := s.EndpointGroup(ctx, group)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(endpoints.All(tx), g.holds), nil
}
