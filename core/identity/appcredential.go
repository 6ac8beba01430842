package identity

import (
	"context"
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// An ApplicationCredential lets a program act for a user in one project, with some of the user's
// roles, without knowing the user's password.
type ApplicationCredential struct {
	resource.Meta
	UserID       resource.ID
	InProjectID  resource.ID
	Description  string
	RoleIDs      []resource.ID
	RuleIDs      []resource.ID // the access rules that it is limited to
	Limited      bool          // it has access rules, even if none is left
	Unrestricted bool          // it may make and delete credentials of its own kind
	ExpiresAt    time.Time     // zero: never
	SecretHash   string        `secret:"true"`
}

var appCredentials = state.NewTable("application-credential",
	state.Tally(keptBy, func(o *ApplicationCredential) (state.Key, state.Amounts) {
		return state.KeyOf(o.UserID), state.Amounts{}
	}),
	state.Unique("name", func(c *ApplicationCredential) state.Key { return state.KeyOf(c.UserID, c.Name) }),
	state.Index("user", func(c *ApplicationCredential) state.Key { return state.KeyOf(c.UserID) }),
	state.Index("project", func(c *ApplicationCredential) state.Key { return state.KeyOf(c.InProjectID) }),
	state.MultiIndex("rule", func(c *ApplicationCredential) []state.Key {
		keys := make([]state.Key, len(c.RuleIDs))
		for i, id := range c.RuleIDs {
			keys[i] = state.KeyOf(id)
		}
		return keys
	}),
)

// An AccessRule allows one kind of request to one service.
type AccessRule struct {
	resource.Meta
	UserID  resource.ID
	Service string // a service's type
	Method  string
	Path    string // * stands for a part between slashes, ** for anything, {name} as *
}

var accessRules = state.NewTable("access-rule",
	state.Tally(keptBy, func(o *AccessRule) (state.Key, state.Amounts) { return state.KeyOf(o.UserID), state.Amounts{} }),
	state.Unique("rule", func(r *AccessRule) state.Key { return state.KeyOf(r.UserID, r.Service, r.Method, r.Path) }),
	state.Index("user", func(r *AccessRule) state.Key { return state.KeyOf(r.UserID) }),
)

func (c *ApplicationCredential) expired(now time.Time) bool {
	return !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt)
}

// rules are what the credential is limited to; nil when it is not.
func (c *ApplicationCredential) rules(tx *state.Tx) []*AccessRule {
	if !c.Limited {
		return nil
	}
	all := []*AccessRule{}
	for _, id := range c.RuleIDs {
		if r, ok := accessRules.PeekOne(tx, id); ok {
			all = append(all, r)
		}
	}
	return all
}

// A Request is what access rules are matched with.
type Request struct {
	Services []string // the types of the service that is asked
	Method   string
	Path     string // as in the service's own documentation, without where it is mounted
}

type requestKey struct{}

// WithRequest returns a context that says what is asked, for access rules.
func WithRequest(ctx context.Context, r Request) context.Context {
	return context.WithValue(ctx, requestKey{}, r)
}

// permits asks whether the access rules of a session's credential, if it has any, allow the
// context's request.
func (n *Session) permits(ctx context.Context) error {
	if n.Rules == nil {
		return nil
	}
	r, _ := ctx.Value(requestKey{}).(Request)
	for _, rule := range n.Rules {
		if rule.Method == r.Method && slices.Contains(r.Services, rule.Service) && matchPath(rule.Path, r.Path) {
			return nil
		}
	}
	return fault.Errorf(fault.Unauthorized, "The access rules of the application credential do not allow this request.")
}

// pathMost is the length of the longest path that a rule can allow.
const pathMost = 4096

// What a part of a rule's pattern matches, unless it is the byte that it is.
const (
	segment  = -1 - iota // *, {name}: something between slashes
	anything             // **: whatever it is, also nothing
)

// parsePath cuts a rule's pattern into bytes, segment and anything.
func parsePath(pattern string) []int {
	var parts []int
	for pattern != "" {
		switch name := strings.IndexByte(pattern, '}'); {
		case strings.HasPrefix(pattern, "**"):
			parts = append(parts, anything)
			pattern = strings.TrimLeft(pattern, "*")
			continue
		case pattern[0] == '*':
			parts = append(parts, segment)
		case pattern[0] == '{' && name > 0:
			parts = append(parts, segment)
			pattern = pattern[name:]
		default:
			parts = append(parts, int(pattern[0]))
		}
		pattern = pattern[1:]
	}
	return parts
}

// matchPath matches a path with a rule's pattern. Both come from whoever likes to: it keeps the set of places
// in the pattern that what was read so far may have led to, and so takes no more than
// the product of the two lengths.
func matchPath(pattern, path string) bool {
	if len(path) > pathMost {
		return false
	}
	parts := parsePath(pattern)
	at, next := make([]bool, len(parts)+1), make([]bool, len(parts)+1)
	at[0] = true
	for i := range len(path) + 1 {
		alive := false
		clear(next)
		for p, here := range at {
			if !here {
				continue
			}
			alive = true
			if p == len(parts) {
				continue
			}
			if parts[p] == anything {
				at[p+1] = true // it may end here; seen later in this round
			}
			if i == len(path) {
				continue
			}
			switch c := path[i]; {
			case parts[p] == anything:
				next[p] = true
			case parts[p] == segment && c != '/':
				next[p], next[p+1] = true, true
			case parts[p] == int(c):
				next[p+1] = true
			}
		}
		if i == len(path) || !alive {
			break
		}
		at, next = next, at
	}
	return at[len(parts)]
}

// A NewApplicationCredential is what is asked for. The project is that of the actor's token.
type NewApplicationCredential struct {
	Name         string
	Description  string
	Secret       string // "": one is generated
	Roles        []RoleRef
	Rules        []AccessRule
	RuleIDs      []resource.ID
	Limited      bool
	Unrestricted bool
	ExpiresAt    time.Time
}

// A RoleRef names a role of the cloud by ID or by name.
type RoleRef struct {
	ID   resource.ID
	Name string
}

func (r RoleRef) find(tx *state.Tx) (*Role, bool) {
	if !r.ID.IsZero() {
		return roles.PeekOne(tx, r.ID)
	}
	for found := range roles.Peek(tx, "name", state.Range{Prefix: state.KeyOf(resource.ID{}, r.Name)}) {
		return found, true
	}
	return nil, false
}

const (
	mostRules   = 64
	secretLeast = 8 // characters that a chosen secret has
)

func (c *NewApplicationCredential) check(now time.Time) error {
	if err := checkName(c.Name, 255); err != nil {
		return err
	}
	if !c.ExpiresAt.IsZero() && !c.ExpiresAt.After(now) {
		return fault.InvalidField("expires_at", "must be in the future")
	}
	if err := checkTexts(text{"description", c.Description}); err != nil {
		return err
	}
	if len(c.Rules)+len(c.RuleIDs) > mostRules {
		return fault.InvalidField("access_rules", "must be at most %d", mostRules)
	}
	for _, r := range c.Rules {
		if r.Service == "" || len(r.Service) > wordMost || !strings.HasPrefix(r.Path, "/") || len(r.Path) > 128 || strings.Count(r.Path, "*")+strings.Count(r.Path, "{") > 8 || !slices.Contains(httpMethods, r.Method) {
			return fault.InvalidField("access_rules", "must each have a service, a method, and a path of at most 128 characters that begins with a slash")
		}
	}
	return nil
}

var httpMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// CreateApplicationCredential makes one for the actor itself, and gives its secret, which
// nobody can read again.
func (s *Service) CreateApplicationCredential(ctx context.Context, user resource.ID, want NewApplicationCredential) (*ApplicationCredential, string, error) {
	a := ActorOf(ctx)
	switch {
	case !a.own(user) || a.restricted():
		return nil, "", refuse("application_credential.create")
	case a.ProjectID.IsZero():
		return nil, "", fault.Errorf(fault.Invalid, "An application credential is for a project: use a token with a project's scope.")
	}
	if err := want.check(s.now()); err != nil {
		return nil, "", err
	}
	secret, hash := want.Secret, ""
	if secret == "" {
		secret = base64.RawURLEncoding.EncodeToString(s.random(64))
		hash = fastHash(secret)
	} else {
		if least := max(secretLeast, s.config.Password.MinLength); len([]rune(secret)) < least {
			return nil, "", fault.InvalidField("secret", "must have at least %d characters", least)
		}
		if len(secret) > s.config.Password.MaxLength {
			return nil, "", fault.InvalidField("secret", "must have at most %d bytes", s.config.Password.MaxLength)
		}
		var err error
		if hash, err = s.hasher.hash(ctx, secret); err != nil {
			return nil, "", err
		}
	}
	// What a repeated request gets again: a secret that was generated is kept nowhere else.
	type outcome struct {
		ID     resource.ID
		Secret string
	}
	out, err := state.Do(ctx, s.State, func(tx *state.Tx) (outcome, error) {
		made := &ApplicationCredential{
			UserID: user, InProjectID: a.ProjectID, Description: want.Description, Limited: want.Limited,
			Unrestricted: want.Unrestricted, ExpiresAt: want.ExpiresAt, SecretHash: hash,
		}
		made.ID, made.Name = tx.NewID(), want.Name
		out := outcome{ID: made.ID}
		if want.Secret == "" {
			out.Secret = secret
		}
		return out, s.addApplicationCredential(tx, made, want, a)
	})
	if err != nil {
		return nil, "", err
	}
	if want.Secret == "" {
		secret = out.Secret
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, "", err
	}
	made, err := appCredentials.Get(tx, out.ID)
	return made, secret, err
}

func (s *Service) addApplicationCredential(tx *state.Tx, made *ApplicationCredential, want NewApplicationCredential, a *Actor) error {
	user := made.UserID
	if !users.Has(tx, user) || !projects.Has(tx, made.InProjectID) {
		return unauthorized // gone since the token was checked
	}
	var err error
	if made.RoleIDs, err = want.roles(tx, a); err != nil {
		return err
	}
	if made.RuleIDs, err = want.rules(tx, user); err != nil {
		return err
	}
	if err := room(tx, accessRules, user, s.config.Quota.AccessRules+1, "access rules"); err != nil {
		return err
	}
	if err := room(tx, appCredentials, user, s.config.Quota.ApplicationCredentials, "application credentials"); err != nil {
		return err
	}
	if parent, ok := appCredentials.PeekOne(tx, a.ApplicationCredentialID); ok && !made.within(parent) {
		return fault.Errorf(fault.Forbidden, "An application credential with access rules can make only such as have no other rules.")
	}
	return appCredentials.Put(tx, made)
}

// within reports whether a credential allows no requests that another, which makes it, does not.
func (c *ApplicationCredential) within(parent *ApplicationCredential) bool {
	return !parent.Limited || c.Limited && !slices.ContainsFunc(c.RuleIDs, func(id resource.ID) bool { return !slices.Contains(parent.RuleIDs, id) })
}

// roles are those that were asked for, which the actor must hold, or all of its token's.
func (c *NewApplicationCredential) roles(tx *state.Tx, a *Actor) ([]resource.ID, error) {
	have, err := a.mayHandOn(tx, "application_credential.create", a.ProjectID)
	if err != nil {
		return nil, err
	}
	var ids []resource.ID
	if len(c.Roles) == 0 {
		for _, r := range rolesOf(tx, have) {
			ids = append(ids, r.ID)
		}
		return ids, nil
	}
	for _, ref := range c.Roles {
		r, ok := ref.find(tx)
		if !ok || !slices.Contains(have, r.ID) {
			return nil, fault.Errorf(fault.Invalid, "Invalid application credential: you do not hold one of the roles in this project.")
		}
		ids = append(ids, r.ID)
	}
	return ids, nil
}

// rules finds or makes the access rules.
func (c *NewApplicationCredential) rules(tx *state.Tx, user resource.ID) ([]resource.ID, error) {
	var ids []resource.ID
	for _, id := range c.RuleIDs {
		if r, ok := accessRules.PeekOne(tx, id); !ok || r.UserID != user {
			return nil, notFound("Access Rule", id.Hex())
		}
		ids = append(ids, id)
	}
	for _, r := range c.Rules {
		if old, ok := accessRules.Lookup(tx, "rule", state.KeyOf(user, r.Service, r.Method, r.Path)); ok {
			ids = append(ids, old.ID)
			continue
		}
		r.Meta, r.UserID = resource.Meta{ID: tx.NewID()}, user
		if err := accessRules.Put(tx, &r); err != nil {
			return nil, err
		}
		ids = append(ids, r.ID)
	}
	return ids, nil
}

// mayReadOf asks whether the actor may see what a user keeps for itself: the user may, and who reads
// the whole system.
func mayReadOf(ctx context.Context, action string, user resource.ID) error {
	if a := ActorOf(ctx); a.own(user) || a.readsAll() {
		return nil
	}
	return refuse(action)
}

// ApplicationCredentialsOf lists a user's.
func (s *Service) ApplicationCredentialsOf(ctx context.Context, user resource.ID) ([]*ApplicationCredential, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := mayReadOf(ctx, "application_credential.list", user); err != nil {
		return nil, err
	}
	return collect(appCredentials.Each(tx, "user", state.KeyOf(user)), nil), nil
}

// ApplicationCredential gives one of a user's.
func (s *Service) ApplicationCredential(ctx context.Context, user, id resource.ID) (*ApplicationCredential, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := mayReadOf(ctx, "application_credential.get", user); err != nil {
		return nil, err
	}
	c, ok := appCredentials.Find(tx, id)
	if !ok || c.UserID != user {
		return nil, noApplicationCredential(id)
	}
	return c, nil
}

func noApplicationCredential(id resource.ID) error {
	return notFound("Application Credential", id.Hex())
}

// DeleteApplicationCredential deletes one with the access keys that it made; its tokens end at once.
func (s *Service) DeleteApplicationCredential(ctx context.Context, user, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := manageOwn(ctx, "application_credential.delete", user); err != nil {
			return err
		}
		if c, ok := appCredentials.PeekOne(tx, id); !ok || c.UserID != user {
			return noApplicationCredential(id)
		}
		if err := deleteEach(tx, credentials, "application-credential", state.KeyOf(id)); err != nil {
			return err
		}
		return appCredentials.Delete(tx, id)
	})
}

// manageOwn asks whether the actor may change what a user keeps for itself: the user may, by a token
// that is not restricted; and an admin of the cloud. An admin of its domain may not: it would be able to
// act as the user.
func manageOwn(ctx context.Context, action string, user resource.ID) error {
	a := ActorOf(ctx)
	if !a.restricted() && (a.own(user) || a.Admin()) {
		return nil
	}
	return refuse(action)
}

// AccessRulesOf lists the rules that a user has made.
func (s *Service) AccessRulesOf(ctx context.Context, user resource.ID) ([]*AccessRule, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := mayReadOf(ctx, "access_rule.list", user); err != nil {
		return nil, err
	}
	return collect(accessRules.Each(tx, "user", state.KeyOf(user)), nil), nil
}

// AccessRule gives one of a user's.
func (s *Service) AccessRule(ctx context.Context, user, id resource.ID) (*AccessRule, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := mayReadOf(ctx, "access_rule.get", user); err != nil {
		return nil, err
	}
	r, ok := accessRules.Find(tx, id)
	if !ok || r.UserID != user {
		return nil, notFound("Access Rule", id.Hex())
	}
	return r, nil
}

// DeleteAccessRule deletes a rule that no credential uses.
func (s *Service) DeleteAccessRule(ctx context.Context, user, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := manageOwn(ctx, "access_rule.delete", user); err != nil {
			return err
		}
		if r, ok := accessRules.PeekOne(tx, id); !ok || r.UserID != user {
			return notFound("Access Rule", id.Hex())
		}
		if _, used := appCredentials.Lookup(tx, "rule", state.KeyOf(id)); used {
			return fault.Errorf(fault.Forbidden, "Access rule %s is used by an application credential.", id.Hex())
		}
		return accessRules.Delete(tx, id)
	})
}

// RulesOf gives the access rules of a credential, and the names of its roles, for whoever shows it.
func (s *Service) RulesOf(ctx context.Context, c *ApplicationCredential) ([]*AccessRule, []*Role, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	return c.rules(tx), rolesOf(tx, c.RoleIDs), nil
}
