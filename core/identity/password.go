package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/unkai-cloud/unkai/base/fault"
)

// PasswordRules say which passwords are accepted, and for how long.
type PasswordRules struct {
	MinLength  int // in characters; 6 when 0
	MaxLength  int // in bytes; 4096 when 0
	History    int // so many last passwords cannot be taken again; 0: any may
	ExpireDays int // 0: never
}

func (r PasswordRules) withDefaults() PasswordRules {
	if r.MinLength == 0 {
		r.MinLength = 6
	}
	if r.MaxLength == 0 {
		r.MaxLength = 4096
	}
	return r
}

func (r PasswordRules) check(password string) error {
	switch {
	case len([]rune(password)) < r.MinLength:
		return fault.InvalidField("password", "must have at least %d characters", r.MinLength)
	case len(password) > r.MaxLength:
		return fault.InvalidField("password", "must have at most %d bytes", r.MaxLength)
	}
	return nil
}

// Lockout says when what a user shows is refused unseen. It always ends by itself, so that nobody can
// lock an admin out for good; see guard for whom it meets.
type Lockout struct {
	After int           // failures in a row from one address; 10 when 0, negative: never
	For   time.Duration // a minute when 0
}

func (l Lockout) withDefaults() Lockout {
	if l.After == 0 {
		l.After = 10
	}
	if l.For == 0 {
		l.For = time.Minute
	}
	return l
}

// HashCost is what one Argon2id hash costs (RFC 9106). The default is OWASP's first
// recommendation for one lane: 19 MiB and 2 passes, about 30 ms of one core.
type HashCost struct {
	MemoryKiB uint32
	Passes    uint32
	AtOnce    int // hashes at the same time, each with its memory; the number of processors when 0
}

// A hasher makes and checks hashes of passwords, a few at a time.
type hasher struct {
	cost   HashCost
	random io.Reader
	slots  chan struct{} // held while a hash is made
	queue  chan struct{} // held from asking for a hash until it is made
	dummy  string        // what a password is checked against when there is no user: same cost, never right
}

const saltBytes, hashBytes = 16, 32

// hashesWaiting may wait for a slot, some seconds at most: past that a flood of logins gets an answer at
// once, which costs us nothing.
const hashesWaiting = 128

func newHasher(c HashCost, random io.Reader) *hasher {
	if c.MemoryKiB == 0 {
		c.MemoryKiB = 19 << 10
	}
	if c.Passes == 0 {
		c.Passes = 2
	}
	if c.AtOnce == 0 {
		c.AtOnce = max(1, runtime.GOMAXPROCS(0))
	}
	h := &hasher{cost: c, random: random, slots: make(chan struct{}, c.AtOnce), queue: make(chan struct{}, c.AtOnce+hashesWaiting)}
	h.dummy = h.spell(make([]byte, saltBytes), make([]byte, hashBytes))
	return h
}

func (h *hasher) spell(salt, sum []byte) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, h.cost.MemoryKiB, h.cost.Passes,
		b64.EncodeToString(salt), b64.EncodeToString(sum))
}

func (h *hasher) key(ctx context.Context, password string, salt []byte, passes, memoryKiB uint32) ([]byte, error) {
	select {
	case h.queue <- struct{}{}:
	default:
		return nil, fault.Errorf(fault.Unavailable, "Too many passwords are being checked. Try again soon.")
	}
	defer func() { <-h.queue }()
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-h.slots }()
	return argon2.IDKey([]byte(password), salt, passes, memoryKiB, 1, hashBytes), nil
}

// hash makes the hash of a password, in the PHC string format.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	salt := make([]byte, saltBytes)
	if _, err := io.ReadFull(h.random, salt); err != nil {
		return "", fmt.Errorf("make a salt: %w", err)
	}
	sum, err := h.key(ctx, password, salt, h.cost.Passes, h.cost.MemoryKiB)
	if err != nil {
		return "", err
	}
	return h.spell(salt, sum), nil
}

// matches checks a password. An empty hash is checked like any other and never matches.
func (h *hasher) matches(ctx context.Context, hash, password string) (bool, error) {
	real := hash != ""
	if !real {
		hash = h.dummy
	}
	var version int
	var memory, passes uint32
	fields := strings.Split(hash, "$")
	if len(fields) != 6 || fields[1] != "argon2id" {
		return false, fmt.Errorf("a stored password hash is of an unknown kind")
	}
	if _, err := fmt.Sscanf(fields[2]+" "+fields[3], "v=%d m=%d,t=%d,p=1", &version, &memory, &passes); err != nil {
		return false, fmt.Errorf("read the parameters of a password hash: %w", err)
	}
	salt, err := base64.RawStdEncoding.DecodeString(fields[4])
	if err != nil {
		return false, fmt.Errorf("read the salt of a password hash: %w", err)
	}
	want, err := base64.RawStdEncoding.DecodeString(fields[5])
	if err != nil {
		return false, fmt.Errorf("read a password hash: %w", err)
	}
	sum, err := h.key(ctx, password, salt, passes, memory)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(sum, want) == 1 && real, nil
}

// A generated secret has so many random bits that one round of SHA-256 protects it; what a
// person chose goes through the slow hash.
const fastPrefix = "$sha256$"

func fastHash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return fastPrefix + base64.RawStdEncoding.EncodeToString(sum[:])
}

// equal compares secrets in a time that tells nothing about where they differ.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// matchesSecret checks a secret that we generated or that its owner chose.
func (h *hasher) matchesSecret(ctx context.Context, hash, secret string) (bool, error) {
	if strings.HasPrefix(hash, fastPrefix) {
		return equal(hash, fastHash(secret)), nil
	}
	return h.matches(ctx, hash, secret)
}
