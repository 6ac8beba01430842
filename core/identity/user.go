package identity

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A User is a person or a program that can prove who it is.
type User struct {
	resource.Meta
	DomainID resource.ID

	// The owner's wish.
	Enabled          bool
	Description      string
	Email            string
	DefaultProjectID resource.ID
	Options          UserOptions
	Extra            Extra

	// Kept by this package.
	PasswordHash      string    `secret:"true"` // "": there is no password
	PasswordPast      []string  `secret:"true"` // the hashes before it, newest first
	PasswordSetAt     time.Time // zero when there is none
	PasswordExpiresAt time.Time // zero: never
	Epoch             uint32    // counts up when all tokens of the user must end
}

// UserOptions change how a user proves who it is. nil is what the operator chose.
type UserOptions struct {
	LockPassword         *bool // the user itself cannot change it
	IgnoreLockout        *bool
	IgnorePasswordExpiry *bool
	IgnoreFirstUse       *bool
	IgnoreInactivity     *bool
	MultiFactor          *bool
	MultiFactorRules     [][]string // each is a set of methods that suffices together
}

var users = state.NewTable("user",
	state.Unique("name", func(u *User) state.Key { return state.KeyOf(u.DomainID, u.Name) }),
	state.Index("domain", func(u *User) state.Key { return state.KeyOf(u.DomainID) }),
	state.Index("project", func(u *User) state.Key {
		if u.DefaultProjectID.IsZero() {
			return ""
		}
		return state.KeyOf(u.DefaultProjectID)
	}),
)

const mostFactorRules = 32

func (u *User) check(tx *state.Tx) error {
	if err := checkName(u.Name, 255); err != nil {
		return err
	}
	if len(u.Options.MultiFactorRules) > mostFactorRules {
		return fault.InvalidField("multi_factor_auth_rules", "must be at most %d rules", mostFactorRules)
	}
	for _, rule := range u.Options.MultiFactorRules {
		switch {
		case len(rule) == 0:
			return fault.InvalidField("multi_factor_auth_rules", "must not have an empty rule")
		case len(rule) > mostFactorRules:
			return fault.InvalidField("multi_factor_auth_rules", "must be of at most %d methods each", mostFactorRules)
		}
		for _, method := range rule {
			if err := checkWords(text{"multi_factor_auth_rules", method}); err != nil {
				return err
			}
		}
	}
	if p, ok := projects.PeekOne(tx, u.DefaultProjectID); ok && p.IsDomain() {
		return fault.InvalidField("default_project_id", "must not be a domain")
	}
	if err := checkTexts(text{"description", u.Description}); err != nil {
		return err
	}
	if err := checkWords(text{"email", u.Email}); err != nil {
		return err
	}
	return u.Extra.check()
}

func (u *User) expired(now time.Time) bool {
	return !u.PasswordExpiresAt.IsZero() && !isTrue(u.Options.IgnorePasswordExpiry) && !now.Before(u.PasswordExpiresAt)
}

// setPassword puts a new hash in place and ends all tokens.
func (u *User) setPassword(hash string, rules PasswordRules, now time.Time) {
	if u.PasswordHash != "" && rules.History > 1 {
		u.PasswordPast = append([]string{u.PasswordHash}, u.PasswordPast...)
		u.PasswordPast = u.PasswordPast[:min(len(u.PasswordPast), rules.History-1)]
	} else {
		u.PasswordPast = nil
	}
	u.PasswordHash = hash
	u.PasswordSetAt, u.PasswordExpiresAt = now, time.Time{}
	if rules.ExpireDays > 0 {
		u.PasswordExpiresAt = now.Add(time.Duration(rules.ExpireDays) * 24 * time.Hour)
	}
	u.Epoch++
}

// CreateUser makes a user. An empty password means that it has none.
func (s *Service) CreateUser(ctx context.Context, u *User, password string) (*User, error) {
	if err := mayManage(ctx, "user.create", u.DomainID); err != nil {
		return nil, err
	}
	if err := checkName(u.Name, 255); err != nil {
		return nil, err
	}
	hash, err := s.newHash(ctx, password)
	if err != nil {
		return nil, err
	}
	now := s.now()
	return create(ctx, s, users, func(tx *state.Tx) (*User, error) {
		made := *u
		made.ID = tx.NewID()
		if hash != "" {
			made.setPassword(hash, s.config.Password, now)
		}
		if d, ok := projects.PeekOne(tx, made.DomainID); !ok || !d.IsDomain() {
			return nil, notFound("domain", made.DomainID.Hex())
		}
		return &made, made.check(tx)
	})
}

// PasswordRules are the rules that passwords are held to.
func (s *Service) PasswordRules() PasswordRules { return s.config.Password }

// newHash is the hash of an acceptable password; "" for none.
func (s *Service) newHash(ctx context.Context, password string) (string, error) {
	if password == "" {
		return "", nil
	}
	if err := s.config.Password.check(password); err != nil {
		return "", err
	}
	return s.hasher.hash(ctx, password)
}

// User gives one user; a user may see itself.
func (s *Service) User(ctx context.Context, id resource.ID) (*User, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	u, ok := users.Find(tx, id)
	if !ok || leaving(tx, u.DomainID) {
		return nil, missing(ctx, "user.get", "user", id.Hex())
	}
	if ActorOf(ctx).own(id) {
		return u, nil
	}
	return u, mayRead(ctx, "user.get", u.DomainID)
}

// A UserFilter says which users are wanted; its zero fields want all.
type UserFilter struct {
	DomainID resource.ID
	Name     string
}

// Users lists users. An admin or reader of a domain sees those of the domain.
func (s *Service) Users(ctx context.Context, f UserFilter) ([]*User, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	a := ActorOf(ctx)
	if !a.readsAll() {
		if !a.reads(a.DomainID) {
			return nil, refuse("user.list")
		}
		if !f.DomainID.IsZero() && f.DomainID != a.DomainID {
			return []*User{}, nil
		}
		f.DomainID = a.DomainID
	}
	keep := func(u *User) bool { return (f.Name == "" || u.Name == f.Name) && !leaving(tx, u.DomainID) }
	switch {
	case !f.DomainID.IsZero() && f.Name != "":
		return collect(users.Each(tx, "name", state.KeyOf(f.DomainID, f.Name)), keep), nil
	case !f.DomainID.IsZero():
		return collect(users.Each(tx, "domain", state.KeyOf(f.DomainID)), keep), nil
	}
	return collect(users.All(tx), keep), nil
}

// UpdateUser changes what the owner may wish, and the password if one is given.
func (s *Service) UpdateUser(ctx context.Context, id resource.ID, change func(*User) error, password *string) (*User, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	// Asked before the password is hashed, and again in the transaction.
	if err := s.manageUser(ctx, tx, id, "user.update"); err != nil {
		return nil, err
	}
	var hash string
	if password != nil {
		if hash, err = s.newHash(ctx, *password); err != nil {
			return nil, err
		}
	}
	now, forgiven := s.now(), false
	u, err := edit(ctx, s, users, id, func(tx *state.Tx, u *User) error {
		if err := s.manageUser(ctx, tx, id, "user.update"); err != nil {
			return err
		}
		was := *u
		if err := change(u); err != nil {
			return err
		}
		if u.DomainID != was.DomainID {
			return fault.InvalidField("domain_id", "cannot be changed")
		}
		if was.Enabled && !u.Enabled {
			u.Epoch++
		}
		forgiven = u.Enabled && !was.Enabled || password != nil
		if password != nil {
			u.setPassword(hash, s.config.Password, now)
		}
		return u.check(tx)
	})
	if err == nil && forgiven && !state.Planning(ctx) {
		s.guard.forgive(id)
	}
	return u, err
}

func (s *Service) manageUser(ctx context.Context, tx *state.Tx, id resource.ID, action string) error {
	u, ok := users.PeekOne(tx, id)
	if !ok || leaving(tx, u.DomainID) {
		return missingToChange(ctx, action, "user", id.Hex())
	}
	return manageHolder(ctx, tx, action, id, u.DomainID)
}

// ChangePassword is for the users themselves: the present password proves who asks.
func (s *Service) ChangePassword(ctx context.Context, id resource.ID, present, next string) error {
	if state.Planning(ctx) {
		return fault.Errorf(fault.Unsupported, "A change of one's own password cannot be planned.") // as for a login
	}
	u, err := s.provePassword(ctx, UserRef{ID: id}, present)
	if err != nil {
		return err
	}
	if isTrue(u.Options.LockPassword) {
		return fault.InvalidField("password", "cannot be changed by the user: an admin has locked it")
	}
	if next == "" {
		return fault.InvalidField("password", "must not be empty")
	}
	past := append([]string{u.PasswordHash}, u.PasswordPast...)
	for _, hash := range past[:min(len(past), s.config.Password.History)] {
		again, err := s.hasher.matches(ctx, hash, next)
		if err != nil {
			return err
		}
		if again {
			return fault.InvalidField("password", "must not be one of the last %d", s.config.Password.History)
		}
	}
	hash, err := s.newHash(ctx, next)
	if err != nil {
		return err
	}
	now := s.now()
	_, err = edit(ctx, s, users, id, func(tx *state.Tx, present *User) error {
		if present.PasswordHash != u.PasswordHash {
			return fault.Errorf(fault.Conflict, "The password was changed in the meantime.")
		}
		present.setPassword(hash, s.config.Password, now)
		return nil
	})
	return err
}

// DeleteUser deletes a user with its memberships, roles, credentials and trusts.
func (s *Service) DeleteUser(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := s.manageUser(ctx, tx, id, "user.delete"); err != nil {
			return err
		}
		return remove(tx, users, id)
	})
}
