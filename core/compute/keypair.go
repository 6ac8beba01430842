package compute

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/md5"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A KeyPair is a public key that its user may put into new servers. It belongs to the
// user, in whatever project; the private half is never kept.
type KeyPair struct {
	resource.Meta

	UserID      resource.ID
	Type        string // "ssh" or "x509"
	Public      string
	Fingerprint string
}

var keypairs = state.NewTable[KeyPair]("keypair",
	state.Unique("name", func(k *KeyPair) state.Key { return state.KeyOf(k.UserID, k.Name) }),
	state.Tally("user", func(k *KeyPair) (state.Key, state.Amounts) { return state.KeyOf(k.UserID), state.Amounts{} }),
)

var _ = identity.Rules(map[string]identity.Rule{
	"keypair.get": identity.Anyone, "keypair.list": identity.Anyone, "keypair.create": identity.Anyone,
	"keypair.delete": identity.Anyone, "keypair.of-others": identity.Admin,
})

// KeyPairs gives the native API and the auditor a look at every key.
func KeyPairs() *state.Table[KeyPair] { return keypairs }

// ownKeys asks whether the actor may do something with a user's keys.
func ownKeys(ctx context.Context, action string, user resource.ID) error {
	if identity.ActorOf(ctx).UserID != user {
		return identity.Allow(ctx, "keypair.of-others", resource.Meta{})
	}
	return identity.Allow(ctx, action, resource.Meta{})
}

func missingKey(name string, user resource.ID) error {
	return fault.Errorf(fault.NotFound, "Keypair %s not found for user %s", name, user.Hex()).WithCode("keypair-not-found")
}

// KeyPair shows one key of a user; the zero user is the actor.
func (s *Service) KeyPair(ctx context.Context, user resource.ID, name string) (*KeyPair, error) {
	user = orActor(ctx, user)
	if err := ownKeys(ctx, "keypair.get", user); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	k, ok := keypairs.Lookup(tx, "name", state.KeyOf(user, name))
	if !ok {
		return nil, missingKey(name, user)
	}
	return k, nil
}

func orActor(ctx context.Context, user resource.ID) resource.ID {
	if user.IsZero() {
		return identity.ActorOf(ctx).UserID
	}
	return user
}

// ListKeyPairs shows a user's keys in the order of their names, after a named one.
func (s *Service) ListKeyPairs(ctx context.Context, user resource.ID, limit int, after string) (query.Page[KeyPair], error) {
	user = orActor(ctx, user)
	none := query.Page[KeyPair]{}
	if err := ownKeys(ctx, "keypair.list", user); err != nil {
		return none, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return none, err
	}
	r := state.Range{Prefix: state.KeyOf(user)}
	if after != "" {
		m, ok := keypairs.Lookup(tx, "name", state.KeyOf(user, after))
		if !ok {
			return none, fault.Errorf(fault.Invalid, "marker [%s] not found", after).WithCode("marker")
		}
		r.After, r.AfterKey = m.ID, state.KeyOf(user, after)
	}
	return query.Take(keypairs.Range(tx, "name", r), limit, nil), nil
}

// ImportKeyPair keeps a public key that its user brings along.
func (s *Service) ImportKeyPair(ctx context.Context, k KeyPair) (*KeyPair, error) {
	k.UserID = orActor(ctx, k.UserID)
	if k.Type == "" {
		k.Type = "ssh"
	}
	print, err := fingerprint(k.Type, k.Public)
	if err != nil {
		return nil, err
	}
	k.Fingerprint = print
	if k.Name == "" || len(k.Name) > 255 {
		return nil, fault.InvalidField("name", "must be of 1 to 255 characters")
	}
	return state.Do(ctx, s.State, func(tx *state.Tx) (*KeyPair, error) {
		if err := ownKeys(ctx, "keypair.create", k.UserID); err != nil {
			return nil, err
		}
		used, _ := keypairs.Sum(tx, "user", state.KeyOf(k.UserID))
		if err := roomFor(tx, identity.ActorOf(ctx).ProjectID, k.UserID, QuotaKeyPairs, used, 1); err != nil {
			return nil, err
		}
		k.Meta = resource.Meta{ID: tx.NewID(), Name: k.Name}
		err := keypairs.Put(tx, &k)
		if fault.Is(err, fault.Exists) {
			return nil, fault.Errorf(fault.Exists, "Key pair '%s' already exists.", k.Name).WithCode("keypair-name-taken")
		}
		return &k, err
	})
}

// DeleteKeyPair forgets a key; servers that were made with it keep it.
func (s *Service) DeleteKeyPair(ctx context.Context, user resource.ID, name string) error {
	user = orActor(ctx, user)
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := ownKeys(ctx, "keypair.delete", user); err != nil {
			return err
		}
		k, ok := keypairs.Lookup(tx, "name", state.KeyOf(user, name))
		if !ok {
			return missingKey(name, user)
		}
		return keypairs.Delete(tx, k.ID)
	})
}

func fingerprint(typ, public string) (string, error) {
	switch typ {
	case "ssh":
		key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(public))
		if err != nil || len(strings.TrimSpace(string(rest))) > 0 {
			return "", badKey("it is not one SSH public key as in an authorized_keys file")
		}
		return ssh.FingerprintLegacyMD5(key), nil
	case "x509":
		block, _ := pem.Decode([]byte(public))
		if block == nil || block.Type != "CERTIFICATE" {
			return "", badKey("it is not a certificate in PEM")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return "", badKey("it is not an X.509 certificate")
		}
		return colons(sha1.Sum(block.Bytes)), nil
	}
	return "", fault.InvalidField("type", "must be ssh or x509")
}

func badKey(why string) error {
	return fault.Errorf(fault.Invalid, "Keypair data is invalid: %s.", why).WithCode("keypair-invalid")
}

func colons[T [md5.Size]byte | [sha1.Size]byte](sum T) string {
	var parts []string
	for i := range len(sum) {
		parts = append(parts, fmt.Sprintf("%02x", sum[i]))
	}
	return strings.Join(parts, ":")
}

// Algorithms that GenerateKey knows.
const (
	RSA     = "rsa"
	ECDSA   = "ecdsa"
	Ed25519 = "ed25519"
)

// GenerateKey makes a pair for somebody: the private half is for the caller alone and
// kept nowhere. It takes a while: call it outside of any transaction.
func GenerateKey(typ, algorithm, comment string) (public, private string, err error) {
	if typ == "x509" {
		return generateCertificate(comment)
	}
	var signer any
	switch algorithm {
	case Ed25519:
		_, signer, err = ed25519.GenerateKey(rand.Reader)
	case ECDSA:
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RSA, "":
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		return "", "", fault.InvalidField("type", "must be rsa, ecdsa or ed25519")
	}
	if err != nil {
		return "", "", fmt.Errorf("generate a key: %w", err)
	}
	half, err := ssh.NewSignerFromKey(signer)
	if err != nil {
		return "", "", fmt.Errorf("derive the public key: %w", err)
	}
	block := &pem.Block{}
	if key, ok := signer.(*rsa.PrivateKey); ok {
		// The classic form is what old clients, and those that decrypt passwords with it, read.
		block.Type, block.Bytes = "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)
	} else if block, err = ssh.MarshalPrivateKey(signer, comment); err != nil {
		return "", "", fmt.Errorf("encode the private key: %w", err)
	}
	public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(half.PublicKey())))
	if comment != "" {
		public += " " + strings.Join(strings.Fields(comment), "-")
	}
	return public, string(pem.EncodeToMemory(block)), nil
}

func generateCertificate(name string) (public, private string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", fmt.Errorf("generate a key: %w", err)
	}
	now := time.Now()
	cert := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		return "", "", fmt.Errorf("sign the certificate: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})), nil
}
