package agent

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

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
