package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/base/durable"
	"github.com/unkai-cloud/unkai/base/resource"
)

// An Identity is what makes a machine a host of one cloud: its ID, its certificate and key,
// and the authority it trusts. It is kept in a directory that only its user may read.
type Identity struct {
	Host        resource.ID
	Certificate []byte // DER
	Key         []byte // PKCS #8
	Authority   []byte // PEM
	// Where the cloud's controllers are, as far as this host was told.
	Controllers []string `json:",omitempty"`

	dir string // where it is kept
}

// IdentityFile is the file, in an agent's directory, that the identity is kept in.
const IdentityFile = "identity.json"

// LoadIdentity reads the identity kept in a directory; fs.ErrNotExist if the machine
// has not joined.
func LoadIdentity(dir string) (*Identity, error) {
	text, err := os.ReadFile(filepath.Join(dir, IdentityFile))
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir}
	if err := json.Unmarshal(text, id); err != nil {
		return nil, fmt.Errorf("read the host's identity: %w", err)
	}
	return id, nil
}

func (id *Identity) save() error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(id.dir, 0o711); err != nil { // guests' own users pass through it
		return err
	}
	// Without it the machine is no host of its cloud any more, and it is written by all hosts at once when a controller comes or goes.
	return durable.Write(filepath.Join(id.dir, IdentityFile), text, 0o600)
}

// next is the identity with the next certificate, which sign makes of a certificate request (DER) with a new key. It is kept when it is saved.
func (id *Identity) next(sign func(csr []byte) (der []byte, err error)) (*Identity, *tls.Certificate, error) {
	private, csr, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := sign(csr)
	if err != nil {
		return nil, nil, err
	}
	next := *id
	next.Certificate, next.Key = der, private
	cert, err := next.certificate()
	return &next, cert, err
}

// Resign gives the identity its next certificate if it is time: for a host whose authority is in the same process, so that it needs to
// show nobody the one that has run out.
func (id *Identity) Resign(sign func(after *x509.Certificate, csr []byte) (der []byte, err error), now time.Time) error {
	cert, err := id.certificate()
	if err != nil || !due(cert.Leaf, now) {
		return err
	}
	next, _, err := id.next(func(csr []byte) ([]byte, error) { return sign(cert.Leaf, csr) })
	if err != nil {
		return err
	}
	if err := next.save(); err != nil {
		return fmt.Errorf("keep the next certificate: %w", err)
	}
	*id = *next
	return nil
}

// due reports whether a certificate is in the last third of its life.
func due(c *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) <= c.NotAfter.Sub(c.NotBefore)/3
}

func (id *Identity) certificate() (*tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, fmt.Errorf("read the host's key: %w", err)
	}
	leaf, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read the host's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: key, Leaf: leaf}, nil
}
