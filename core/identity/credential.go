package identity

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Credential is a secret that a user keeps with us: one of type "ec2" is an access key for
// dialects with signatures, one of type "totp" makes one-time passcodes, others mean nothing to us.
type Credential struct {
	resource.Meta
	Type        string
	UserID      resource.ID
	InProjectID resource.ID // where an access key counts
	Blob        string      `secret:"true"`

	// ApplicationCredentialID is what made an access key, which then counts for no more than that, and
	// ends with it. Zero: the key has all of its user's roles in the project.
	ApplicationCredentialID resource.ID

	Access   string // of type "ec2"
	Secret   string `secret:"true"`
	UsedStep int64  // of type "totp": the interval of the last passcode that was used
}

var credentials = state.NewTable("credential",
	state.Tally(keptBy, func(o *Credential) (state.Key, state.Amounts) { return state.KeyOf(o.UserID), state.Amounts{} }),
	state.Index("user", func(c *Credential) state.Key { return state.KeyOf(c.UserID) }),
	state.Index("project", func(c *Credential) state.Key {
		if c.InProjectID.IsZero() {
			return ""
		}
		return state.KeyOf(c.InProjectID)
	}),
	state.Index("application-credential", func(c *Credential) state.Key {
		if c.ApplicationCredentialID.IsZero() {
			return ""
		}
		return state.KeyOf(c.ApplicationCredentialID)
	}),
	state.Unique("access", func(c *Credential) state.Key {
		if c.Access == "" {
			return ""
		}
		return state.KeyOf(c.Access)
	}),
)

// An accessKey is how an "ec2" credential's blob is written.
type accessKey struct {
	Access string `json:"access"`
	Secret string `json:"secret"`
}

func (c *Credential) check() error {
	switch {
	case c.Type == "" || len(c.Type) > 255:
		return fault.InvalidField("type", "must have 1 to 255 characters")
	case len(c.Blob) > 16<<10:
		return fault.InvalidField("blob", "must be at most %d bytes", 16<<10)
	}
	c.Access, c.Secret = "", ""
	if c.Type != "ec2" {
		return nil
	}
	var key accessKey
	if err := json.Unmarshal([]byte(c.Blob), &key); err != nil || key.Access == "" || key.Secret == "" || len(key.Access) > 128 {
		return fault.InvalidField("blob", "must be a JSON object with access and secret")
	}
	if c.InProjectID.IsZero() {
		return fault.InvalidField("project_id", "must be given for a credential of type ec2")
	}
	c.Access, c.Secret = key.Access, key.Secret
	return nil
}

// CreateAccessKey makes an access key for a user in a project where it holds a role.
func (s *Service) CreateAccessKey(ctx context.Context, user, project resource.ID) (*Credential, error) {
	key := accessKey{hex.EncodeToString(s.random(16)), hex.EncodeToString(s.random(16))}
	blob, err := json.Marshal(key)
	if err != nil {
		return nil, fmt.Errorf("spell an access key: %w", err)
	}
	return s.CreateCredential(ctx, &Credential{Type: "ec2", UserID: user, InProjectID: project, Blob: string(blob)})
}

// CreateCredential keeps a credential.
func (s *Service) CreateCredential(ctx context.Context, c *Credential) (*Credential, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	a, by := ActorOf(ctx), resource.ID{}
	if a.Unrestricted && !a.Admin() && c.Type == "ec2" {
		by = a.ApplicationCredentialID
	}
	kept := *c
	kept.ApplicationCredentialID = by
	if err := kept.mayChange(a, "credential.create"); err != nil {
		return nil, err
	}
	return create(ctx, s, credentials, func(tx *state.Tx) (*Credential, error) {
		if !users.Has(tx, c.UserID) {
			return nil, notFound("user", c.UserID.Hex())
		}
		if err := room(tx, credentials, c.UserID, s.config.Quota.Credentials, "credentials"); err != nil {
			return nil, err
		}
		made := kept
		made.ID = tx.NewID()
		return &made, made.place(ctx, tx)
	})
}

// open reports whether the actor may see and change the secret: its owner may, and an admin of the cloud. A
// delegated actor may not, because with another secret it would be more than it is; but the keys of an
// unrestricted application credential are its own.
func (c *Credential) open(a *Actor) bool {
	switch {
	case a.Unrestricted && a.own(c.UserID) && c.ApplicationCredentialID == a.ApplicationCredentialID:
		return true
	case a.own(c.UserID) && !a.delegated():
		return true
	}
	return a.Admin() && !a.restricted()
}

func (c *Credential) mayChange(a *Actor, action string) error {
	if c.open(a) {
		return nil
	}
	return refuse(action)
}

// shown is the credential as the actor sees it: without its secret, unless that is the actor's business.
func (c *Credential) shown(a *Actor) *Credential {
	if !c.open(a) {
		c.Blob, c.Secret = "", ""
	}
	return c
}

// place checks that an access key's user may use it where it counts.
func (c *Credential) place(ctx context.Context, tx *state.Tx) error {
	if c.InProjectID.IsZero() {
		return nil
	}
	if p, ok := projects.PeekOne(tx, c.InProjectID); !ok || p.IsDomain() {
		return notFound("project", c.InProjectID.Hex())
	}
	if !c.ApplicationCredentialID.IsZero() {
		ac, ok := appCredentials.PeekOne(tx, c.ApplicationCredentialID)
		switch {
		case !ok:
			return unauthorized // gone since the token was checked
		case c.Type != "ec2" || c.UserID != ac.UserID || c.InProjectID != ac.InProjectID:
			return fault.Errorf(fault.Forbidden, "An application credential can keep access keys for its own user and project only.")
		case ac.Limited:
			return fault.Errorf(fault.Forbidden, "An application credential with access rules cannot keep access keys, to which rules do not apply.")
		}
	}
	if !ActorOf(ctx).Admin() && !hasAny(tx, c.UserID, c.InProjectID) {
		return notFound("project", c.InProjectID.Hex())
	}
	return nil
}

// Credential gives one: to its owner, and, without the secret, to who reads the whole system.
func (s *Service) Credential(ctx context.Context, id resource.ID) (*Credential, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	c, ok := credentials.Find(tx, id)
	if !ok || !c.seenBy(ActorOf(ctx)) {
		return nil, missing(ctx, "credential.get", "credential", id.Hex())
	}
	return c.shown(ActorOf(ctx)), nil
}

func (c *Credential) seenBy(a *Actor) bool { return a.own(c.UserID) || a.readsAll() }

// AccessKey gives a user's credential of an access key.
func (s *Service) AccessKey(ctx context.Context, user resource.ID, access string) (*Credential, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := mayReadOf(ctx, "ec2_credential.get", user); err != nil {
		return nil, err
	}
	c, ok := credentials.Lookup(tx, "access", state.KeyOf(access))
	if !ok || c.UserID != user {
		return nil, notFound("credential", access)
	}
	return c.shown(ActorOf(ctx)), nil
}

// Credentials lists those that the actor may see, of one user or of all, and of one type or any.
func (s *Service) Credentials(ctx context.Context, user resource.ID, typ string) ([]*Credential, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	if user.IsZero() && !a.readsAll() {
		user = a.UserID
	}
	keep := func(c *Credential) bool { return c.seenBy(a) && (typ == "" || c.Type == typ) }
	index, key := "", state.Key("")
	if !user.IsZero() {
		index, key = "user", state.KeyOf(user)
	}
	all := collect(credentials.Each(tx, index, key), keep)
	for _, c := range all {
		c.shown(a)
	}
	return all, nil
}

// UpdateCredential changes a credential; its owner only stays the same unless an admin gives it away.
func (s *Service) UpdateCredential(ctx context.Context, id resource.ID, change func(*Credential) error) (*Credential, error) {
	c, err := edit(ctx, s, credentials, id, func(tx *state.Tx, c *Credential) error {
		if !c.seenBy(ActorOf(ctx)) {
			return missingToChange(ctx, "credential.update", "credential", id.Hex())
		}
		if err := c.mayChange(ActorOf(ctx), "credential.update"); err != nil {
			return err
		}
		owner := c.UserID
		if err := change(c); err != nil {
			return err
		}
		if err := c.mayChange(ActorOf(ctx), "credential.update"); err != nil {
			return err
		}
		if err := c.check(); err != nil {
			return err
		}
		if c.UserID != owner {
			if !users.Has(tx, c.UserID) {
				return notFound("user", c.UserID.Hex())
			}
			if err := room(tx, credentials, c.UserID, s.config.Quota.Credentials, "credentials"); err != nil {
				return err
			}
		}
		return c.place(ctx, tx)
	})
	if err != nil {
		return nil, err
	}
	return c.shown(ActorOf(ctx)), nil
}

// DeleteCredential forgets a credential.
func (s *Service) DeleteCredential(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		c, ok := credentials.PeekOne(tx, id)
		if !ok || !c.seenBy(ActorOf(ctx)) {
			return missingToChange(ctx, "credential.delete", "credential", id.Hex())
		}
		if err := c.mayChange(ActorOf(ctx), "credential.delete"); err != nil {
			return err
		}
		return credentials.Delete(tx, id)
	})
}

// DeleteAccessKey forgets a user's credential of an access key.
func (s *Service) DeleteAccessKey(ctx context.Context, user resource.ID, access string) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayReadOf(ctx, "ec2_credential.delete", user); err != nil {
			return err
		}
		c, ok := credentials.Lookup(tx, "access", state.KeyOf(access))
		if !ok || c.UserID != user {
			return notFound("credential", access)
		}
		if err := c.mayChange(ActorOf(ctx), "ec2_credential.delete"); err != nil {
			return err
		}
		return credentials.Delete(tx, c.ID)
	})
}

// EC2Secret gives the secret of an access key and who uses it, for dialects whose requests are
// signed. A fault of kind Unauthorized when there is no such key or it cannot be used now.
func (s *Service) EC2Secret(_ context.Context, access string) (string, *Actor, error) {
	tx := s.State.Latest()
	for c := range credentials.Peek(tx, "access", state.Range{Prefix: state.KeyOf(access)}) {
		n, err := s.byKey(tx, c)
		if err != nil {
			return "", nil, err
		}
		a := n.Actor()
		a.TokenID = "" // there is none
		return c.Secret, a, nil
	}
	return "", nil, unauthorized
}

// AuthenticateKey makes a token for whoever has signed a request with an access key. Only services ask: a
// signature that anybody has seen proves nothing of who shows it.
func (s *Service) AuthenticateKey(ctx context.Context, access string, signed func(secret string) bool) (string, *Session, error) {
	if a := ActorOf(ctx); !a.Admin() && !a.Has("service") {
		return "", nil, refuse("ec2_token.create")
	}
	key, err := s.signingKey(ctx)
	if err != nil {
		return "", nil, err
	}
	tx := s.State.Latest()
	c, ok := credentials.Lookup(tx, "access", state.KeyOf(access))
	if !ok || !signed(c.Secret) {
		return "", nil, unauthorized
	}
	n, err := s.byKey(tx, c)
	if err != nil {
		return "", nil, err
	}
	n.Serial = key.Serial
	copy(n.AuditID[:], s.random(len(n.AuditID)))
	return n.encode(key), n, nil
}

// byKey is the session of whoever signs with an access key.
func (s *Service) byKey(tx *state.Tx, c *Credential) (*Session, error) {
	u, ok := users.PeekOne(tx, c.UserID)
	if !ok {
		return nil, unauthorized
	}
	now := s.now().Truncate(time.Millisecond)
	return open(tx, &Claim{UserID: u.ID, Epoch: u.Epoch, Scope: Scope{ProjectID: c.InProjectID}, Via: ViaAccessKey, ViaID: c.ID,
		Methods: BySignature, IssuedAt: now, ExpiresAt: now.Add(s.config.TokenLife)}, now)
}
