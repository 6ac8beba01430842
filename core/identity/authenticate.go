package identity

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A UserRef names a user: by ID, or by name in a domain.
type UserRef struct {
	ID     resource.ID
	Name   string
	Domain DomainRef
}

// A DomainRef names a domain: by ID or by name.
type DomainRef struct {
	ID   resource.ID
	Name string
}

// A ScopeRef says what a token is wanted for. Unscoped is to ask for none, where leaving all
// out means the user's default project.
type ScopeRef struct {
	Unscoped      bool
	ProjectID     resource.ID
	ProjectName   string
	ProjectDomain DomainRef
	Domain        DomainRef
	System        bool
	TrustID       resource.ID
}

// A Proof is how somebody shows who they are: one or more methods at once.
type Proof struct {
	Methods       []string // in the order in which they were given
	User          UserRef  // of the password or the passcode
	Password      string
	Passcode      string
	Token         string
	CredentialID  resource.ID // of an application credential, or its owner and name:
	Credential    string
	Owner         UserRef
	Secret        string
	ConsumerID    resource.ID // with an access token that a user let it have
	AccessTokenID resource.ID
	Signed        Signature
	Scope         ScopeRef
}

// BadToken is the code of the fault when it is the token of a proof that is no good.
const BadToken = "token"

var methodNames = []struct {
	name string
	bit  Methods
}{
	{"password", ByPassword}, {"token", ByToken}, {"application_credential", ByApplicationCredential}, {"totp", ByTOTP},
	{"ec2credential", BySignature}, {"oauth1", ByAccessToken},
}

// MostMethods is how many ways there are to prove who one is.
var MostMethods = len(methodNames)

// Names are the names of the methods in the set.
func (m Methods) Names() []string {
	names := []string{}
	for _, method := range methodNames {
		if m&method.bit != 0 {
			names = append(names, method.name)
		}
	}
	return names
}

func (u UserRef) find(tx *state.Tx) (*User, bool) {
	if !u.ID.IsZero() {
		return users.PeekOne(tx, u.ID)
	}
	domain, ok := u.Domain.find(tx)
	if !ok || u.Name == "" {
		return nil, false
	}
	for found := range users.Peek(tx, "name", state.Range{Prefix: state.KeyOf(domain.ID, u.Name)}) {
		return found, true
	}
	return nil, false
}

func (d DomainRef) find(tx *state.Tx) (*Project, bool) {
	if !d.ID.IsZero() {
		p, ok := projects.PeekOne(tx, d.ID)
		return p, ok && p.IsDomain()
	}
	for p := range projects.Peek(tx, "name", state.Range{Prefix: state.KeyOf(resource.ID{}, d.Name)}) {
		return p, true
	}
	return nil, false
}

// provePassword answers the user whose password this is. Whatever is wrong, it takes the same time
// and the answer is the same; only the owner of the right password learns that it has expired.
func (s *Service) provePassword(ctx context.Context, ref UserRef, password string) (*User, error) {
	tx := s.State.Latest()
	hash := ""
	u, ok := ref.find(tx)
	if ok {
		hash = u.PasswordHash
	}
	good := false
	if len(password) <= s.config.Password.MaxLength {
		var err error
		if good, err = s.hasher.matches(ctx, hash, password); err != nil {
			return nil, err
		}
	}
	if !ok || !s.judge(ctx, u, good) {
		return nil, unauthorized
	}
	if domain, ok := projects.PeekOne(tx, u.DomainID); !u.Enabled || !ok || !domain.Enabled {
		return nil, unauthorized
	}
	return u, nil
}

// judge is the guard's of what a user has shown.
func (s *Service) judge(ctx context.Context, u *User, good bool) bool {
	if isTrue(u.Options.IgnoreLockout) {
		return good
	}
	return s.guard.judge(ctx, u.ID, good, s.now())
}

// Authenticate checks a proof and makes a token.
func (s *Service) Authenticate(ctx context.Context, p Proof) (string, *Session, error) {
	if state.Planning(ctx) {
		// A plan forgets what it writes, and with it that a passcode or a trust was used.
		return "", nil, fault.Errorf(fault.Unsupported, "A login cannot be planned.")
	}
	c, err := s.prove(ctx, p)
	if err != nil {
		return "", nil, err
	}
	return s.issue(ctx, c, p)
}

// prove checks every method that was given, which must all speak of one user, and begins the claim.
func (s *Service) prove(ctx context.Context, p Proof) (*Claim, error) {
	now := s.now().Truncate(time.Millisecond)
	c := &Claim{IssuedAt: now, ExpiresAt: now.Add(s.config.TokenLife)}
	copy(c.AuditID[:], s.random(len(c.AuditID)))
	if len(p.Methods) == 0 {
		return nil, fault.InvalidField("methods", "must name at least one method")
	}
	for _, method := range p.Methods {
		var u *User
		var err error
		switch method {
		case "password":
			c.Methods |= ByPassword
			if u, err = s.provePassword(ctx, p.User, p.Password); err == nil && u.expired(now) {
				err = fault.Errorf(fault.Unauthorized, "The password is expired and needs to be changed for user: %s.", u.ID.Hex())
			}
		case "totp":
			c.Methods |= ByTOTP
			u, err = s.provePasscode(ctx, p.User, p.Passcode)
		case "token":
			u, err = s.proveToken(ctx, p.Token, c)
		case "application_credential":
			c.Methods |= ByApplicationCredential
			u, err = s.proveSecret(ctx, p, c)
		case "oauth1":
			c.Methods |= ByAccessToken
			u, err = s.proveAccess(p, c)
		default:
			err = fault.Errorf(fault.Unauthorized, "Attempted to authenticate with an unsupported method.")
		}
		if err != nil {
			return nil, err
		}
		if !c.UserID.IsZero() && c.UserID != u.ID {
			return nil, unauthorized
		}
		c.UserID, c.Epoch = u.ID, u.Epoch
	}
	if u, ok := users.PeekOne(s.State.Latest(), c.UserID); !ok || !u.Options.satisfied(c.Methods) {
		return nil, unauthorized
	}
	if c.Methods&(ByPassword|ByTOTP) != 0 {
		s.guard.succeeded(ctx, c.UserID, now)
	}
	return c, nil
}

// satisfied reports whether the methods are enough for this user.
func (o *UserOptions) satisfied(by Methods) bool {
	if !isTrue(o.MultiFactor) || len(o.MultiFactorRules) == 0 || by&(ByToken|ByApplicationCredential|ByAccessToken) != 0 {
		return true
	}
	used := by.Names()
	return slices.ContainsFunc(o.MultiFactorRules, func(rule []string) bool {
		return !slices.ContainsFunc(rule, func(name string) bool { return !slices.Contains(used, name) })
	})
}

// proveToken goes on from a token: the new one ends when the old one does.
func (s *Service) proveToken(ctx context.Context, token string, c *Claim) (*User, error) {
	n, err := s.Session(ctx, token)
	if fault.Is(err, fault.Unauthorized) {
		return nil, fault.Errorf(fault.Unauthorized, "Could not find token.").WithCode(BadToken)
	}
	if err != nil {
		return nil, err
	}
	if n.Via != ViaUser {
		return nil, fault.Errorf(fault.Forbidden, "A token of a trust or of an application credential cannot be exchanged for another.")
	}
	c.Methods |= n.Methods | ByToken
	c.ExpiresAt = n.ExpiresAt
	if c.ParentID = n.ParentID; c.ParentID.IsZero() {
		c.ParentID = n.AuditID
	}
	return n.User, nil
}

func (s *Service) proveSecret(ctx context.Context, p Proof, c *Claim) (*User, error) {
	tx := s.State.Latest()
	ac, ok := appCredentials.PeekOne(tx, p.CredentialID)
	if p.CredentialID.IsZero() {
		var owner *User
		if owner, ok = p.Owner.find(tx); ok {
			ac, ok = nil, false
			for found := range appCredentials.Peek(tx, "name", state.Range{Prefix: state.KeyOf(owner.ID, p.Credential)}) {
				ac, ok = found, true
			}
		}
	}
	hash := fastHash("") // what is not there takes the same time as what was generated
	if ok {
		hash = ac.SecretHash
	}
	good, err := s.hasher.matchesSecret(ctx, hash, p.Secret)
	if err != nil {
		return nil, err
	}
	if ok && !strings.HasPrefix(ac.SecretHash, fastPrefix) {
		good = s.guard.judge(ctx, ac.ID, good, s.now()) // somebody has thought of it, and others may guess it
	}
	if !ok || !good || ac.expired(s.now()) {
		return nil, unauthorized
	}
	if p.Scope != (ScopeRef{}) {
		return nil, fault.Errorf(fault.Unauthorized, "An application credential has a scope of its own: do not ask for another.")
	}
	u, ok := users.PeekOne(tx, ac.UserID)
	if !ok || !u.Enabled {
		return nil, unauthorized
	}
	c.Via, c.ViaID, c.Scope = ViaApplicationCredential, ac.ID, Scope{ProjectID: ac.InProjectID}
	if !ac.ExpiresAt.IsZero() && ac.ExpiresAt.Before(c.ExpiresAt) {
		c.ExpiresAt = ac.ExpiresAt
	}
	return u, nil
}

// provePasscode checks a one-time passcode (RFC 6238: SHA-1, 30 seconds, six digits) against the user's
// secrets, for this interval and the one before. A passcode works once. Wrong ones count like wrong passwords.
func (s *Service) provePasscode(ctx context.Context, ref UserRef, passcode string) (*User, error) {
	tx := s.State.Latest()
	u, ok := ref.find(tx)
	if !ok {
		return nil, unauthorized
	}
	cred, at := u.passcode(tx, s.now().Unix()/30, passcode)
	if !s.judge(ctx, u, cred != nil) {
		return nil, unauthorized
	}
	return u, s.usePasscode(ctx, cred.ID, at)
}

// mostPasscodes is how many of a user's secrets for passcodes are tried.
const mostPasscodes = 8

// passcode finds the user's secret that makes a passcode at a step of the clock or the one before, and at which.
func (u *User) passcode(tx *state.Tx, step int64, passcode string) (*Credential, int64) {
	tried := 0
	for cred := range credentials.Peek(tx, "user", state.Range{Prefix: state.KeyOf(u.ID)}) {
		if cred.Type != "totp" || tried == mostPasscodes {
			continue
		}
		tried++
		secret, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(strings.TrimRight(strings.ToUpper(cred.Blob), "="))
		if err != nil {
			continue
		}
		for _, at := range []int64{step, step - 1} {
			if cred.fresh(at, step) && equal(totp(secret, at), passcode) {
				return cred, at
			}
		}
	}
	return nil, 0
}

// fresh reports whether the passcode of a step has not been used yet. A use in what is the future by now was
// a wrong clock's, and would refuse every passcode until then.
func (c *Credential) fresh(at, step int64) bool { return at > c.UsedStep || c.UsedStep > step+1 }

func totp(secret []byte, step int64) string {
	h := hmac.New(sha1.New, secret)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(step)))
	sum := h.Sum(nil)
	at := sum[len(sum)-1] & 0xf
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1000000)
}

func (s *Service) usePasscode(ctx context.Context, id resource.ID, at int64) error {
	now := s.now().Unix() / 30
	return s.State.Update(ctx, func(tx *state.Tx) error {
		cred, ok := credentials.Find(tx, id)
		if !ok || !cred.fresh(at, now) {
			return unauthorized
		}
		cred.UsedStep = at
		return credentials.Put(tx, cred)
	})
}

// issue finds the scope, and makes the token if its user holds a role there.
func (s *Service) issue(ctx context.Context, c *Claim, p Proof) (string, *Session, error) {
	key, err := s.signingKey(ctx)
	if err != nil {
		return "", nil, err
	}
	c.Serial = key.Serial
	tx := s.State.Latest()
	if c.Via == ViaUser {
		if err := s.aim(ctx, tx, c, p.Scope); err != nil {
			return "", nil, err
		}
		tx = s.State.Latest()
	}
	n, err := open(tx, c, c.IssuedAt)
	if err != nil && c.Via == ViaUser && p.Scope == (ScopeRef{}) {
		// The default project cannot be had: the user gets a token without a scope.
		c.Scope = Scope{}
		n, err = open(tx, c, c.IssuedAt)
	}
	if err != nil {
		return "", nil, err
	}
	return c.encode(key), n, nil
}

// aim turns what was asked for into a scope.
func (s *Service) aim(ctx context.Context, tx *state.Tx, c *Claim, want ScopeRef) error {
	switch {
	case want.Unscoped:
	case want.System:
		c.Scope.System = true
	case !want.TrustID.IsZero():
		return s.useTrust(ctx, tx, c, want.TrustID)
	case !want.ProjectID.IsZero():
		c.Scope.ProjectID = want.ProjectID
	case want.ProjectName != "":
		domain, ok := want.ProjectDomain.find(tx)
		if !ok {
			return unauthorized
		}
		found := false
		for p := range projects.Peek(tx, "name", state.Range{Prefix: state.KeyOf(domain.ID, want.ProjectName)}) {
			c.Scope.ProjectID, found = p.ID, true
		}
		if !found {
			return unauthorized
		}
	case want.Domain != DomainRef{}:
		domain, ok := want.Domain.find(tx)
		if !ok {
			return unauthorized
		}
		c.Scope.DomainID = domain.ID
	default:
		if u, ok := users.PeekOne(tx, c.UserID); ok {
			c.Scope.ProjectID = u.DefaultProjectID
		}
	}
	return nil
}
