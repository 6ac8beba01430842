package identity

import (
	"context"
	"encoding/hex"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A RequestToken is a consumer's wish to act for some user in a project. The user who
// authorizes it hands its verifier to the consumer, which turns both into an access token.
type RequestToken struct {
	resource.Meta
	ConsumerID  resource.ID
	InProjectID resource.ID
	Secret      string `secret:"true"`
	ExpiresAt   time.Time

	// Set when a user authorizes it.
	UserID   resource.ID
	RoleIDs  []resource.ID
	Verifier string `secret:"true"`
}

var requestTokens = state.NewTable("request-token",
	state.Index("consumer", func(t *RequestToken) state.Key { return state.KeyOf(t.ConsumerID) }),
	state.Index("project", func(t *RequestToken) state.Key { return state.KeyOf(t.InProjectID) }),
	state.Index("user", func(t *RequestToken) state.Key { return state.KeyOf(t.UserID) }),
	state.Index("expiry", func(t *RequestToken) state.Key { return state.KeyOf(t.ExpiresAt) }),
)

// An AccessToken lets a consumer act for a user, with some of the user's roles in one project.
type AccessToken struct {
	resource.Meta
	ConsumerID  resource.ID
	UserID      resource.ID
	InProjectID resource.ID
	RoleIDs     []resource.ID
	Secret      string `secret:"true"`
	ExpiresAt   time.Time
}

var accessTokens = state.NewTable("access-token",
	state.Tally(keptBy, func(o *AccessToken) (state.Key, state.Amounts) { return state.KeyOf(o.UserID), state.Amounts{} }),
	state.Index("consumer", func(t *AccessToken) state.Key { return state.KeyOf(t.ConsumerID) }),
	state.Index("project", func(t *AccessToken) state.Key { return state.KeyOf(t.InProjectID) }),
	state.Index("user", func(t *AccessToken) state.Key { return state.KeyOf(t.UserID) }),
	state.Index("expiry", func(t *AccessToken) state.Key { return state.KeyOf(t.ExpiresAt) }),
)

const (
	requestTokenLife = 8 * time.Hour
	accessTokenLife  = 24 * time.Hour
	// mostRequestTokens of one consumer wait for a user at a time.
	mostRequestTokens = 1000
)

// A Signature says whether a request was signed with a consumer's secret and that of a token, "" for
// none. How it is signed is the dialect's affair.
type Signature func(consumerSecret, tokenSecret string) bool

// nothingSigned is the answer to a wrong signature, whatever is wrong with it.
var nothingSigned = fault.Errorf(fault.Unauthorized, "Invalid signature.")

// RequestAccess notes a consumer's wish to act in a project.
func (s *Service) RequestAccess(ctx context.Context, consumer, project resource.ID, signed Signature) (*RequestToken, error) {
	c, ok := consumers.PeekOne(s.State.Latest(), consumer)
	if !ok || !signed(c.Secret, "") {
		return nil, nothingSigned
	}
	secret, now := hex.EncodeToString(s.random(16)), s.now()
	return create(ctx, s, requestTokens, func(tx *state.Tx) (*RequestToken, error) {
		switch {
		case !consumers.Has(tx, consumer):
			return nil, nothingSigned
		case !Usable(tx, project):
			return nil, notFound("project", project.Hex())
		case len(requestTokens.IDs(tx, "consumer", state.KeyOf(consumer))) >= mostRequestTokens:
			return nil, fault.Errorf(fault.Conflict, "Too many requests of this consumer wait for a user.")
		}
		return &RequestToken{Meta: resource.Meta{ID: tx.NewID()}, ConsumerID: consumer, InProjectID: project,
			Secret: secret, ExpiresAt: now.Add(requestTokenLife)}, nil
	})
}

// AuthorizeAccess lets a consumer have some roles of the actor's own, and gives the verifier that proves it.
func (s *Service) AuthorizeAccess(ctx context.Context, request resource.ID, want []RoleRef) (*RequestToken, error) {
	a := ActorOf(ctx)
	if a.UserID.IsZero() || a.delegated() {
		return nil, refuse("request_token.authorize")
	}
	if len(want) == 0 {
		return nil, fault.InvalidField("roles", "must name at least one role")
	}
	verifier, now := hex.EncodeToString(s.random(8)), s.now()
	if !requestTokens.Has(s.State.Latest(), request) {
		return nil, notFound("request token", request.Hex())
	}
	return edit(ctx, s, requestTokens, request, func(tx *state.Tx, t *RequestToken) error {
		if !lives(now, t.ExpiresAt, requestTokenLife) || !t.UserID.IsZero() {
			return notFound("request token", request.Hex())
		}
		if !users.Has(tx, a.UserID) {
			return unauthorized // gone since its token was checked
		}
		have := imply(tx, assigned(tx, a.UserID, Scope{ProjectID: t.InProjectID}))
		for _, ref := range want {
			r, ok := ref.find(tx)
			if !ok || !slices.Contains(have, r.ID) {
				return fault.Errorf(fault.Forbidden, "You do not hold one of the roles in the project of the request.")
			}
			t.RoleIDs = append(t.RoleIDs, r.ID)
		}
		t.UserID, t.Verifier = a.UserID, verifier
		return nil
	})
}

// CreateAccessToken turns an authorized request and its verifier into an access token, once.
func (s *Service) CreateAccessToken(ctx context.Context, consumer, request resource.ID, verifier string, signed Signature) (*AccessToken, error) {
	tx := s.State.Latest()
	c, ok := consumers.PeekOne(tx, consumer)
	t, there := requestTokens.PeekOne(tx, request)
	if !ok || !there || t.ConsumerID != consumer || !signed(c.Secret, t.Secret) {
		return nil, nothingSigned
	}
	secret, now := hex.EncodeToString(s.random(16)), s.now()
	return create(ctx, s, accessTokens, func(tx *state.Tx) (*AccessToken, error) {
		t, ok := requestTokens.Find(tx, request)
		if !ok || !lives(now, t.ExpiresAt, requestTokenLife) || t.Verifier == "" || !equal(t.Verifier, verifier) {
			return nil, nothingSigned
		}
		if err := room(tx, accessTokens, t.UserID, s.config.Quota.AccessTokens, "access tokens"); err != nil {
			return nil, err
		}
		if err := requestTokens.Delete(tx, request); err != nil {
			return nil, err
		}
		return &AccessToken{Meta: resource.Meta{ID: tx.NewID()}, ConsumerID: consumer, UserID: t.UserID,
			InProjectID: t.InProjectID, RoleIDs: t.RoleIDs, Secret: secret, ExpiresAt: now.Add(accessTokenLife)}, nil
	})
}

// proveAccess checks a consumer's signature with an access token.
func (s *Service) proveAccess(p Proof, c *Claim) (*User, error) {
	tx := s.State.Latest()
	t, ok := accessTokens.PeekOne(tx, p.AccessTokenID)
	if !ok || t.ConsumerID != p.ConsumerID || !lives(c.IssuedAt, t.ExpiresAt, accessTokenLife) || p.Signed == nil {
		return nil, nothingSigned
	}
	consumer, ok := consumers.PeekOne(tx, t.ConsumerID)
	if !ok || !p.Signed(consumer.Secret, t.Secret) {
		return nil, nothingSigned
	}
	if p.Scope != (ScopeRef{}) {
		return nil, fault.Errorf(fault.Unauthorized, "An access token has a scope of its own: do not ask for another.")
	}
	u, ok := users.PeekOne(tx, t.UserID)
	if !ok {
		return nil, nothingSigned
	}
	c.Via, c.ViaID, c.Scope = ViaAccessToken, t.ID, Scope{ProjectID: t.InProjectID}
	if t.ExpiresAt.Before(c.ExpiresAt) {
		c.ExpiresAt = t.ExpiresAt
	}
	return u, nil
}

// AccessTokensOf lists what a user has authorized.
func (s *Service) AccessTokensOf(ctx context.Context, user resource.ID) ([]*AccessToken, error) {
	if err := mayReadOf(ctx, "access_token.list", user); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(accessTokens.Each(tx, "user", state.KeyOf(user)), nil), nil
}

// AccessToken gives one of a user's, with its roles.
func (s *Service) AccessToken(ctx context.Context, user, id resource.ID) (*AccessToken, []*Role, error) {
	if err := mayReadOf(ctx, "access_token.get", user); err != nil {
		return nil, nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	t, ok := accessTokens.Find(tx, id)
	if !ok || t.UserID != user {
		return nil, nil, notFound("access token", id.Hex())
	}
	return t, rolesOf(tx, t.RoleIDs), nil
}

// DeleteAccessToken takes back what a user has authorized, with all tokens that came of it.
func (s *Service) DeleteAccessToken(ctx context.Context, user, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := manageOwn(ctx, "access_token.delete", user); err != nil {
			return err
		}
		if t, ok := accessTokens.PeekOne(tx, id); !ok || t.UserID != user {
			return notFound("access token", id.Hex())
		}
		return accessTokens.Delete(tx, id)
	})
}

// deleteAccess deletes the request and access tokens of a consumer, a project or a user.
func deleteAccess(tx *state.Tx, index string, id resource.ID) error {
	if err := deleteEach(tx, requestTokens, index, state.KeyOf(id)); err != nil {
		return err
	}
	return deleteEach(tx, accessTokens, index, state.KeyOf(id))
}
