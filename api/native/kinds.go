package native

import (
	"bytes"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// kinds is everything that the API shows, in the order of the description. What is a secret is not
// among them: credentials, join tokens, authorities, receipts, console tokens, signing keys. Of a user only the
// password is one, which its type says.
func kinds(n *network.Service) []*kind {
	return []*kind{
		show("projects", identity.Projects(), "project.get", rule[identity.Project]{each: ownProject}),
		show("users", identity.Users(), "user.get", rule[identity.User]{
			user: func(u *identity.User) resource.ID { return u.ID }, each: ownUser, operator: fields("Epoch")}),
		show("groups", identity.Groups(), "group.get", rule[identity.Group]{
			shown: func(tx *state.Tx, a *identity.Actor, g *identity.Group) bool {
				return identity.InGroup(tx, a.UserID, g.ID)
			},
			each: func(tx *state.Tx, a *identity.Actor) iter.Seq[*identity.Group] {
				return identity.GroupsOf(tx, a.UserID)
			},
			moved: withMembership}),
		show("roles", identity.Roles(), "role.get", rule[identity.Role]{}),
		show("assignments", identity.Assignments(), "assignment.get", rule[identity.Assignment]{
			user: holder, own: func(a *identity.Actor) []span { return []span{{index: "holder", key: state.KeyOf(a.UserID)}} }}),
		show("servers", compute.Servers(), "server.get", rule[compute.Server]{
			own: owned[compute.Server]("project"), operator: fields("HostID Storage Kept Unrun Epoch Sworn Move.To Move.Storage Before.HostID Failure.Details Seen.OursMs Seen.StartMs"),
			by: places{"host_id": on("host"), "reservation_id": onText("reservation"), "name": within(onText("name")),
				"shape.flavor_id": within(on("flavor")), "boot.image.id": within(on("image"))}}),
		show("flavors", compute.Flavors(), "flavor.get", rule[compute.Flavor]{
			shown: func(_ *state.Tx, a *identity.Actor, f *compute.Flavor) bool { return f.ShownTo(a) }, operator: fields("Access")}),
		show("keypairs", compute.KeyPairs(), "keypair.get", rule[compute.KeyPair]{
			user: func(k *compute.KeyPair) resource.ID { return k.UserID },
			own:  func(a *identity.Actor) []span { return []span{{index: "name", key: state.KeyOf(a.UserID)}} }}),
		show("server-groups", compute.Groups(), "server-group.get", rule[compute.Group]{own: owned[compute.Group]("project")}),
		show("aggregates", compute.Aggregates(), "aggregate.get", rule[compute.Aggregate]{}),
		show("migrations", compute.Migrations(), "migration.get", rule[compute.Migration]{}),
		show("estates", compute.Estates(), "estate.get", rule[compute.Estate]{}),
		show("images", image.Table(), "image.get", rule[image.Image]{
			own: func(a *identity.Actor) []span {
				return []span{{index: "owner", key: state.KeyOf(a.ProjectID)}, {index: "member", key: state.KeyOf(a.ProjectID)},
					{index: "visibility", key: state.KeyOf(image.Public)}}
			},
			shown: func(_ *state.Tx, a *identity.Actor, i *image.Image) bool { return i.ShownTo(a) },
			gone:  func(i *image.Image) bool { return i.State == image.Deleting },
			owner: fields("Members"), operator: fields("BlobID TransferID Stray")}),
		show("networks", network.Networks(), "network.read", collected(n.Networks, sharing(network.SharedNetwork), "Kind Physical Segment")),
		show("subnets", network.Subnets(), "subnet.read", collected(n.Subnets, withNetwork, "")),
		show("ports", network.Ports(), "port.read", collected(n.Ports, nil, "HostID HostLabel Profile")),
		show("routers", network.Routers(), "router.read", collected(n.Routers, nil, "HostID Distributed Redundant")),
		show("floating-addresses", network.FloatingAddresses(), "floating-address.read", collected(n.Floating, nil, "")),
		show("port-forwards", network.Forwards(), "port-forward.read", collected(n.Forwards, nil, "")),
		show("security-groups", network.Groups(), "security-group.read", collected(n.Groups, sharing(network.SharedGroup), "")),
		show("security-group-rules", network.Rules(), "security-group-rule.read", collected(n.Rules, withGroup, "")),
		show("subnet-pools", network.Pools(), "subnet-pool.read", collected(n.Pools, sharing(network.SharedPool), "")),
		show("address-scopes", network.Scopes(), "address-scope.read", collected(n.Scopes, sharing(network.SharedScope), "")),
		show("address-groups", network.AddressGroups(), "address-group.read", collected(n.Addresses, sharing(network.SharedSet), "")),
		show("network-shares", network.Shares(), "share.read", collected(n.Shares, nil, "")),
		show("operations", operation.Table(), "operation.get", rule[operation.Operation]{
			own: owned[operation.Operation]("project"), operator: fields("Steps.HostID Why.Chosen Why.Looked Why.Of Why.Ended Why.Nearest Why.Scores Why.Removed"),
			by: places{"target_id": on("target")}}),
		show("hosts", host.Table(), "host.get", rule[host.Host]{}),
		show("newcomers", host.Newcomers(), "host.get", rule[host.Newcomer]{}),
		show("traits", host.Traits(), "trait.get", rule[host.Trait]{}),
		show("resource-classes", host.ResourceClasses(), "resource-class.get", rule[host.ResourceClass]{}),
		show("alerts", alert.Table(), "alert.get", rule[alert.Alert]{}),
	}
}

// A rule says who sees the objects of a kind, and where a list finds them. An admin sees all. With
// neither own, each, user nor shown nobody else sees any.
type rule[T any] struct {
	own   func(*identity.Actor) []span                           // where a list finds what it shows; or
	each  func(*state.Tx, *identity.Actor) iter.Seq[*T]          // the same; nil for both: all is looked through
	user  func(*T) resource.ID                                   // set: whose an object is, instead of a project's
	shown func(tx *state.Tx, a *identity.Actor, object *T) bool  // to others than its owner
	gone  func(*T) bool                                          // it is gone for everybody, though it still stands in its table
	moved func(state.Event, *identity.Actor, *state.Tx) []moving // see moving

	owner, operator []string // fields that only the owner, or only an admin, is shown
	by              places
}

// A span is a part of an index. whole: all in it have the same key, so that it is in the order of IDs.
type span struct {
	index string
	key   state.Key
	whole bool
}

// places are fields whose values an index finds, in the order of IDs.
type places map[string]place

// A place finds a value's span, in the index of one project, or of all for the zero one.
type place func(project resource.ID, value string) (span, bool)

func on(index string) place {
	return func(_ resource.ID, value string) (span, bool) {
		id, err := resource.ParseID(value)
		return span{index, state.KeyOf(id), true}, err == nil && !id.IsZero()
	}
}

func onText(index string) place {
	return func(_ resource.ID, value string) (span, bool) {
		return span{index, state.KeyOf(value), true}, value != ""
	}
}

// within is a place in an index whose keys begin with the project.
func within(p place) place {
	return func(project resource.ID, value string) (span, bool) {
		sp, ok := p(project, value)
		sp.key = state.KeyOf(project) + sp.key
		return sp, ok
	}
}

func owned[T any](index string) func(*identity.Actor) []span {
	return func(a *identity.Actor) []span { return []span{{index, state.KeyOf(a.ProjectID), true}} }
}

// A moving is an object that comes into somebody's sight, or leaves it, because of a change of
// another one.
type moving struct {
	id    resource.ID
	comes bool
}

// A kind is one line of the registry, ready for use.
type kind struct {
	path, name, title string
	action            string // which the core's rules allow or not
	shape             *shape
	private           bool // only for admins

	find    func(*state.Tx, resource.ID) (resource.Object, bool)
	all     func(tx *state.Tx, index string, r state.Range) iter.Seq[resource.Object]
	own     func(*identity.Actor) []span
	each    func(*state.Tx, *identity.Actor) iter.Seq[resource.Object]
	mine    func(*identity.Actor, resource.Object) bool
	shown   func(*state.Tx, *identity.Actor, resource.Object) bool
	gone    func(resource.Object) bool
	moved   func(state.Event, *identity.Actor, *state.Tx) []moving
	indexed places
}

func fields(names string) []string { return strings.Fields(names) }

// reserved are query parameters that no field may be named as.
var reserved = []string{"limit", "marker", "sort", "watch", "since", "all_projects", "kinds"}

func show[T any](path string, table *state.Table[T], action string, r rule[T]) *kind {
	levels := map[string]level{}
	for _, f := range r.owner {
		levels[f] = owners
	}
	for _, f := range r.operator {
		levels[f] = operators
	}
	k := &kind{path: path, name: table.Kind(), title: title(table.Kind()), action: action, moved: r.moved, own: r.own, indexed: r.by,
		shape:   shapeOf(reflect.TypeFor[T](), levels),
		private: r.own == nil && r.each == nil && r.user == nil && r.shown == nil,
	}
	for _, f := range k.shape.fields {
		if slices.Contains(reserved, f.name) {
			panic("native: " + path + " has a field " + f.name + ", which is a parameter")
		}
	}
	k.find = func(tx *state.Tx, id resource.ID) (resource.Object, bool) {
		obj, ok := table.PeekOne(tx, id)
		return any(obj).(resource.Object), ok
	}
	k.all = func(tx *state.Tx, index string, rg state.Range) iter.Seq[resource.Object] {
		return objects(table.Peek(tx, index, rg))
	}
	if r.each != nil {
		k.each = func(tx *state.Tx, a *identity.Actor) iter.Seq[resource.Object] { return objects(r.each(tx, a)) }
	}
	k.gone = func(o resource.Object) bool { return r.gone != nil && r.gone(any(o).(*T)) }
	k.shown = func(tx *state.Tx, a *identity.Actor, o resource.Object) bool {
		return r.shown != nil && r.shown(tx, a, any(o).(*T))
	}
	k.mine = func(a *identity.Actor, o resource.Object) bool {
		if r.user != nil {
			return !a.UserID.IsZero() && r.user(any(o).(*T)) == a.UserID
		}
		return !a.ProjectID.IsZero() && o.GetMeta().ProjectID == a.ProjectID && a.Has("reader")
	}
	return k
}

func objects[T any](seq iter.Seq[*T]) iter.Seq[resource.Object] {
	return func(yield func(resource.Object) bool) {
		for obj := range seq {
			if !yield(any(obj).(resource.Object)) {
				return
			}
		}
	}
}

// title is a kind's name in the description: "floating-address" is FloatingAddress.
func title(name string) string {
	var b strings.Builder
	for _, word := range strings.Split(name, "-") {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}

// ownProject is the project that an actor's token is for.
func ownProject(tx *state.Tx, a *identity.Actor) iter.Seq[*identity.Project] {
	return one(tx, identity.Projects(), a.ProjectID)
}

func ownUser(tx *state.Tx, a *identity.Actor) iter.Seq[*identity.User] {
	return one(tx, identity.Users(), a.UserID)
}

// one is a sequence of the object with an ID, or of nothing.
func one[T any](tx *state.Tx, table *state.Table[T], id resource.ID) iter.Seq[*T] {
	return func(yield func(*T) bool) {
		if obj, ok := table.PeekOne(tx, id); ok {
			yield(obj)
		}
	}
}

// holder is the user that has a role by an assignment; nobody when a group has it.
func holder(a *identity.Assignment) resource.ID {
	if a.OfGroup {
		return resource.ID{}
	}
	return a.HolderID
}

// withMembership: a group comes into a user's sight, and leaves it, with the membership.
func withMembership(e state.Event, a *identity.Actor, _ *state.Tx) []moving {
	of := func(o resource.Object) (group resource.ID, ok bool) {
		m, ok := o.(*identity.Membership)
		if !ok || a.UserID.IsZero() || m.UserID != a.UserID {
			return resource.ID{}, false
		}
		return m.GroupID, true
	}
	was, had := of(e.Before)
	is, has := of(e.After)
	switch {
	case had == has:
		return nil
	case has:
		return []moving{{is, true}}
	}
	return []moving{{was, false}}
}

// collected is the rule of the network's things, which their domain knows.
func collected[T any](c network.Collection[T], moved func(state.Event, *identity.Actor, *state.Tx) []moving, operator string) rule[T] {
	return rule[T]{each: c.Walk, shown: c.Shown, moved: moved, operator: fields(operator)}
}

// sharing: a thing comes into a project's sight when it is shared with it. What is shared with
// everybody says so itself.
func sharing(what network.SharedKind) func(state.Event, *identity.Actor, *state.Tx) []moving {
	return func(e state.Event, a *identity.Actor, _ *state.Tx) []moving {
		id, comes, ok := shared(e, a, what)
		if !ok {
			return nil
		}
		return []moving{{id, comes}}
	}
}

// shared reads an event about a share with the actor's very project.
func shared(e state.Event, a *identity.Actor, what network.SharedKind) (id resource.ID, comes, ok bool) {
	is := func(o resource.Object) bool {
		s, ok := o.(*network.Share)
		if !ok || s.Kind != what || s.Target.IsZero() || s.Target != a.ProjectID {
			return false
		}
		id = s.ObjectID
		return true
	}
	was, now := is(e.Before), is(e.After)
	return id, now, was != now
}

// withNetwork: the subnets of a shared network come and go with it.
func withNetwork(e state.Event, a *identity.Actor, tx *state.Tx) []moving {
	id, comes, ok := shared(e, a, network.SharedNetwork)
	if !ok {
		was, is := e.Before, e.After
		b, had := was.(*network.Network)
		n, has := is.(*network.Network)
		if !had || !has || b.Shared == n.Shared {
			return nil
		}
		id, comes = n.ID, n.Shared
	}
	return each(network.Subnets().IDs(tx, "network", state.KeyOf(id)), comes)
}

// withGroup: the rules of a shared security group come and go with it.
func withGroup(e state.Event, a *identity.Actor, tx *state.Tx) []moving {
	id, comes, ok := shared(e, a, network.SharedGroup)
	if !ok {
		b, had := e.Before.(*network.Group)
		g, has := e.After.(*network.Group)
		if !had || !has || b.Shared == g.Shared {
			return nil
		}
		id, comes = g.ID, g.Shared
	}
	return each(network.Rules().IDs(tx, "group", state.KeyOf(id)), comes)
}

func each(ids []resource.ID, comes bool) []moving {
	all := make([]moving, len(ids))
	for i, id := range ids {
		all[i] = moving{id, comes}
	}
	return all
}

// A sight is what one actor looks at: its own things and what it is shown, or everything.
type sight struct {
	actor *identity.Actor
	plain *identity.Actor // the same without the rights of an admin
	all   bool            // an admin looks at every project's
}

func sightOf(a *identity.Actor, all bool) sight {
	plain := *a
	plain.Roles = slices.DeleteFunc(slices.Clone(a.Roles), func(role string) bool { return role == "admin" })
	return sight{a, &plain, all}
}

// sees reports whether an object is in sight.
func (k *kind) sees(tx *state.Tx, s sight, o resource.Object) bool {
	switch {
	case k.gone(o):
		return false
	case s.all || k.private:
		return s.actor.Admin()
	}
	return k.mine(s.plain, o) || k.shown(tx, s.plain, o)
}

// levelOf is how much of an object an actor is shown.
func (k *kind) levelOf(s sight, o resource.Object) level {
	switch {
	case s.actor.Admin():
		return operators
	case k.mine(s.actor, o):
		return owners
	}
	return everybody
}

// highest is the most that an actor may be shown of any object.
func highest(a *identity.Actor) level {
	if a.Admin() {
		return operators
	}
	return owners
}

// candidates gives what is in sight in the order of IDs, after an ID. hints are conditions that an
// index may serve.
func (k *kind) candidates(tx *state.Tx, s sight, after resource.ID, hints []condition) iter.Seq[resource.Object] {
	seq := k.sequence(tx, s, after, hints)
	return func(yield func(resource.Object) bool) {
		for o := range seq {
			if k.sees(tx, s, o) && !yield(o) {
				return
			}
		}
	}
}

func (k *kind) sequence(tx *state.Tx, s sight, after resource.ID, hints []condition) iter.Seq[resource.Object] {
	project := s.plain.ProjectID
	if s.all {
		project = resource.ID{}
	}
	for _, c := range hints {
		if at := k.indexed[c.name]; at != nil && len(c.values) == 1 && c.level <= highest(s.actor) {
			if sp, ok := at(project, c.values[0]); ok {
				return k.along(tx, sp, after)
			}
		}
	}
	switch {
	case s.all || k.private || k.own == nil && k.each == nil:
		return k.all(tx, "", state.Range{After: after})
	case k.each != nil:
		return inOrder(k.each(tx, s.plain), after)
	}
	spans := k.own(s.plain)
	if len(spans) == 1 && spans[0].whole {
		return k.along(tx, spans[0], after)
	}
	return inOrder(func(yield func(resource.Object) bool) {
		for _, sp := range spans {
			for o := range k.all(tx, sp.index, state.Range{Prefix: sp.key}) {
				if !yield(o) {
					return
				}
			}
		}
	}, after)
}

func (k *kind) along(tx *state.Tx, sp span, after resource.ID) iter.Seq[resource.Object] {
	r := state.Range{Prefix: sp.key}
	if !after.IsZero() {
		r.After, r.AfterKey = after, sp.key
	}
	return k.all(tx, sp.index, r)
}

// inOrder gives the objects of a sequence once each, in the order of IDs.
func inOrder(seq iter.Seq[resource.Object], after resource.ID) iter.Seq[resource.Object] {
	return func(yield func(resource.Object) bool) {
		found := map[resource.ID]resource.Object{}
		for o := range seq {
			if id := o.GetMeta().ID; after.IsZero() || bytes.Compare(id[:], after[:]) > 0 {
				found[id] = o
			}
		}
		ids := slices.SortedFunc(maps.Keys(found), func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
		for _, id := range ids {
			if !yield(found[id]) {
				return
			}
		}
	}
}
