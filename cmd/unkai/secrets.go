package main

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/unkai-cloud/unkai/base/durable"
)

// secrets are the first accounts' passwords and keys. They are made once, when the cloud is
// new, and kept in the data directory, where only its owner can read them.
type secrets struct {
	Admin, Demo, Alt     string // passwords
	AccessKey, SecretKey string // of demo, for AWS clients
}

const secretsFile = "secrets.json"

// openSecrets reads the secrets, or makes them.
func openSecrets(dir string) (*secrets, error) {
	path := filepath.Join(dir, secretsFile)
	text, err := os.ReadFile(path)
	if err == nil {
		s := new(secrets)
		if err := json.Unmarshal(text, s); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		return s, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s := &secrets{Admin: password(), Demo: password(), Alt: password(),
		AccessKey: "AKIA" + strings.ToUpper(password()[:16]), SecretKey: password() + password()[:16]}
	if text, err = json.MarshalIndent(s, "", "  "); err != nil {
		return nil, err
	}
	return s, writePrivate(path, text)
}

// password makes 24 characters with 120 bits of randomness.
func password() string {
	var b [15]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

// writePrivate writes a file that only its owner can read.
func writePrivate(path string, text []byte) error { return durable.Write(path, text, 0o600) }

// writeClients writes what stock clients need: clouds.yaml and openrc for OpenStack's,
// aws.env for AWS's.
func writeClients(dir, url, s3URL, authority string, s *secrets) error {
	var clouds strings.Builder
	clouds.WriteString("clouds:\n")
	for _, c := range []struct{ name, user, project, password string }{
		{"unkai", "admin", "admin", s.Admin}, {"demo", "demo", "demo", s.Demo}, {"alt", "alt", "alt", s.Alt},
	} {
		fmt.Fprintf(&clouds, `  %s:
    region_name: RegionOne
    identity_api_version: 3
    auth:
      auth_url: %s/identity/v3
      username: %s
      password: %s
      project_name: %s
      user_domain_name: Default
      project_domain_name: Default
`, c.name, url, c.user, c.password, c.project)
		if authority != "" {
			fmt.Fprintf(&clouds, "    cacert: %s\n", authority)
		}
	}
	openrc := fmt.Sprintf(`export OS_AUTH_URL=%s/identity/v3
export OS_USERNAME=admin
export OS_PASSWORD=%s
export OS_PROJECT_NAME=admin
export OS_USER_DOMAIN_NAME=Default
export OS_PROJECT_DOMAIN_NAME=Default
export OS_IDENTITY_API_VERSION=3
export OS_REGION_NAME=RegionOne
`, url, s.Admin)
	aws := fmt.Sprintf(`export AWS_ACCESS_KEY_ID=%s
export AWS_SECRET_ACCESS_KEY=%s
export AWS_DEFAULT_REGION=RegionOne
export AWS_ENDPOINT_URL_EC2=%s/ec2
export AWS_ENDPOINT_URL_S3=%s
`, s.AccessKey, s.SecretKey, url, s3URL)
	if authority != "" {
		openrc += "export OS_CACERT=" + authority + "\n"
		aws += "export AWS_CA_BUNDLE=" + authority + "\n"
	}
	return errors.Join(
		writePrivate(filepath.Join(dir, "clouds.yaml"), []byte(clouds.String())),
		writePrivate(filepath.Join(dir, "openrc"), []byte(openrc)),
		writePrivate(filepath.Join(dir, "aws.env"), []byte(aws)),
	)
}
