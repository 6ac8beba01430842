package identity

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Scope is where roles count: in one project, in one domain or over the whole system. The zero
// Scope is nowhere.
type Scope struct {
	ProjectID resource.ID
	DomainID  resource.ID
	System    bool
}

func (s Scope) kind() string {
	switch {
	case s.System:
		return "system"
	case !s.DomainID.IsZero():
		return "domain"
	case !s.ProjectID.IsZero():
		return "project"
	}
	return ""
}

func (s Scope) id() resource.ID {
	if s.ProjectID.IsZero() {
		return s.DomainID
	}
	return s.ProjectID
}

// An Assignment gives a user or a group a role in a scope. An inherited one counts in all
// projects below the scope, and not in the scope itself.
type Assignment struct {
	resource.Meta
	RoleID    resource.ID
	HolderID  resource.ID
	OfGroup   bool // the holder is a group
	Scope     Scope
	Inherited bool
}

var assignments = state.NewTable("assignment",
	state.Unique("whole", func(a *Assignment) state.Key {
		return state.KeyOf(a.HolderID, a.Scope.kind(), a.Scope.id(), a.Inherited, a.RoleID)
	}),
	state.Index("holder", func(a *Assignment) state.Key { return state.KeyOf(a.HolderID) }),
	state.Index("target", func(a *Assignment) state.Key { return state.KeyOf(a.Scope.kind(), a.Scope.id()) }),
	state.Index("role", func(a *Assignment) state.Key { return state.KeyOf(a.RoleID) }),
)

// holders are the IDs under which a user holds roles: its own and its groups'.
func holders(tx *state.Tx, user resource.ID) []resource.ID {
	all := []resource.ID{user}
	for m := range memberships.Peek(tx, "user", state.Range{Prefix: state.KeyOf(user)}) {
		if groups.Has(tx, m.GroupID) { // and is not being removed
			all = append(all, m.GroupID)
		}
	}
	return all
}

// source is a scope whose assignments count in another one.
type source struct {
	scope     Scope
	inherited bool
}

// sources are the assignments that count in a scope.
func sources(tx *state.Tx, in Scope) []source {
	from := []source{{in, false}}
	p, ok := projects.PeekOne(tx, in.ProjectID)
	if !ok {
		return from
	}
	for _, above := range ancestors(tx, p) {
		if above.IsDomain() {
			from = append(from, source{Scope{DomainID: above.ID}, true})
		} else {
			from = append(from, source{Scope{ProjectID: above.ID}, true})
		}
	}
	return from
}

// assigned gives the IDs of the roles that a user holds in a scope, without implied ones.
func assigned(tx *state.Tx, user resource.ID, in Scope) []resource.ID {
	var ids []resource.ID
	from := sources(tx, in)
	for _, holder := range holders(tx, user) {
		for _, src := range from {
			prefix := state.KeyOf(holder, src.scope.kind(), src.scope.id(), src.inherited)
			for a := range assignments.Peek(tx, "whole", state.Range{Prefix: prefix}) {
				if !slices.Contains(ids, a.RoleID) {
					ids = append(ids, a.RoleID)
				}
			}
		}
	}
	return ids
}

// effective gives the roles of a user in a scope, with the implied ones and without those
// of domains, which only stand for others.
func effective(tx *state.Tx, user resource.ID, in Scope) []*Role {
	return rolesOf(tx, imply(tx, assigned(tx, user, in)))
}

func rolesOf(tx *state.Tx, ids []resource.ID) []*Role {
	var all []*Role
	for _, id := range ids {
		if r, ok := roles.PeekOne(tx, id); ok && r.DomainID.IsZero() {
			all = append(all, r)
		}
	}
	return all
}

// hasAny reports whether a user holds any role in a project or domain.
func hasAny(tx *state.Tx, user, in resource.ID) bool {
	p, ok := projects.PeekOne(tx, in)
	if !ok || user.IsZero() {
		return false
	}
	scope := Scope{ProjectID: in}
	if p.IsDomain() {
		scope = Scope{DomainID: in}
	}
	return len(assigned(tx, user, scope)) > 0
}

func names(all []*Role) []string {
	out := make([]string, len(all))
	for i, r := range all {
		out[i] = r.Name
	}
	return out
}

// cloudRoles count beyond the project in which they are held: who has one looks at everybody's tokens, or
// acts in everybody's accounts. Only an admin of the cloud gives them.
var cloudRoles = []string{"service", "ResellerAdmin"}

// cloudwide reports whether a role gives its holder power over the whole cloud when it is held so: the
// admin role does anywhere but in a domain alone, a role of the cloud's own programs everywhere.
func cloudwide(tx *state.Tx, role resource.ID, scope Scope, inherited bool) bool {
	return slices.ContainsFunc(rolesOf(tx, imply(tx, []resource.ID{role})), func(r *Role) bool {
		return slices.Contains(cloudRoles, r.Name) || r.Name == "admin" && (scope.DomainID.IsZero() || inherited)
	})
}

// mighty reports whether a user or a group can do anything, anywhere, that an admin of a domain cannot:
// by its roles, its groups', or for a trustor whom that admin does not manage. Such an admin may not act
// on it, since whoever sets a user's password, or joins a group, becomes as mighty.
func mighty(tx *state.Tx, holder, domain resource.ID) bool {
	if holdsMore(tx, holder, domain) {
		return true
	}
	for t := range trusts.Peek(tx, "trustee", state.Range{Prefix: state.KeyOf(holder)}) {
		if u, ok := users.PeekOne(tx, t.TrustorID); !ok || u.DomainID != domain || holdsMore(tx, t.TrustorID, domain) {
			return true
		}
	}
	return false
}

// holdsMore reports whether a user or a group holds a role that gives more than an admin of a domain has.
func holdsMore(tx *state.Tx, holder, domain resource.ID) bool {
	for _, id := range holders(tx, holder) {
		for a := range assignments.Peek(tx, "holder", state.Range{Prefix: state.KeyOf(id)}) {
			if !inDomain(tx, a.Scope, domain) || cloudwide(tx, a.RoleID, a.Scope, a.Inherited) {
				return true
			}
		}
	}
	return false
}

// manageHolder asks whether the actor may change a user or a group of a domain.
func manageHolder(ctx context.Context, tx *state.Tx, action string, holder, domain resource.ID) error {
	if err := mayManage(ctx, action, domain); err != nil {
		return err
	}
	if !ActorOf(ctx).Admin() && mighty(tx, holder, domain) {
		return refuse(action)
	}
	return nil
}

// prepare checks that the parts of an assignment exist and that the actor may give or take it.
func (a *Assignment) prepare(ctx context.Context, tx *state.Tx, action string, manage bool) error {
	domain := resource.ID{}
	if !a.Scope.System {
		p, ok := projects.PeekOne(tx, a.Scope.id())
		if !ok || p.IsDomain() != !a.Scope.DomainID.IsZero() {
			return missing(ctx, action, a.Scope.kind(), a.Scope.id().Hex())
		}
		domain = p.Domain()
	}
	if err := mayRead(ctx, action, domain); err != nil {
		return err
	}
	var of resource.ID
	if a.OfGroup {
		g, ok := groups.PeekOne(tx, a.HolderID)
		if !ok {
			return missing(ctx, action, "group", a.HolderID.Hex())
		}
		of = g.DomainID
	} else {
		u, ok := users.PeekOne(tx, a.HolderID)
		if !ok {
			return missing(ctx, action, "user", a.HolderID.Hex())
		}
		of = u.DomainID
	}
	if err := mayRead(ctx, action, of); err != nil {
		return err
	}
	if manage {
		if err := mayManage(ctx, action, domain); err != nil {
			return err
		}
		if err := mayManage(ctx, action, of); err != nil {
			return err
		}
	}
	if a.RoleID.IsZero() {
		return nil
	}
	r, ok := roles.PeekOne(tx, a.RoleID)
	switch {
	case !ok:
		return missing(ctx, action, "role", a.RoleID.Hex())
	case manage && !r.DomainID.IsZero() && r.DomainID != domain:
		return fault.Errorf(fault.Forbidden, "A role of a domain can be given in that domain only.")
	case manage && !ActorOf(ctx).Admin() && cloudwide(tx, a.RoleID, a.Scope, a.Inherited):
		return refuse(action)
	}
	return nil
}

func (a *Assignment) find(tx *state.Tx) (*Assignment, bool) {
	return assignments.Lookup(tx, "whole", state.KeyOf(a.HolderID, a.Scope.kind(), a.Scope.id(), a.Inherited, a.RoleID))
}

// Grant gives a role; it may be given already.
func (s *Service) Grant(ctx context.Context, a Assignment) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := a.prepare(ctx, tx, "grant.create", true); err != nil {
			return err
		}
		if _, ok := a.find(tx); ok {
			return nil
		}
		a.Meta = resource.Meta{ID: tx.NewID()}
		return assignments.Put(tx, &a)
	})
}

// Revoke takes a role back, with immediate effect on all tokens.
func (s *Service) Revoke(ctx context.Context, a Assignment) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := a.prepare(ctx, tx, "grant.revoke", true); err != nil {
			return err
		}
		found, ok := a.find(tx)
		if !ok {
			return a.notFound()
		}
		return assignments.Delete(tx, found.ID)
	})
}

func (a *Assignment) notFound() error {
	return fault.Errorf(fault.NotFound, "Could not find the assignment of role %s to %s on this %s.",
		a.RoleID.Hex(), a.HolderID.Hex(), a.Scope.kind())
}

// Granted asks whether a role is given directly; no error means that it is.
func (s *Service) Granted(ctx context.Context, a Assignment) error {
	tx, err := s.State.View(ctx)
	if err != nil {
		return err
	}
	if err := a.prepare(ctx, tx, "grant.check", false); err != nil {
		return err
	}
	if _, ok := a.find(tx); !ok {
		return a.notFound()
	}
	return nil
}

// Grants lists the roles that a holder is given directly in a scope; RoleID is not looked at.
func (s *Service) Grants(ctx context.Context, a Assignment) ([]*Role, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a.RoleID = resource.ID{}
	if err := a.prepare(ctx, tx, "grant.list", false); err != nil {
		return nil, err
	}
	all := []*Role{}
	prefix := state.KeyOf(a.HolderID, a.Scope.kind(), a.Scope.id(), a.Inherited)
	for given := range assignments.Peek(tx, "whole", state.Range{Prefix: prefix}) {
		if r, ok := roles.Find(tx, given.RoleID); ok {
			all = append(all, r)
		}
	}
	return all, nil
}

// A Holding is one line of the list of assignments. Its last fields say where an effective one comes from.
type Holding struct {
	RoleID    resource.ID
	UserID    resource.ID // or
	GroupID   resource.ID
	Scope     Scope
	Inherited bool // counts below the scope; in an effective one: From says where it was given

	From        Scope       // the scope that it is inherited from
	MemberOf    resource.ID // the group that gives it
	PriorRoleID resource.ID // the role that implies it
}

// A HoldingFilter says which assignments are wanted; its zero fields want all.
type HoldingFilter struct {
	UserID, GroupID, RoleID resource.ID
	Scope                   Scope
	Subtree                 bool  // with the projects below the scope
	Inherited               *bool // only those that are inherited, or that are not
	Effective               bool  // what counts in the end, not what was given
}

// Holdings lists who holds which role where. Users may see their own.
func (s *Service) Holdings(ctx context.Context, f HoldingFilter) ([]Holding, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	var within resource.ID
	if !a.readsAll() && !(f.UserID == a.UserID && a.own(f.UserID)) {
		within = a.DomainID
		if p, ok := projects.PeekOne(tx, f.Scope.ProjectID); f.Subtree && (!ok || !a.reads(p.Domain())) {
			return nil, refuse("role_assignment.list")
		}
		if !a.reads(within) {
			return nil, refuse("role_assignment.list")
		}
	}
	wanted := map[resource.ID]bool{}
	if f.Subtree {
		wanted[f.Scope.ProjectID] = true
		for _, below := range descendants(tx, f.Scope.ProjectID) {
			wanted[below.ID] = true
		}
	}
	all := []Holding{}
	add := func(h Holding) {
		if f.keeps(h, wanted) && (within.IsZero() || inDomain(tx, h.Scope, within)) && !slices.Contains(all, h) {
			all = append(all, h)
		}
	}
	for _, given := range f.candidates(tx) {
		if leaving(tx, given.RoleID, given.HolderID, given.Scope.id()) {
			continue
		}
		if f.Effective {
			expand(tx, given, f.GroupID.IsZero(), add)
			continue
		}
		h := Holding{RoleID: given.RoleID, Scope: given.Scope, Inherited: given.Inherited}
		if given.OfGroup {
			h.GroupID = given.HolderID
		} else {
			h.UserID = given.HolderID
		}
		add(h)
	}
	return all, nil
}

func inDomain(tx *state.Tx, scope Scope, domain resource.ID) bool {
	p, ok := projects.PeekOne(tx, scope.id())
	return ok && p.Domain() == domain
}

// candidates are the assignments from which the wanted lines can come.
func (f HoldingFilter) candidates(tx *state.Tx) []*Assignment {
	var all []*Assignment
	switch {
	case !f.UserID.IsZero() && f.Effective:
		for _, holder := range holders(tx, f.UserID) {
			all = slices.AppendSeq(all, assignments.Each(tx, "holder", state.KeyOf(holder)))
		}
	case !f.UserID.IsZero():
		all = slices.AppendSeq(all, assignments.Each(tx, "holder", state.KeyOf(f.UserID)))
	case !f.GroupID.IsZero():
		all = slices.AppendSeq(all, assignments.Each(tx, "holder", state.KeyOf(f.GroupID)))
	case f.Scope.kind() != "" && !f.Subtree && f.Effective:
		for _, src := range sources(tx, f.Scope) {
			for a := range assignments.Each(tx, "target", state.KeyOf(src.scope.kind(), src.scope.id())) {
				if a.Inherited == src.inherited {
					all = append(all, a)
				}
			}
		}
	case f.Scope.kind() != "" && !f.Subtree:
		all = slices.AppendSeq(all, assignments.Each(tx, "target", state.KeyOf(f.Scope.kind(), f.Scope.id())))
	default:
		all = slices.AppendSeq(all, assignments.All(tx))
	}
	return all
}

func (f HoldingFilter) keeps(h Holding, subtree map[resource.ID]bool) bool {
	switch {
	case !f.UserID.IsZero() && h.UserID != f.UserID,
		!f.GroupID.IsZero() && h.GroupID != f.GroupID && h.MemberOf != f.GroupID,
		!f.RoleID.IsZero() && h.RoleID != f.RoleID,
		f.Inherited != nil && *f.Inherited != (h.Inherited || h.From != Scope{}):
		return false
	case f.Subtree:
		return subtree[h.Scope.ProjectID] && h.Scope.kind() == "project"
	case f.Scope.kind() != "":
		return h.Scope == f.Scope
	}
	return true
}

// expand gives what an assignment means in the end: for each user, in each project, with each implied role.
func expand(tx *state.Tx, a *Assignment, members bool, add func(Holding)) {
	base := Holding{RoleID: a.RoleID, Scope: a.Scope}
	var whos []Holding
	switch {
	case !a.OfGroup:
		base.UserID = a.HolderID
		whos = []Holding{base}
	case members:
		for m := range memberships.Peek(tx, "group", state.Range{Prefix: state.KeyOf(a.HolderID)}) {
			h := base
			h.UserID, h.MemberOf = m.UserID, a.HolderID
			whos = append(whos, h)
		}
	default:
		base.GroupID = a.HolderID
		whos = []Holding{base}
	}
	var wheres []Scope
	if a.Inherited {
		for _, p := range descendants(tx, a.Scope.id()) {
			wheres = append(wheres, Scope{ProjectID: p.ID})
		}
	} else {
		wheres = []Scope{a.Scope}
	}
	for _, h := range whos {
		for _, where := range wheres {
			h.Scope = where
			if a.Inherited {
				h.From = a.Scope
			}
			for _, role := range rolesOf(tx, imply(tx, []resource.ID{a.RoleID})) {
				h.RoleID, h.PriorRoleID = role.ID, resource.ID{}
				if role.ID != a.RoleID {
					h.PriorRoleID = a.RoleID
				}
				add(h)
			}
		}
	}
}

// ScopesOf lists the projects or the domains in which a user holds any role; a user may ask for itself.
func (s *Service) ScopesOf(ctx context.Context, user resource.ID, domains bool) ([]*Project, error) {
	if _, err := s.User(ctx, user); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	all := []*Project{}
	seen := map[resource.ID]bool{}
	add := func(id resource.ID) {
		p, ok := projects.Find(tx, id)
		if ok && !seen[id] && p.IsDomain() == domains {
			seen[id] = true
			all = append(all, p)
		}
	}
	for _, holder := range holders(tx, user) {
		for a := range assignments.Peek(tx, "holder", state.Range{Prefix: state.KeyOf(holder)}) {
			if !a.Inherited {
				add(a.Scope.id())
				continue
			}
			for _, below := range descendants(tx, a.Scope.id()) {
				add(below.ID)
			}
		}
	}
	return all, nil
}

// HasSystem reports whether a user holds any role over the whole system.
func (s *Service) HasSystem(ctx context.Context, user resource.ID) (bool, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return false, err
	}
	return len(assigned(tx, user, Scope{System: true})) > 0, nil
}

// NameOf gives the name and the domain of a user, group, role, project or domain, for whoever may see
// its ID in a list; "" if there is none.
func (s *Service) NameOf(ctx context.Context, noun string, id resource.ID) (name string, domain resource.ID) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return "", domain
	}
	switch noun {
	case "user":
		if u, ok := users.PeekOne(tx, id); ok {
			return u.Name, u.DomainID
		}
	case "group":
		if g, ok := groups.PeekOne(tx, id); ok {
			return g.Name, g.DomainID
		}
	case "role":
		if r, ok := roles.PeekOne(tx, id); ok {
			return r.Name, r.DomainID
		}
	default:
		if p, ok := projects.PeekOne(tx, id); ok {
			return p.Name, p.DomainID
		}
	}
	return "", domain
}
