package network

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Share lets another project, or every project, use a thing.
type Share struct {
	resource.Meta

	Kind     SharedKind
	ObjectID resource.ID
	Action   ShareAction
	Target   resource.ID // a project; zero: every project
}

// A SharedKind is a kind of thing that can be shared.
type SharedKind string

// The kinds.
const (
	SharedNetwork SharedKind = "network"
	SharedGroup   SharedKind = "security-group"
	SharedPool    SharedKind = "subnet-pool"
	SharedScope   SharedKind = "address-scope"
	SharedSet     SharedKind = "address-group"
)

// A ShareAction is what the other project may do.
type ShareAction string

// The actions: use a thing like its owner, or, of a network, have router gateways and floating addresses there.
const (
	ShareUse      ShareAction = "use"
	ShareExternal ShareAction = "external"
)

var shareFields = common(fields[Share]{
	"kind":   {text: func(s *Share) []string { return []string{string(s.Kind)} }, by: true, single: true},
	"object": {text: func(s *Share) []string { return oneID(s.ObjectID) }, index: "object", key: idKey},
	"action": {text: func(s *Share) []string { return []string{string(s.Action)} }, by: true, single: true},
	"target": {text: func(s *Share) []string { return oneID(s.Target) }, by: true, single: true},
})

var shares = state.NewTable[Share]("network-share",
	facets(shareFields),
	state.Index("object", func(s *Share) state.Key { return state.KeyOf(s.ObjectID) }),
	state.Index("target", func(s *Share) state.Key { return state.KeyOf(s.Target, string(s.Kind)) }),
	state.Unique("same", func(s *Share) state.Key { return state.KeyOf(s.ObjectID, string(s.Action), s.Target) }),
	state.Tally("project", func(s *Share) (state.Key, state.Amounts) { return state.KeyOf(s.ProjectID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"share.create": identity.Member, "share.read": identity.Reader,
	"share.update": identity.Member, "share.delete": identity.Member,
	"share.everyone": identity.Admin,
})

var shareNoun = noun[Share]{
	name: "share", title: "Share", table: shares, fields: shareFields,
}

func init() { shareNoun.add, shareNoun.change, shareNoun.remove = addShare, changeShare, removeShare }

// Shares gives other domains and the native API a look at every share.
func Shares() *state.Table[Share] { return shares }

// sharedWith reports whether a thing is shared with this very project in whatever way, so that it sees it.
func sharedWith(tx *state.Tx, object, projectID resource.ID) bool {
	if projectID.IsZero() {
		return false
	}
	_, ok := shares.Lookup(tx, "same", state.KeyOf(object, string(ShareUse), projectID))
	if !ok {
		_, ok = shares.Lookup(tx, "same", state.KeyOf(object, string(ShareExternal), projectID))
	}
	return ok
}

// SharedTo reports whether a thing is shared with a project by name, to be used like its owner does.
func SharedTo(tx *state.Tx, object, projectID resource.ID) bool {
	_, ok := shares.Lookup(tx, "same", state.KeyOf(object, string(ShareUse), projectID))
	return ok && !projectID.IsZero()
}

// sharedSpans are the places of the things of a kind that are shared with this very project.
func sharedSpans(tx *state.Tx, kind SharedKind, projectID resource.ID) []span {
	var spans []span
	if projectID.IsZero() {
		return nil
	}
	for s := range shares.Peek(tx, "target", state.Range{Prefix: state.KeyOf(projectID, string(kind))}) {
		spans = append(spans, span{id: s.ObjectID})
	}
	return spans
}

// owned finds what a share is about, and asks whether the actor may change it.
func owned(ctx context.Context, tx *state.Tx, s *Share) (err error) {
	switch s.Kind {
	case SharedNetwork:
		err = mayShare(ctx, tx, &networkNoun, s)
	case SharedGroup:
		err = mayShare(ctx, tx, &groupNoun, s)
	case SharedPool:
		err = mayShare(ctx, tx, &poolNoun, s)
	case SharedScope:
		err = mayShare(ctx, tx, &scopeNoun, s)
	case SharedSet:
		err = mayShare(ctx, tx, &addressGroupNoun, s)
	default:
		err = invalid("share-kind", "'%s' is not an object type that can be shared.", s.Kind)
	}
	return err
}

func mayShare[T any](ctx context.Context, tx *state.Tx, n *noun[T], s *Share) error {
	thing, err := n.get(tx, s.ObjectID)
	if err != nil {
		return err
	}
	return n.allow(ctx, tx, "update", thing)
}

func addShare(ctx context.Context, tx *state.Tx, s *Share) error {
	if err := mayCreate(ctx, "share.create", s.ProjectID); err != nil {
		return err
	}
	if err := owned(ctx, tx, s); err != nil {
		return err
	}
	if err := mayTarget(ctx, s); err != nil {
		return err
	}
	if s.Action != ShareUse && (s.Action != ShareExternal || s.Kind != SharedNetwork) {
		return invalid("share-action", "'%s' is not an action for a %s.", s.Action, s.Kind)
	}
	if err := checkQuota(tx, s.ProjectID, "share"); err != nil {
		return err
	}
	return putShare(tx, s)
}

func mayTarget(ctx context.Context, s *Share) error {
	if !s.Target.IsZero() {
		return nil
	}
	return identity.Allow(ctx, "share.everyone", resource.Meta{ProjectID: s.ProjectID})
}

func putShare(tx *state.Tx, s *Share) error {
	if err := shares.Put(tx, s); err != nil {
		if fault.Is(err, fault.Exists) {
			return fault.Errorf(fault.Conflict, "The same share exists already.").WithCode("share-exists")
		}
		return err
	}
	return mark(tx, s.Kind, s.ObjectID)
}

func changeShare(ctx context.Context, tx *state.Tx, was, now *Share) error {
	if was.Kind != now.Kind || was.ObjectID != now.ObjectID || was.Action != now.Action {
		return fault.InvalidField("share", "can only be given another target")
	}
	if err := mayTarget(ctx, now); err != nil {
		return err
	}
	if err := shareInUse(tx, was); err != nil {
		return err
	}
	return putShare(tx, now)
}

func removeShare(ctx context.Context, tx *state.Tx, s *Share) error {
	if err := shareInUse(tx, s); err != nil {
		return err
	}
	if err := shares.Delete(tx, s.ID); err != nil {
		return err
	}
	return mark(tx, s.Kind, s.ObjectID)
}

// shareInUse refuses to take back a share of a network on which the other project has ports.
func shareInUse(tx *state.Tx, s *Share) error {
	if s.Kind != SharedNetwork || s.Action != ShareUse {
		return nil
	}
	n, ok := networks.PeekOne(tx, s.ObjectID)
	if !ok {
		return nil
	}
	for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(n.ID)}) {
		if p.ProjectID != n.ProjectID && !p.ProjectID.IsZero() && (s.Target.IsZero() && !SharedTo(tx, n.ID, p.ProjectID) || p.ProjectID == s.Target && !n.Shared) {
			return fault.Errorf(fault.Conflict, "The share of %s cannot be taken back: port %s depends on it.", s.ObjectID, p.ID).
				WithCode("share-in-use")
		}
	}
	return nil
}

// unshareable refuses to take a network from projects that have ports on it.
func unshareable(tx *state.Tx, networkID, owner resource.ID) error {
	for p := range ports.Peek(tx, "network", state.Range{Prefix: state.KeyOf(networkID)}) {
		if p.ProjectID != owner && !p.ProjectID.IsZero() && !SharedTo(tx, networkID, p.ProjectID) {
			return fault.Errorf(fault.Conflict, "Network %s cannot be taken back from others: several projects use it.", networkID).
				WithCode("sharing")
		}
	}
	return nil
}

// mark makes a thing's own flags say what the shares with everyone say.
func mark(tx *state.Tx, kind SharedKind, id resource.ID) error {
	everyone := func(action ShareAction) bool {
		_, ok := shares.Lookup(tx, "same", state.KeyOf(id, string(action), resource.ID{}))
		return ok
	}
	switch kind {
	case SharedNetwork:
		return remark(tx, networks, id, func(n *Network) { n.Shared, n.External = everyone(ShareUse), everyone(ShareExternal) })
	case SharedGroup:
		return remark(tx, groups, id, func(g *Group) { g.Shared = everyone(ShareUse) })
	case SharedPool:
		return remark(tx, pools, id, func(p *SubnetPool) { p.Shared = everyone(ShareUse) })
	case SharedScope:
		return remark(tx, scopes, id, func(s *AddressScope) { s.Shared = everyone(ShareUse) })
	default:
		return remark(tx, addressGroups, id, func(g *AddressGroup) { g.Shared = everyone(ShareUse) })
	}
}

func remark[T any](tx *state.Tx, table *state.Table[T], id resource.ID, set func(*T)) error {
	thing, ok := table.Find(tx, id)
	if !ok {
		return nil
	}
	set(thing)
	return table.Put(tx, thing)
}

// syncShare makes the share with everyone say what a thing's own flag says.
func syncShare(tx *state.Tx, kind SharedKind, m *resource.Meta, action ShareAction, was, now bool) error {
	if was == now {
		return nil
	}
	if now {
		return shares.Put(tx, &Share{Meta: resource.Meta{ID: tx.NewID(), ProjectID: m.ProjectID}, Kind: kind, ObjectID: m.ID, Action: action})
	}
	s, ok := shares.Lookup(tx, "same", state.KeyOf(m.ID, string(action), resource.ID{}))
	if !ok {
		return nil
	}
	return shares.Delete(tx, s.ID)
}

func syncNetworkShares(tx *state.Tx, was, now *Network) error {
	if err := syncShare(tx, SharedNetwork, &now.Meta, ShareUse, was.Shared, now.Shared); err != nil {
		return err
	}
	return syncShare(tx, SharedNetwork, &now.Meta, ShareExternal, was.External, now.External)
}

// dropShares deletes all shares of a thing that goes away.
func dropShares(tx *state.Tx, object resource.ID) error {
	for _, id := range shares.IDs(tx, "object", state.KeyOf(object)) {
		if err := shares.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}
