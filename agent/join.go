package agent

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
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/core/host"
)

// Join makes this machine a host of the cloud at url with a one-time token, and keeps its
// identity in dir. The token says which authority to trust, so the first contact is safe too. It says what the machine is, as far as that is known yet:
// one that would be refused for that is told before its token is used up.
func Join(ctx context.Context, url, token, dir string, says host.Hello) (*Identity, error) {
	private, csr, err := newKey()
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The token's fingerprint replaces the usual verification, below.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, cert := range c.PeerCertificates[1:] {
				if host.TokenTrusts(token, cert.Raw) {
					return isController(c.PeerCertificates[0], cert)
				}
			}
			return errors.New("the controller is not the one that the token is from")
		},
	}}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(host.JoinRequest{Token: token, Request: csr, Speaks: release.Own, Says: &says})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/host/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("join the cloud at %s: %w", url, err)
	}
	defer res.Body.Close()
	var answer host.JoinAnswer
	if err := decodeAnswer(res, &answer); err != nil {
		return nil, fmt.Errorf("join the cloud at %s: %w", url, err)
	}
	id := &Identity{Host: answer.Host, Certificate: answer.Certificate, Key: private, Authority: answer.Authority, dir: dir}
	return id, id.save()
}

// newKey makes a key (PKCS #8), and a request for a certificate of it (DER).
func newKey() (private, csr []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if private, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return private, csr, err
}

// isController reports why a certificate is not one that the authority gave to a controller: a host's
// is signed by it too.
func isController(cert, authority *x509.Certificate) error {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}
