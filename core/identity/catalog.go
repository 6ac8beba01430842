package identity

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Region is a part of the cloud that clients choose by its name, which is an admin's free choice.
type Region struct {
	resource.Meta
	Parent      string // the name of another region; "": none
	Description string
	Extra       Extra
}

var regions = state.NewTable("region",
	state.Unique("name", func(r *Region) state.Key { return state.KeyOf(r.Name) }),
	state.Index("parent", func(r *Region) state.Key { return state.KeyOf(r.Parent) }),
)

// An Offer is a service that clients may find in the catalog.
type Offer struct {
	resource.Meta
	Type        string
	Description string
	Enabled     bool
	Extra       Extra
}

var offers = state.NewTable("service",
	state.Index("type", func(o *Offer) state.Key { return state.KeyOf(o.Type) }),
)

// An Endpoint is where an offer is served. Its URL is whole, or relative to the address under
// which a client has reached us: "/compute", or ":8701" for another port of that host.
type Endpoint struct {
	resource.Meta
	OfferID   resource.ID
	Interface string // "public", "internal" or "admin"
	Region    string // a region's name; "": none
	URL       string // may hold $(project_id)s
	Enabled   bool
	Extra     Extra
}

var endpoints = state.NewTable("endpoint",
	state.Index("offer", func(e *Endpoint) state.Key { return state.KeyOf(e.OfferID) }),
	state.Index("region", func(e *Endpoint) state.Key { return state.KeyOf(e.Region) }),
)

var interfaces = []string{"public", "internal", "admin"}

func (r *Region) check(tx *state.Tx) error {
	if err := checkName(r.Name, 255); err != nil {
		return err
	}
	for at, n := r.Parent, 0; at != ""; n++ {
		parent, ok := regions.Lookup(tx, "name", state.KeyOf(at))
		if !ok {
			return noRegion(at)
		}
		if at == r.Name || n > 64 {
			return fault.Errorf(fault.Invalid, "Region %s cannot be a part of itself.", r.Name).WithCode("circle")
		}
		at = parent.Parent
	}
	if err := checkTexts(text{"description", r.Description}); err != nil {
		return err
	}
	return r.Extra.check()
}

func noRegion(name string) error {
	return notFound("region", name)
}

// CreateRegion makes a region.
func (s *Service) CreateRegion(ctx context.Context, r *Region) (*Region, error) {
	if err := mayManage(ctx, "region.create", resource.ID{}); err != nil {
		return nil, err
	}
	return create(ctx, s, regions, func(tx *state.Tx) (*Region, error) {
		made := *r
		made.ID = tx.NewID()
		if made.Name == "" {
			made.Name = made.ID.Hex()
		}
		return &made, made.check(tx)
	})
}

// Region gives the region of a name. Whoever is known may see the catalog.
func (s *Service) Region(ctx context.Context, name string) (*Region, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := regions.Lookup(tx, "name", state.KeyOf(name))
	if !ok {
		return nil, noRegion(name)
	}
	return r, nil
}

// Regions lists the regions.
func (s *Service) Regions(ctx context.Context) ([]*Region, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(regions.Each(tx, "name", ""), nil), nil
}

// UpdateRegion changes a region.
func (s *Service) UpdateRegion(ctx context.Context, name string, change func(*Region) error) (*Region, error) {
	if err := mayManage(ctx, "region.update", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	r, ok := regions.Lookup(tx, "name", state.KeyOf(name))
	if !ok {
		return nil, noRegion(name)
	}
	return edit(ctx, s, regions, r.ID, func(tx *state.Tx, r *Region) error {
		if err := change(r); err != nil {
			return err
		}
		if r.Name != name {
			return fault.InvalidField("id", "cannot be changed")
		}
		return r.check(tx)
	})
}

// DeleteRegion deletes a region that has no endpoints, with the regions in it.
func (s *Service) DeleteRegion(ctx context.Context, name string) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "region.delete", resource.ID{}); err != nil {
			return err
		}
		return deleteRegion(tx, name)
	})
}

func deleteRegion(tx *state.Tx, name string) error {
	r, ok := regions.Lookup(tx, "name", state.KeyOf(name))
	if !ok {
		return noRegion(name)
	}
	if _, used := endpoints.Lookup(tx, "region", state.KeyOf(name)); used {
		return fault.Errorf(fault.Forbidden, "Region %s cannot be deleted: it has endpoints.", name)
	}
	if _, used := defaultLimits.Lookup(tx, "region", state.KeyOf(name)); used {
		return fault.Errorf(fault.Forbidden, "Region %s cannot be deleted: it has registered limits.", name)
	}
	for _, child := range collect(regions.Each(tx, "parent", state.KeyOf(name)), nil) {
		if err := deleteRegion(tx, child.Name); err != nil {
			return err
		}
	}
	return regions.Delete(tx, r.ID)
}

func (o *Offer) check() error {
	if o.Type == "" || len(o.Type) > 255 {
		return fault.InvalidField("type", "must have 1 to 255 characters")
	}
	if len(o.Name) > 255 {
		return fault.InvalidField("name", "must be at most 255 characters")
	}
	if err := checkTexts(text{"description", o.Description}); err != nil {
		return err
	}
	return o.Extra.check()
}

// CreateOffer puts a service into the catalog.
func (s *Service) CreateOffer(ctx context.Context, o *Offer) (*Offer, error) {
	if err := mayManage(ctx, "service.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, offers, func(tx *state.Tx) (*Offer, error) {
		made := *o
		made.ID = tx.NewID()
		return &made, nil
	})
}

// Offer gives one service of the catalog.
func (s *Service) Offer(ctx context.Context, id resource.ID) (*Offer, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	o, ok := offers.Find(tx, id)
	if !ok {
		return nil, missing(ctx, "service.get", "service", id.Hex())
	}
	return o, mayRead(ctx, "service.get", resource.ID{})
}

// Offers lists the services of the catalog.
func (s *Service) Offers(ctx context.Context) ([]*Offer, error) {
	if err := mayRead(ctx, "service.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(offers.All(tx), nil), nil
}

// UpdateOffer changes a service of the catalog.
func (s *Service) UpdateOffer(ctx context.Context, id resource.ID, change func(*Offer) error) (*Offer, error) {
	if err := mayManage(ctx, "service.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, offers, id, func(tx *state.Tx, o *Offer) error {
		if err := change(o); err != nil {
			return err
		}
		return o.check()
	})
}

// DeleteOffer takes a service out of the catalog, with its endpoints and limits.
func (s *Service) DeleteOffer(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "service.delete", resource.ID{}); err != nil {
			return err
		}
		if !offers.Has(tx, id) {
			return missing(ctx, "service.delete", "service", id.Hex())
		}
		for _, endpoint := range endpoints.IDs(tx, "offer", state.KeyOf(id)) {
			if err := deleteEndpoint(tx, endpoint); err != nil {
				return err
			}
		}
		for _, limit := range defaultLimits.IDs(tx, "resource", state.KeyOf(id)) {
			if err := deleteEach(tx, limits, "default", state.KeyOf(limit)); err != nil {
				return err
			}
			if err := defaultLimits.Delete(tx, limit); err != nil {
				return err
			}
		}
		return offers.Delete(tx, id)
	})
}

func (e *Endpoint) check(tx *state.Tx) error {
	switch {
	case !slices.Contains(interfaces, e.Interface):
		return fault.InvalidField("interface", "must be one of %s", strings.Join(interfaces, ", "))
	case e.URL == "" || len(e.URL) > 2048 || strings.ContainsAny(e.URL, " \t\r\n<>\""):
		return fault.InvalidField("url", "must be a URL of at most 2048 characters")
	case !offers.Has(tx, e.OfferID):
		return fault.Errorf(fault.Invalid, "Endpoint's service %s does not exist.", e.OfferID.Hex())
	}
	rest := e.URL
	for _, name := range []string{"project_id", "tenant_id", "user_id"} {
		rest = strings.NewReplacer("$("+name+")s", "", "%("+name+")s", "").Replace(rest)
	}
	if strings.Contains(rest, "$(") || strings.Contains(rest, "%(") {
		return fault.InvalidField("url", "must hold no other substitutions than project_id, tenant_id and user_id")
	}
	if _, ok := regions.Lookup(tx, "name", state.KeyOf(e.Region)); e.Region != "" && !ok {
		return fault.Errorf(fault.Invalid, "Endpoint's region %s does not exist.", e.Region)
	}
	return e.Extra.check()
}

// CreateEndpoint says where a service is served. With newRegion its region is made if there is none.
func (s *Service) CreateEndpoint(ctx context.Context, e *Endpoint, newRegion bool) (*Endpoint, error) {
	if err := mayManage(ctx, "endpoint.create", resource.ID{}); err != nil {
		return nil, err
	}
	return create(ctx, s, endpoints, func(tx *state.Tx) (*Endpoint, error) {
		made := *e
		made.ID = tx.NewID()
		if newRegion {
			if err := ensureRegion(tx, e.Region); err != nil {
				return nil, err
			}
		}
		return &made, made.check(tx)
	})
}

func ensureRegion(tx *state.Tx, name string) error {
	if _, ok := regions.Lookup(tx, "name", state.KeyOf(name)); ok {
		return nil
	}
	r := &Region{Meta: resource.Meta{ID: tx.NewID(), Name: name}}
	if err := r.check(tx); err != nil {
		return err
	}
	return regions.Put(tx, r)
}

// Endpoint gives one endpoint.
func (s *Service) Endpoint(ctx context.Context, id resource.ID) (*Endpoint, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	e, ok := endpoints.Find(tx, id)
	if !ok {
		return nil, notFound("endpoint", id.Hex()) // every catalog shows the IDs
	}
	return e, mayRead(ctx, "endpoint.get", resource.ID{})
}

// Endpoints lists the endpoints.
func (s *Service) Endpoints(ctx context.Context) ([]*Endpoint, error) {
	if err := mayRead(ctx, "endpoint.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(endpoints.All(tx), nil), nil
}

// UpdateEndpoint changes an endpoint. With newRegion its region is made if there is none.
func (s *Service) UpdateEndpoint(ctx context.Context, id resource.ID, newRegion bool, change func(*Endpoint) error) (*Endpoint, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if !endpoints.Has(tx, id) {
		return nil, notFound("endpoint", id.Hex())
	}
	return edit(ctx, s, endpoints, id, func(tx *state.Tx, e *Endpoint) error {
		if err := mayManage(ctx, "endpoint.update", resource.ID{}); err != nil {
			return err
		}
		if err := change(e); err != nil {
			return err
		}
		if newRegion {
			if err := ensureRegion(tx, e.Region); err != nil {
				return err
			}
		}
		return e.check(tx)
	})
}

// DeleteEndpoint takes an endpoint out of the catalog.
func (s *Service) DeleteEndpoint(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if !endpoints.Has(tx, id) {
			return notFound("endpoint", id.Hex())
		}
		if err := mayManage(ctx, "endpoint.delete", resource.ID{}); err != nil {
			return err
		}
		return deleteEndpoint(tx, id)
	})
}

func deleteEndpoint(tx *state.Tx, id resource.ID) error {
	if err := deleteEach(tx, endpointFilters, "endpoint", state.KeyOf(id)); err != nil {
		return err
	}
	return endpoints.Delete(tx, id)
}

// An Entry of the catalog is a service with where this user finds it.
type Entry struct {
	Offer     *Offer
	Endpoints []*Endpoint // their URLs are filled in for the session
}

// Catalog is what the holder of a session finds, by type. base is the address under which it has reached us,
// as in "https://cloud.example:8700".
func (s *Service) Catalog(ctx context.Context, scope Scope, user resource.ID, base string) ([]Entry, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	shown := filterOf(tx, scope.ProjectID)
	var entries []Entry
	for o := range offers.Peek(tx, "", state.Range{}) {
		if !o.Enabled {
			continue
		}
		entry := Entry{Offer: o}
		for e := range endpoints.Peek(tx, "offer", state.Range{Prefix: state.KeyOf(o.ID)}) {
			if !e.Enabled || !shown(e) {
				continue
			}
			url, ok := fill(e.URL, base, scope.ProjectID, user)
			if !ok {
				continue // it is for projects, and this session has none
			}
			filled := *e
			filled.URL = url
			entry.Endpoints = append(entry.Endpoints, &filled)
		}
		if len(entry.Endpoints) > 0 {
			entries = append(entries, entry)
		}
	}
	slices.SortFunc(entries, func(a, b Entry) int {
		return cmp.Or(strings.Compare(a.Offer.Type, b.Offer.Type), strings.Compare(a.Offer.Name, b.Offer.Name))
	})
	return entries, nil
}

// Resolve makes a relative endpoint URL whole.
func Resolve(url, base string) string {
	switch {
	case strings.HasPrefix(url, "/"):
		return base + url
	case strings.HasPrefix(url, ":"):
		scheme, host, _ := strings.Cut(base, "://")
		if i := strings.LastIndexByte(host, ':'); i > strings.LastIndexByte(host, ']') {
			host = host[:i]
		}
		return scheme + "://" + host + url
	}
	return url
}

func fill(url, base string, project, user resource.ID) (string, bool) {
	if url = Resolve(url, base); !strings.Contains(url, "(") {
		return url, true
	}
	for _, name := range []string{"project_id", "tenant_id"} {
		for _, form := range []string{"$(" + name + ")s", "%(" + name + ")s"} {
			if project.IsZero() && strings.Contains(url, form) {
				return "", false
			}
			url = strings.ReplaceAll(url, form, project.Hex())
		}
	}
	return strings.NewReplacer("$(user_id)s", user.Hex(), "%(user_id)s", user.Hex()).Replace(url), true
}
