package identity

import (
	"context"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Trust lets one user, the trustee, use roles of another, the trustor, in one project. It
// lasts only as long as the trustor holds them.
type Trust struct {
	resource.Meta
	TrustorID    resource.ID
	TrusteeID    resource.ID
	InProjectID  resource.ID
	RoleIDs      []resource.ID
	Impersonate  bool      // tokens are the trustor's, not the trustee's
	ExpiresAt    time.Time // zero: never
	UsesLeft     *int      // tokens that can still be had; nil: any number
	Redelegate   bool      // the trustee may pass it on
	Depth        int       // how many times more
	RedelegateOf resource.ID
}

var trusts = state.NewTable("trust",
	state.Tally(keptBy, func(o *Trust) (state.Key, state.Amounts) { return state.KeyOf(o.TrustorID), state.Amounts{} }),
	state.Index("trustor", func(t *Trust) state.Key { return state.KeyOf(t.TrustorID) }),
	state.Index("trustee", func(t *Trust) state.Key { return state.KeyOf(t.TrusteeID) }),
	state.Index("project", func(t *Trust) state.Key {
		if t.InProjectID.IsZero() {
			return ""
		}
		return state.KeyOf(t.InProjectID)
	}),
	state.Index("parent", func(t *Trust) state.Key { return state.KeyOf(t.RedelegateOf) }),
)

const mostRedelegations = 3

func (t *Trust) expired(now time.Time) bool { return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) }

// parties are whose token one of the trust is, and the other of the two.
func (t *Trust) parties() (bearer, other resource.ID) {
	if t.Impersonate {
		return t.TrustorID, t.TrusteeID
	}
	return t.TrusteeID, t.TrustorID
}

// usable reports whether a token of the trust is still good, roles aside: neither party may have been
// disabled, nor have got a new password since.
func (t *Trust) usable(tx *state.Tx, c *Claim) bool {
	bearer, other := t.parties()
	return c.UserID == bearer && partyGood(tx, bearer, c.Epoch) && partyGood(tx, other, c.Other)
}

func partyGood(tx *state.Tx, id resource.ID, epoch uint32) bool {
	u, ok := users.PeekOne(tx, id)
	return ok && u.Enabled && u.Epoch == epoch && domainEnabled(tx, u.DomainID)
}

// useTrust makes a claim one of a trust, and counts its use.
func (s *Service) useTrust(ctx context.Context, tx *state.Tx, c *Claim, id resource.ID) error {
	t, ok := trusts.PeekOne(tx, id)
	if !ok || t.expired(c.IssuedAt) {
		return unauthorized
	}
	if t.TrusteeID != c.UserID {
		return fault.Errorf(fault.Forbidden, "The user is not the trustee of this trust.")
	}
	trustor, ok := users.PeekOne(tx, t.TrustorID)
	if !ok || !trustor.Enabled {
		return fault.Errorf(fault.Forbidden, "The trustor is disabled.")
	}
	c.Via, c.ViaID, c.Scope, c.Other = ViaTrust, id, Scope{ProjectID: t.InProjectID}, trustor.Epoch
	if t.Impersonate {
		c.UserID, c.Epoch, c.Other = trustor.ID, trustor.Epoch, c.Epoch
	}
	if !t.ExpiresAt.IsZero() && t.ExpiresAt.Before(c.ExpiresAt) {
		c.ExpiresAt = t.ExpiresAt
	}
	have := imply(tx, assigned(tx, t.TrustorID, c.Scope))
	if len(held(t.RoleIDs, have)) < len(t.RoleIDs) {
		return fault.Errorf(fault.Forbidden, "The trustor does not hold the roles of the trust any more.")
	}
	if t.UsesLeft == nil {
		return nil
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		now, ok := trusts.Find(tx, id)
		if !ok || now.UsesLeft != nil && *now.UsesLeft <= 0 {
			return unauthorized
		}
		*now.UsesLeft--
		return trusts.Put(tx, now)
	})
}

// CreateTrust makes a trust of the actor's own powers.
func (s *Service) CreateTrust(ctx context.Context, t *Trust, want []RoleRef) (*Trust, error) {
	a := ActorOf(ctx)
	if a.TrustID.IsZero() && (!a.own(t.TrustorID) || a.restricted()) {
		return nil, refuse("trust.create")
	}
	if !t.ExpiresAt.IsZero() && !t.ExpiresAt.After(s.now()) {
		return nil, fault.InvalidField("expires_at", "must be in the future")
	}
	if t.UsesLeft != nil && *t.UsesLeft < 1 {
		return nil, fault.InvalidField("remaining_uses", "must be at least 1")
	}
	if t.UsesLeft != nil && t.Redelegate {
		return nil, fault.InvalidField("remaining_uses", "must not be set if redelegation is allowed: what is passed on could be used any number of times")
	}
	if t.Depth < 0 || t.Depth > mostRedelegations {
		return nil, fault.Errorf(fault.Forbidden, "A trust cannot be passed on more than %d times.", mostRedelegations)
	}
	return create(ctx, s, trusts, func(tx *state.Tx) (*Trust, error) {
		made := *t
		made.ID = tx.NewID()
		if !users.Has(tx, t.TrustorID) {
			return nil, unauthorized // gone since the token was checked
		}
		if !users.Has(tx, t.TrusteeID) {
			return nil, notFound("user", t.TrusteeID.Hex())
		}
		if p, ok := projects.PeekOne(tx, t.InProjectID); !ok || p.IsDomain() {
			return nil, notFound("project", t.InProjectID.Hex())
		}
		if err := room(tx, trusts, t.TrustorID, s.config.Quota.Trusts, "trusts"); err != nil {
			return nil, err
		}
		have, err := made.handOn(tx, a)
		if err != nil {
			return nil, err
		}
		if len(want) == 0 {
			return nil, fault.Errorf(fault.Forbidden, "At least one role should be specified.")
		}
		for _, ref := range want {
			r, ok := ref.find(tx)
			if !ok {
				return nil, fault.Errorf(fault.NotFound, "Could not find role: %s%s.", ref.Name, hexOrNothing(ref.ID))
			}
			if !slices.Contains(have, r.ID) {
				return nil, fault.Errorf(fault.Forbidden, "You do not hold the role %s in this project.", r.Name)
			}
			made.RoleIDs = append(made.RoleIDs, r.ID)
		}
		return &made, nil
	})
}

func hexOrNothing(id resource.ID) string {
	if id.IsZero() {
		return ""
	}
	return id.Hex()
}

// handOn gives the roles that the actor may give to the trust.
func (t *Trust) handOn(tx *state.Tx, a *Actor) ([]resource.ID, error) {
	if !a.TrustID.IsZero() {
		return t.redelegate(tx, a.TrustID)
	}
	if c, ok := appCredentials.PeekOne(tx, a.ApplicationCredentialID); ok && c.Limited {
		return nil, fault.Errorf(fault.Forbidden, "An application credential with access rules cannot make a trust, to which rules do not apply.")
	}
	return a.mayHandOn(tx, "trust.create", t.InProjectID)
}

// redelegate passes another trust on: within its project, roles, time and number of times.
func (t *Trust) redelegate(tx *state.Tx, from resource.ID) ([]resource.ID, error) {
	parent, ok := trusts.PeekOne(tx, from)
	switch {
	case !ok || !parent.Redelegate || parent.Depth < 1 || parent.UsesLeft != nil:
		return nil, fault.Errorf(fault.Forbidden, "This trust cannot be passed on.")
	case t.TrustorID != parent.TrustorID && t.TrustorID != parent.TrusteeID:
		return nil, refuse("trust.create")
	case t.InProjectID != parent.InProjectID:
		return nil, fault.Errorf(fault.Forbidden, "A trust can be passed on for its own project only.")
	case t.Impersonate && !parent.Impersonate:
		return nil, fault.Errorf(fault.Forbidden, "A trust that does not impersonate cannot be passed on as one that does.")
	case t.UsesLeft != nil:
		return nil, fault.Errorf(fault.Forbidden, "A trust that is passed on cannot limit its uses.")
	case !parent.ExpiresAt.IsZero() && (t.ExpiresAt.IsZero() || t.ExpiresAt.After(parent.ExpiresAt)):
		if !t.ExpiresAt.IsZero() {
			return nil, fault.Errorf(fault.Forbidden, "A trust that is passed on cannot last longer than the first one.")
		}
		t.ExpiresAt = parent.ExpiresAt
	}
	if t.Redelegate && (t.Depth == 0 || t.Depth >= parent.Depth) {
		t.Depth = parent.Depth - 1
	}
	t.RedelegateOf, t.TrustorID = parent.ID, parent.TrustorID
	return held(imply(tx, parent.RoleIDs), imply(tx, assigned(tx, parent.TrustorID, Scope{ProjectID: parent.InProjectID}))), nil
}

// seenBy reports whether the actor gave or got the trust, or may see everything.
func (t *Trust) seenBy(a *Actor) bool {
	return a.own(t.TrustorID) || a.own(t.TrusteeID) || a.readsAll()
}

// Trust gives one trust and the roles that it passes on.
func (s *Service) Trust(ctx context.Context, id resource.ID) (*Trust, []*Role, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	t, ok := trusts.Find(tx, id)
	if !ok || !t.seenBy(ActorOf(ctx)) || t.expired(s.now()) || t.UsesLeft != nil && *t.UsesLeft < 1 {
		return nil, nil, notFound("trust", id.Hex())
	}
	return t, rolesOf(tx, t.RoleIDs), nil
}

// Trusts lists the trusts of a trustor or for a trustee, or for an admin all.
func (s *Service) Trusts(ctx context.Context, trustor, trustee resource.ID) ([]*Trust, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	if !a.readsAll() && !a.own(trustor) && !a.own(trustee) {
		return nil, refuse("trust.list")
	}
	index, key := "", state.Key("")
	switch {
	case !trustor.IsZero():
		index, key = "trustor", state.KeyOf(trustor)
	case !trustee.IsZero():
		index, key = "trustee", state.KeyOf(trustee)
	}
	return collect(trusts.Each(tx, index, key), func(t *Trust) bool {
		return trustee.IsZero() || t.TrusteeID == trustee
	}), nil
}

// DeleteTrust ends a trust, those that were made from it, and all their tokens.
func (s *Service) DeleteTrust(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		a := ActorOf(ctx)
		t, ok := trusts.PeekOne(tx, id)
		if !ok || !t.seenBy(a) {
			return notFound("trust", id.Hex())
		}
		if !a.own(t.TrustorID) && !a.Admin() || a.restricted() {
			return refuse("trust.delete")
		}
		return deleteTrust(tx, id)
	})
}

func deleteTrust(tx *state.Tx, id resource.ID) error {
	for _, child := range trusts.IDs(tx, "parent", state.KeyOf(id)) {
		if err := deleteTrust(tx, child); err != nil {
			return err
		}
	}
	return trusts.Delete(tx, id)
}
