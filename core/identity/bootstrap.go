package identity

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// BootstrapOptions say what a new cloud begins with.
type BootstrapOptions struct {
	Config Config
	Region string // "RegionOne" when ""
	// The passwords of the users admin, demo and alt. A user without one is not made. Those of users that
	// are there already stay as they are.
	AdminPassword, DemoPassword, AltPassword string
	Offers                                   []NewOffer
}

// A NewOffer is a service of a new cloud's catalog, served at one place.
type NewOffer struct {
	Type, Name, Description string
	URL                     string // see Endpoint
}

// The built-in roles, each with those that it implies.
var builtinRoles = []struct{ name, implies string }{
	{"reader", ""},
	{"member", "reader"},
	{"manager", "member"},
	{"admin", "manager"},
	{"service", ""},
	{"ResellerAdmin", ""}, // may act in every account of the object store
}

// Bootstrap makes what every cloud has, where it is not there yet: the default domain, projects, roles,
// users with their roles, a region and the catalog. What an admin has changed since stays changed.
func Bootstrap(ctx context.Context, st *state.State, o BootstrapOptions) error {
	if o.Region == "" {
		o.Region = "RegionOne"
	}
	ctx = Internal(ctx)
	s := New(st, o.Config)
	b := &bootstrap{s: s, o: o, now: s.now(), hashes: map[string]string{}}
	tx, err := st.View(ctx)
	if err != nil {
		return err
	}
	for _, u := range []struct{ name, password string }{{"admin", o.AdminPassword}, {"demo", o.DemoPassword}, {"alt", o.AltPassword}} {
		if _, there := users.Lookup(tx, "name", state.KeyOf(DefaultDomain, u.name)); there || u.password == "" {
			continue
		}
		if b.hashes[u.name], err = s.newHash(ctx, u.password); err != nil {
			return err
		}
	}
	if _, err := s.signingKey(ctx); err != nil {
		return err
	}
	return st.Update(ctx, b.run)
}

type bootstrap struct {
	s      *Service
	o      BootstrapOptions
	now    time.Time
	hashes map[string]string // of the users that are to be made
	roles  map[string]resource.ID
}

func (b *bootstrap) run(tx *state.Tx) error {
	if !projects.Has(tx, DefaultDomain) {
		domain := &Project{Meta: resource.Meta{ID: DefaultDomain, ProjectID: DefaultDomain, Name: "Default"}, Description: "The default domain", Enabled: true}
		if err := projects.Put(tx, domain); err != nil {
			return err
		}
	}
	if err := b.makeRoles(tx); err != nil {
		return err
	}
	for _, name := range []string{"admin", "demo", "alt", "service"} {
		if err := b.makeProject(tx, name); err != nil {
			return err
		}
	}
	if err := ensureRegion(tx, b.o.Region); err != nil {
		return err
	}
	for _, offer := range b.o.Offers {
		if err := b.makeOffer(tx, offer); err != nil {
			return err
		}
	}
	return nil
}

func (b *bootstrap) makeRoles(tx *state.Tx) error {
	b.roles = map[string]resource.ID{}
	for _, r := range builtinRoles {
		if old, ok := roles.Lookup(tx, "name", state.KeyOf(resource.ID{}, r.name)); ok {
			b.roles[r.name] = old.ID
			continue
		}
		id := tx.NewID()
		b.roles[r.name] = id
		if err := roles.Put(tx, &Role{Meta: resource.Meta{ID: id, Name: r.name}}); err != nil {
			return err
		}
		if r.implies == "" {
			continue
		}
		if err := putImplication(tx, id, b.roles[r.implies]); err != nil {
			return err
		}
	}
	return nil
}

// makeProject makes a project and, if it has one, the user of the same name.
func (b *bootstrap) makeProject(tx *state.Tx, name string) error {
	p, ok := projects.Lookup(tx, "name", state.KeyOf(DefaultDomain, name))
	if !ok {
		id := tx.NewID()
		p = &Project{Meta: resource.Meta{ID: id, ProjectID: id, Name: name}, DomainID: DefaultDomain, ParentID: DefaultDomain, Enabled: true}
		if err := projects.Put(tx, p); err != nil {
			return err
		}
	}
	hash := b.hashes[name]
	if _, there := users.Lookup(tx, "name", state.KeyOf(DefaultDomain, name)); there || hash == "" {
		return nil
	}
	u := &User{Meta: resource.Meta{ID: tx.NewID(), Name: name}, DomainID: DefaultDomain, Enabled: true}
	u.setPassword(hash, b.s.config.Password, b.now)
	if err := users.Put(tx, u); err != nil {
		return err
	}
	role, scopes := "member", []Scope{{ProjectID: p.ID}}
	if name == "admin" {
		role, scopes = "admin", append(scopes, Scope{System: true}, Scope{DomainID: DefaultDomain})
	}
	for _, scope := range scopes {
		a := &Assignment{Meta: resource.Meta{ID: tx.NewID()}, RoleID: b.roles[role], HolderID: u.ID, Scope: scope}
		if err := assignments.Put(tx, a); err != nil {
			return err
		}
	}
	return nil
}

func (b *bootstrap) makeOffer(tx *state.Tx, want NewOffer) error {
	if _, ok := offers.Lookup(tx, "type", state.KeyOf(want.Type)); ok {
		return nil
	}
	offer := &Offer{Meta: resource.Meta{ID: tx.NewID(), Name: want.Name}, Type: want.Type, Description: want.Description, Enabled: true}
	if err := offers.Put(tx, offer); err != nil {
		return err
	}
	for _, face := range interfaces {
		e := &Endpoint{Meta: resource.Meta{ID: tx.NewID()}, OfferID: offer.ID, Interface: face, Region: b.o.Region, URL: want.URL, Enabled: true}
		if err := endpoints.Put(tx, e); err != nil {
			return err
		}
	}
	return nil
}
