package identity

import (
	"context"
	"crypto/rand"
	"io"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// DefaultDomain is the domain of whoever names none.
var DefaultDomain = resource.MustID("00000000-0000-7000-8000-000000000001")

// Config is what an operator may choose. The zero value is sound.
type Config struct {
	TokenLife time.Duration // of a token that was asked for with a secret; an hour when 0
	Password  PasswordRules
	Lockout   Lockout
	Hash      HashCost
	MaxDepth  int // of a project tree, its domain counted; 5 when 0
	Quota     Quota

	Now    func() time.Time // the clock for expiry; time.Now when nil
	Random io.Reader        // for secrets, from many goroutines at once; crypto/rand when nil
}

// A Quota is how much one user may keep with us, so that a few of them cannot fill the state.
type Quota struct {
	Credentials            int // 256 when 0
	ApplicationCredentials int // 256 when 0
	AccessRules            int // 1024 when 0
	Trusts                 int // as a trustor; 4096 when 0: orchestration makes one for each stack
	AccessTokens           int // 256 when 0
	Consumers              int // of the whole cloud; 4096 when 0
}

func (q Quota) withDefaults() Quota {
	for _, of := range []struct {
		most  *int
		usual int
	}{{&q.Credentials, 256}, {&q.ApplicationCredentials, 256}, {&q.AccessRules, 1024}, {&q.Trusts, 4096}, {&q.AccessTokens, 256}, {&q.Consumers, 4096}} {
		if *of.most == 0 {
			*of.most = of.usual
		}
	}
	return q
}

// keptBy is the name of the tallies by which quotas are checked, of the things of one user.
const keptBy = "kept-by"

// room asks whether one more fits.
func room[T any](tx *state.Tx, table *state.Table[T], user resource.ID, most int, nouns string) error {
	if have, _ := table.Sum(tx, keptBy, state.KeyOf(user)); have < int64(most) {
		return nil
	}
	return fault.Errorf(fault.OverQuota, "Unable to create additional %s: there are %d, and no more may be kept.", nouns, most)
}

// A Service answers who asks, and keeps those who may. Its methods may be called from
// any number of goroutines.
type Service struct {
	State  *state.State
	config Config
	hasher *hasher
	guard  *guard
}

// New makes the service on a state. Bootstrap fills an empty one.
func New(s *state.State, c Config) *Service {
	if c.TokenLife == 0 {
		c.TokenLife = time.Hour
	}
	if c.MaxDepth == 0 {
		c.MaxDepth = 5
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	c.Password = c.Password.withDefaults()
	c.Lockout = c.Lockout.withDefaults()
	c.Quota = c.Quota.withDefaults()
	return &Service{State: s, config: c, hasher: newHasher(c.Hash, c.Random), guard: newGuard(c.Lockout)}
}

func (s *Service) now() time.Time { return s.config.Now().UTC() }

// random gives n bytes for a secret. It is never called inside a transaction.
func (s *Service) random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.config.Random, b); err != nil {
		panic("identity: random source failed: " + err.Error())
	}
	return b
}

// create runs a transaction that makes one object, and gives the object back. A repeated
// request with the same idempotency key gets the first one's.
func create[T any](ctx context.Context, s *Service, table *state.Table[T], build func(tx *state.Tx) (*T, error)) (*T, error) {
	id, err := state.Do(ctx, s.State, func(tx *state.Tx) (resource.ID, error) {
		obj, err := build(tx)
		if err != nil {
			return resource.ID{}, err
		}
		if err := table.Put(tx, obj); err != nil {
			return resource.ID{}, err
		}
		return any(obj).(resource.Object).GetMeta().ID, nil
	})
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return table.Get(tx, id)
}

// createAll is create of several objects, all or none.
func createAll[T any](ctx context.Context, s *Service, table *state.Table[T], want []*T, build func(tx *state.Tx, obj *T) error) ([]*T, error) {
	ids, err := state.Do(ctx, s.State, func(tx *state.Tx) ([]resource.ID, error) {
		var ids []resource.ID
		for _, obj := range want {
			id := tx.NewID()
			any(obj).(resource.Object).GetMeta().ID = id
			if err := build(tx, obj); err != nil {
				return nil, err
			}
			if err := table.Put(tx, obj); err != nil {
				return nil, err
			}
			ids = append(ids, id)
		}
		return ids, nil
	})
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	made := []*T{}
	for _, id := range ids {
		obj, err := table.Get(tx, id)
		if err != nil {
			return nil, err
		}
		made = append(made, obj)
	}
	return made, nil
}

// once runs the transaction of a request. The same request again, with the same idempotency key, changes
// nothing and succeeds like the first.
func (s *Service) once(ctx context.Context, fn func(tx *state.Tx) error) error {
	_, err := state.Do(ctx, s.State, func(tx *state.Tx) (struct{}, error) { return struct{}{}, fn(tx) })
	return err
}

// edit runs a transaction that changes one object, and gives what it became. A repeated request with the
// same idempotency key gets what it is by now.
func edit[T any](ctx context.Context, s *Service, table *state.Table[T], id resource.ID, change func(tx *state.Tx, obj *T) error) (*T, error) {
	return editAs(ctx, s, table, table.Kind(), id, change)
}

// editAs is edit of something that has another name than its table.
func editAs[T any](ctx context.Context, s *Service, table *state.Table[T], noun string, id resource.ID, change func(tx *state.Tx, obj *T) error) (*T, error) {
	var after *T
	err := s.once(ctx, func(tx *state.Tx) error {
		obj, ok := table.Find(tx, id)
		if !ok {
			return missingToChange(ctx, noun+".update", noun, id.Hex())
		}
		if err := change(tx, obj); err != nil {
			return err
		}
		after = obj
		return table.Put(tx, obj)
	})
	if err != nil || after != nil {
		return after, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return table.Get(tx, id)
}

// collect gives what a sequence has and keep keeps.
func collect[T any](seq func(func(*T) bool), keep func(*T) bool) []*T {
	all := []*T{}
	for item := range seq {
		if keep == nil || keep(item) {
			all = append(all, item)
		}
	}
	return all
}

// checkName refuses what cannot be a name.
func checkName(name string, most int) error {
	switch {
	case name == "" || isBlank(name):
		return fault.InvalidField("name", "must not be empty")
	case len([]rune(name)) > most:
		return fault.InvalidField("name", "must be at most %d characters", most)
	}
	return nil
}

// Lengths in bytes of what is kept and means nothing to us.
const (
	wordMost = 255
	textMost = 64<<10 - 1
)

// A text is one that somebody has written, under the name that it has in a request.
type text struct{ field, is string }

// checkTexts refuses descriptions that are too long.
func checkTexts(all ...text) error { return within(textMost, all) }

// checkWords refuses other words that are too long.
func checkWords(all ...text) error { return within(wordMost, all) }

func within(most int, all []text) error {
	for _, t := range all {
		if len(t.is) > most {
			return fault.InvalidField(t.field, "must be at most %d bytes", most)
		}
	}
	return nil
}

func isBlank(s string) bool {
	for _, r := range s {
		if r != ' ' && r != '\t' && r != '\n' && r != '\r' {
			return false
		}
	}
	return true
}
