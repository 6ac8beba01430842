package identity

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A token is a claim with a MAC: who it is for, where it counts, until when. Nobody can make one
// without a key, so that checking one needs no record of it. What the claim does not hold
// (roles, whether the user is enabled, whether the token was revoked) is looked up in the
// tables for each request, so that every change takes effect at once.

// A Claim is what a token says.
type Claim struct {
	Serial    int // of the key that signed it
	UserID    resource.ID
	Epoch     uint32 // the user's, when the token was made
	Other     uint32 // of a trust: the epoch of its other party, the trustee if the user is the trustor
	Scope     Scope
	Via       Via
	ViaID     resource.ID // the application credential, the trust, the access token or the credential of an access key
	AuditID   resource.ID // names the token, without giving it away
	ParentID  resource.ID // the audit ID of the first token of a chain; zero for a first one
	Methods   Methods
	IssuedAt  time.Time // in whole milliseconds
	ExpiresAt time.Time
}

// Via is what else than a user's own roles stands behind a token.
type Via byte

const (
	ViaUser Via = iota
	ViaApplicationCredential
	ViaTrust
	ViaAccessToken
	ViaAccessKey
)

// Methods are the ways in which a user proved who it is; a set of bits.
type Methods byte

const (
	ByPassword Methods = 1 << iota
	ByToken
	ByApplicationCredential
	ByTOTP
	BySignature   // an EC2 or S3 signature
	ByAccessToken // a consumer's signature
)

// A TokenKey signs tokens. The newest one signs; the older ones are kept for as long as
// a token of theirs can live.
type TokenKey struct {
	resource.Meta
	Serial int       // stands in the tokens
	Secret []byte    `secret:"true"`
	From   time.Time // by the clock that tokens are checked with; it signs until the next one does
}

// from is when the key began to sign.
func (k *TokenKey) from() time.Time {
	if k.From.IsZero() {
		return k.CreatedAt
	}
	return k.From
}

var tokenKeys = state.NewTable("token-key",
	state.Unique("serial", func(k *TokenKey) state.Key { return state.KeyOf(k.Serial) }),
)

// A Revocation ends one token before its time. Its ID is the token's audit ID. It is kept until the key
// that signed the token is gone, and with the key all its tokens for good: no clock, however wrong, makes
// a revoked token a good one again.
type Revocation struct {
	resource.Meta
	Serial    int // the key's
	ExpiresAt time.Time
}

var revocations = state.NewTable("revocation",
	state.Index("serial", func(r *Revocation) state.Key { return state.KeyOf(r.Serial) }),
)

// The layout of a token: a version, the key's serial, what follows, then the MAC of all before it.
const (
	tokenVersion  = 1
	tokenKeyBytes = 32
	macBytes      = sha256.Size
	claimLeast    = 1 + 4 + 1 + 1 + 16 + 4 + 16 + 8 + 8
	claimMost     = claimLeast + 3*16 + 4
	// TokenMost is the length of the longest token in characters.
	TokenMost = ((claimMost+macBytes)*8 + 5) / 6
)

// Bits of a token's second part.
const (
	shapeProject = 1 << iota
	shapeDomain
	shapeSystem
	shapeParent
	shapeCredential
	shapeTrust
	shapeAccess
	shapeKey
)

var errToken = errors.New("not a token")

func (c *Claim) encode(key *TokenKey) string {
	b := make([]byte, 0, claimMost+macBytes)
	b = append(b, tokenVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(key.Serial))
	b = append(b, c.shape(), byte(c.Methods))
	b = append(b, c.UserID[:]...)
	b = binary.BigEndian.AppendUint32(b, c.Epoch)
	b = append(b, c.AuditID[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(c.IssuedAt.UnixMilli()))
	b = binary.BigEndian.AppendUint64(b, uint64(c.ExpiresAt.UnixMilli()))
	for _, id := range []resource.ID{c.Scope.id(), c.ParentID, c.ViaID} {
		if !id.IsZero() {
			b = append(b, id[:]...)
		}
	}
	if c.Via == ViaTrust {
		b = binary.BigEndian.AppendUint32(b, c.Other)
	}
	return base64.RawURLEncoding.EncodeToString(append(b, mac(key, b)...))
}

func (c *Claim) shape() byte {
	var shape byte
	switch c.Scope.kind() {
	case "project":
		shape |= shapeProject
	case "domain":
		shape |= shapeDomain
	case "system":
		shape |= shapeSystem
	}
	if !c.ParentID.IsZero() {
		shape |= shapeParent
	}
	switch c.Via {
	case ViaApplicationCredential:
		shape |= shapeCredential
	case ViaTrust:
		shape |= shapeTrust
	case ViaAccessToken:
		shape |= shapeAccess
	case ViaAccessKey:
		shape |= shapeKey
	}
	return shape
}

func mac(key *TokenKey, b []byte) []byte {
	h := hmac.New(sha256.New, key.Secret)
	h.Write(b)
	return h.Sum(nil)
}

// decode checks a token's MAC, with the key that find gives for its serial, and reads it. Whatever
// is wrong, the answer is the same.
func decode(token string, find func(serial int) *TokenKey) (*Claim, error) {
	// The decoder skips line ends, which would make two spellings of one token.
	if len(token) > TokenMost || strings.ContainsAny(token, "\r\n") {
		return nil, errToken
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < claimLeast+macBytes || b[0] != tokenVersion {
		return nil, errToken
	}
	key := find(int(binary.BigEndian.Uint32(b[1:])))
	if key == nil {
		return nil, errToken
	}
	b, sum := b[:len(b)-macBytes], b[len(b)-macBytes:]
	if !hmac.Equal(sum, mac(key, b)) {
		return nil, errToken
	}
	return parse(b)
}

// parse reads what encode wrote, less the MAC.
func parse(b []byte) (*Claim, error) {
	shape, rest := b[5], b[7:]
	next := func() (id resource.ID) {
		if len(rest) < len(id) {
			rest = nil
			return id
		}
		copy(id[:], rest)
		rest = rest[len(id):]
		return id
	}
	c := &Claim{Serial: int(binary.BigEndian.Uint32(b[1:])), Methods: Methods(b[6]), UserID: next()}
	c.Epoch, rest = binary.BigEndian.Uint32(rest), rest[4:]
	c.AuditID = next()
	c.IssuedAt, rest = time.UnixMilli(int64(binary.BigEndian.Uint64(rest))).UTC(), rest[8:]
	c.ExpiresAt, rest = time.UnixMilli(int64(binary.BigEndian.Uint64(rest))).UTC(), rest[8:]
	switch shape & (shapeProject | shapeDomain | shapeSystem) {
	case 0:
	case shapeProject:
		c.Scope.ProjectID = next()
	case shapeDomain:
		c.Scope.DomainID = next()
	case shapeSystem:
		c.Scope.System = true
	default:
		return nil, errToken
	}
	if shape&shapeParent != 0 {
		c.ParentID = next()
	}
	switch shape & (shapeCredential | shapeTrust | shapeAccess | shapeKey) {
	case 0:
	case shapeCredential:
		c.Via, c.ViaID = ViaApplicationCredential, next()
	case shapeTrust:
		c.Via, c.ViaID = ViaTrust, next()
		if len(rest) < 4 {
			return nil, errToken
		}
		c.Other, rest = binary.BigEndian.Uint32(rest), rest[4:]
	case shapeAccess:
		c.Via, c.ViaID = ViaAccessToken, next()
	case shapeKey:
		c.Via, c.ViaID = ViaAccessKey, next()
	default:
		return nil, errToken
	}
	if len(rest) != 0 || c.shape() != shape {
		return nil, errToken
	}
	return c, nil
}

func findKey(tx *state.Tx) func(int) *TokenKey {
	return func(serial int) *TokenKey {
		for k := range tokenKeys.Peek(tx, "serial", state.Range{Prefix: state.KeyOf(serial)}) {
			return k
		}
		return nil
	}
}

func newestKey(tx *state.Tx) *TokenKey {
	for k := range tokenKeys.Peek(tx, "serial", state.Range{Reverse: true}) {
		return k
	}
	return nil
}

// signingKey gives the newest key, and makes the first one.
func (s *Service) signingKey(ctx context.Context) (*TokenKey, error) {
	if k := newestKey(s.State.Latest()); k != nil {
		return k, nil
	}
	if err := s.addKey(ctx, 0); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if k := newestKey(tx); k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("there is no key to sign tokens with")
}

// addKey makes the key after the one of a serial number, unless somebody else has.
func (s *Service) addKey(ctx context.Context, after int) error {
	secret, now := s.random(tokenKeyBytes), s.now()
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if newest := newestKey(tx); newest != nil && newest.Serial != after {
			return nil
		}
		return tokenKeys.Put(tx, &TokenKey{Meta: resource.Meta{ID: tx.NewID()}, Serial: after + 1, Secret: secret, From: now})
	})
}

// RotateKeys makes a new key to sign tokens with. Tokens of the older keys stay good for their
// time; Sweep forgets the keys after that.
func (s *Service) RotateKeys(ctx context.Context) error {
	newest, err := s.signingKey(ctx)
	if err != nil {
		return err
	}
	return s.addKey(ctx, newest.Serial)
}

const (
	keyLife = 24 * time.Hour // a key signs for so long
	// mostRevocations of one key's tokens: then another key signs, so that they can be forgotten.
	mostRevocations = 100_000
	sweepAtOnce     = 1000 // objects in one transaction
)

// keyDue reports whether the newest key has signed for long enough. One that began in the future was
// made while the clock was wrong; what it signed then is refused by now.
func (s *Service) keyDue(tx *state.Tx, now time.Time) bool {
	k := newestKey(tx)
	if k == nil {
		return false
	}
	age := now.Sub(k.from())
	return age >= keyLife || age < -clockSlack || age >= s.config.TokenLife && revocations.Len(tx) >= mostRevocations
}

// Sweep forgets what time has made useless: keys whose tokens have all expired, revocations of their tokens,
// request and access tokens that have expired themselves. And it changes the key, once a day. It may run at
// any time.
func (s *Service) Sweep(ctx context.Context) error {
	now := s.now()
	if s.keyDue(s.State.Latest(), now) {
		if err := s.RotateKeys(ctx); err != nil {
			return err
		}
	}
	for left := 0; left == 0; {
		err := s.State.Update(ctx, func(tx *state.Tx) error {
			left = sweepAtOnce
			return s.sweep(tx, now, &left)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sweep forgets up to a number of objects, and counts that down.
func (s *Service) sweep(tx *state.Tx, now time.Time, left *int) error {
	if err := forget(tx, requestTokens, now, requestTokenLife, func(t *RequestToken) time.Time { return t.ExpiresAt }, left); err != nil {
		return err
	}
	if err := forget(tx, accessTokens, now, accessTokenLife, func(t *AccessToken) time.Time { return t.ExpiresAt }, left); err != nil {
		return err
	}
	keys := collect(tokenKeys.Each(tx, "serial", ""), nil)
	for i, k := range keys {
		// Its tokens are of before any later key began, and live for so long.
		if slices.ContainsFunc(keys[i+1:], func(later *TokenKey) bool { return now.After(later.from().Add(s.config.TokenLife)) }) {
			if err := tokenKeys.Delete(tx, k.ID); err != nil {
				return err
			}
		}
	}
	var old []resource.ID
	for r := range revocations.Peek(tx, "serial", state.Range{}) {
		if findKey(tx)(r.Serial) != nil || len(old) == *left {
			break
		}
		if r.Serial > 0 || !now.Before(r.ExpiresAt) { // none in what an earlier release wrote
			old = append(old, r.ID)
		}
	}
	return drop(tx, revocations, old, left)
}

// forget deletes what has expired, by the table's index "expiry", and what only a wrong clock can have made:
// that lasts for longer than such a thing does.
func forget[T any](tx *state.Tx, table *state.Table[T], now time.Time, life time.Duration, expiry func(*T) time.Time, left *int) error {
	var old []resource.ID
	for _, reverse := range []bool{false, true} {
		for obj := range table.Peek(tx, "expiry", state.Range{Reverse: reverse}) {
			if lives(now, expiry(obj), life) || len(old) == *left {
				break
			}
			old = append(old, any(obj).(resource.Object).GetMeta().ID)
		}
	}
	slices.SortFunc(old, func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
	return drop(tx, table, slices.Compact(old), left)
}

// clockSlack is how far the clock may be set back without ending what was made before.
const clockSlack = time.Hour

// lives reports whether a thing that lasts for some time at the most has not expired. One that would last for
// longer was made under a clock that was wrong.
func lives(now, expires time.Time, life time.Duration) bool {
	return now.Before(expires) && !expires.After(now.Add(life+clockSlack))
}

func drop[T any](tx *state.Tx, table *state.Table[T], ids []resource.ID, left *int) error {
	for _, id := range ids {
		if err := table.Delete(tx, id); err != nil {
			return err
		}
	}
	*left -= len(ids)
	return nil
}

var unauthorized = fault.Errorf(fault.Unauthorized, "The request you have made requires authentication.")

// A Session is a verified token, with what it stands for at this moment.
type Session struct {
	Claim
	User       *User
	UserDomain *Project
	Project    *Project // of a project's scope
	Domain     *Project // of a domain's scope, or of the project
	Roles      []*Role

	Credential *ApplicationCredential // when Via says so
	Trust      *Trust
	Access     *AccessToken
	Key        *Credential
	Rules      []*AccessRule // what the credential is limited to; nil: nothing
}

// Actor is who a session makes of its holder.
func (n *Session) Actor() *Actor {
	a := &Actor{
		UserID: n.User.ID, UserName: n.User.Name, UserDomainID: n.User.DomainID,
		ProjectID: n.Scope.ProjectID, DomainID: n.Scope.DomainID, System: n.Scope.System,
		Roles: names(n.Roles), TokenID: n.AuditID.Hex(), ExpiresAt: n.ExpiresAt,
	}
	if n.Credential != nil {
		a.ApplicationCredentialID, a.Unrestricted = n.Credential.ID, n.Credential.Unrestricted
	}
	if n.Trust != nil {
		a.TrustID = n.Trust.ID
	}
	if n.Access != nil {
		a.AccessTokenID = n.Access.ID
	}
	if n.Key != nil {
		a.AccessKeyID = n.Key.ID
	}
	return a
}

// Verify answers who holds a token. A fault of kind Unauthorized for one that is forged, expired
// or revoked, or whose user or scope is not usable any more.
func (s *Service) Verify(ctx context.Context, token string) (*Actor, error) {
	n, err := s.Session(ctx, token)
	if err != nil {
		return nil, err
	}
	if err := n.permits(ctx); err != nil {
		return nil, err
	}
	return n.Actor(), nil
}

// Session verifies a token and gives all that it stands for. What it points to is shared: look, do not touch.
func (s *Service) Session(ctx context.Context, token string) (*Session, error) {
	tx := s.State.Latest()
	c, err := decode(token, findKey(tx))
	if err != nil {
		return nil, unauthorized
	}
	now := s.now()
	if !lives(now, c.ExpiresAt, s.config.TokenLife) || revocations.Has(tx, c.AuditID) {
		return nil, unauthorized
	}
	return open(tx, c, now)
}

// actorOf is a user in a project as a token made now would make it.
func (s *Service) actorOf(tx *state.Tx, u *User, project resource.ID) (*Actor, error) {
	now := s.now()
	n, err := open(tx, &Claim{UserID: u.ID, Epoch: u.Epoch, Scope: Scope{ProjectID: project},
		IssuedAt: now, ExpiresAt: now.Add(s.config.TokenLife)}, now)
	if err != nil {
		return nil, err
	}
	a := n.Actor()
	a.TokenID = "" // there is none
	return a, nil
}

// open looks up what a claim stands for, and whether all of it is still good.
func open(tx *state.Tx, c *Claim, now time.Time) (*Session, error) {
	n := &Session{Claim: *c}
	var ok bool
	if n.User, ok = users.PeekOne(tx, c.UserID); !ok || !n.User.Enabled || n.User.Epoch != c.Epoch {
		return nil, unauthorized
	}
	if n.UserDomain, ok = projects.PeekOne(tx, n.User.DomainID); !ok || !n.UserDomain.Enabled {
		return nil, unauthorized
	}
	switch c.Scope.kind() {
	case "project":
		if n.Project, ok = projects.PeekOne(tx, c.Scope.ProjectID); !ok || !n.Project.Enabled || n.Project.IsDomain() {
			return nil, unauthorized
		}
		if n.Domain, ok = projects.PeekOne(tx, n.Project.DomainID); !ok || !n.Domain.Enabled {
			return nil, unauthorized
		}
	case "domain":
		if n.Domain, ok = projects.PeekOne(tx, c.Scope.DomainID); !ok || !n.Domain.Enabled || !n.Domain.IsDomain() {
			return nil, unauthorized
		}
	}
	if err := n.findRoles(tx, now); err != nil {
		return nil, err
	}
	if c.Scope.kind() != "" && len(n.Roles) == 0 {
		return nil, unauthorized
	}
	return n, nil
}

func (n *Session) findRoles(tx *state.Tx, now time.Time) error {
	switch n.Via {
	case ViaApplicationCredential:
		ac, ok := appCredentials.PeekOne(tx, n.ViaID)
		if !ok || ac.UserID != n.UserID || ac.InProjectID != n.Scope.ProjectID || ac.expired(now) {
			return unauthorized
		}
		n.Credential, n.Rules = ac, ac.rules(tx)
		n.Roles = rolesOf(tx, held(imply(tx, ac.RoleIDs), imply(tx, assigned(tx, n.UserID, n.Scope))))
	case ViaTrust:
		t, ok := trusts.PeekOne(tx, n.ViaID)
		if !ok || t.expired(now) || t.InProjectID != n.Scope.ProjectID {
			return unauthorized
		}
		if !t.usable(tx, &n.Claim) {
			return unauthorized
		}
		n.Trust = t
		n.Roles = rolesOf(tx, held(imply(tx, t.RoleIDs), imply(tx, assigned(tx, t.TrustorID, n.Scope))))
	case ViaAccessToken:
		t, ok := accessTokens.PeekOne(tx, n.ViaID)
		if !ok || t.UserID != n.UserID || t.InProjectID != n.Scope.ProjectID || !now.Before(t.ExpiresAt) {
			return unauthorized
		}
		n.Access = t
		n.Roles = rolesOf(tx, held(imply(tx, t.RoleIDs), imply(tx, assigned(tx, n.UserID, n.Scope))))
	case ViaAccessKey:
		c, ok := credentials.PeekOne(tx, n.ViaID)
		if !ok || c.Access == "" || c.UserID != n.UserID || c.InProjectID != n.Scope.ProjectID {
			return unauthorized
		}
		n.Key = c
		have := imply(tx, assigned(tx, n.UserID, n.Scope))
		if !c.ApplicationCredentialID.IsZero() {
			ac, ok := appCredentials.PeekOne(tx, c.ApplicationCredentialID)
			if !ok || ac.UserID != n.UserID || ac.InProjectID != n.Scope.ProjectID || ac.expired(now) || ac.Limited {
				return unauthorized
			}
			have = held(imply(tx, ac.RoleIDs), have)
		}
		n.Roles = rolesOf(tx, have)
	default:
		if n.Scope.kind() != "" {
			n.Roles = effective(tx, n.UserID, n.Scope)
		}
	}
	return nil
}

// held gives those that are also in the second list.
func held(want, have []resource.ID) []resource.ID {
	var both []resource.ID
	for _, id := range want {
		for _, h := range have {
			if id == h {
				both = append(both, id)
				break
			}
		}
	}
	return both
}

// RevokeToken ends a token. Whoever holds a token may end it; an admin may end any.
func (s *Service) RevokeToken(ctx context.Context, n *Session) error {
	a := ActorOf(ctx)
	if !a.own(n.UserID) && !a.manages(n.User.DomainID) {
		return refuse("token.revoke")
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if revocations.Has(tx, n.AuditID) {
			return nil
		}
		return revocations.Put(tx, &Revocation{Meta: resource.Meta{ID: n.AuditID}, Serial: n.Serial, ExpiresAt: n.ExpiresAt})
	})
}

// MayValidate asks whether the actor may look at another's token: services, admins and readers
// of the system may, and everybody at their own.
func (s *Service) MayValidate(ctx context.Context, n *Session) error {
	a := ActorOf(ctx)
	if a.own(n.UserID) || a.readsAll() || a.Has("service") {
		return nil
	}
	return refuse("token.validate")
}
