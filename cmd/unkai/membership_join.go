package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/core/host"
)

// join has the controllers at url take this one in. Asked of one that follows, it asks the others.
func (m *membership) join(ctx context.Context, to, token, address string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: agentTrust(token)}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(relay.JoinRequest{Token: token, Request: csr, Names: []string{address}, Member: m.Name, URL: m.Peer, Speaks: release.Own})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(to, "/")+"/controller/v1/join", bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the controller at %s answers %s: %s", to, res.Status, strings.TrimSpace(string(text)))
	}
	var answer relay.JoinAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	m.Existing = answer.Members
	return errors.Join(writePrivate(m.file(revokedFile), answer.Revoked), m.keep(answer.Certificate, private, answer.Authority),
		writePrivate(filepath.Join(m.dir, secretsFile), answer.Secrets))
}

// agentTrust trusts only the controllers of the cloud that a token is from.
func agentTrust(token string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The token's fingerprint replaces the usual verification.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, authority := range c.PeerCertificates[1:] {
				if !host.TokenTrusts(token, authority.Raw) {
					continue
				}
				pool := x509.NewCertPool()
				pool.AddCert(authority)
				_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
				return err
			}
			return errors.New("the controller is not the one that the token is from")
		},
	}
}
