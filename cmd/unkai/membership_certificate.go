package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// Files of a controller that is one of several.
const (
	pairFile      = "pair.pem" // certificate and key, in one file: one without the other is of no use
	authorityFile = "authority.pem"
	revokedFile   = "revoked.der" // the authority's list of certificates that are worth nothing any more
)

// certificate is the one that this controller shows.
func (m *membership) certificate() (tls.Certificate, error) {
	return tls.LoadX509KeyPair(m.file(pairFile), m.file(pairFile))
}

// mayServe reports why this controller, as a member of the engine, may not be one of those that keep a state.
func (m *membership) mayServe(tx *state.Tx, member uint64) error {
	cert, err := m.certificate()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return host.MayServe(tx, m.Name, member, cert.Leaf)
}

// pairUp makes one file of two, as earlier releases kept certificate and key.
func (m *membership) pairUp() error {
	if _, err := os.Stat(m.file(pairFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cert, err := os.ReadFile(m.file("cert.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was ended before it had one
	}
	if err != nil {
		return err
	}
	key, err := os.ReadFile(m.file("key.pem"))
	if err != nil {
		return err
	}
	return writePrivate(m.file(pairFile), append(cert, key...))
}

// certify gives this controller a certificate, and a new key.
func (m *membership) certify(a *host.Authority, names ...string) error {
	cert, err := a.ControllerCertificate(time.Now(), names...)
	if err != nil {
		return fmt.Errorf("make the controller's certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	return m.keep(cert.Certificate[0], key, a.PEM())
}

func (m *membership) keep(cert, key, authority []byte) error {
	pair := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pair = append(pair, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	return errors.Join(writePrivate(m.file(authorityFile), authority), writePrivate(m.file(pairFile), pair))
}

// refuse keeps which certificates are worth nothing any more, for the engine's share of this controller.
func (m *membership) refuse(a *host.Authority, tx *state.Tx) error {
	was, err := os.ReadFile(m.file(revokedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	list, err := a.RevocationList(tx, was, time.Now())
	if err != nil || bytes.Equal(list, was) {
		return err
	}
	return writePrivate(m.file(revokedFile), list)
}

// renew makes the next certificate in the last third of the present one's life. Each controller can: it knows the authority.
func (k *cluster) renew(now time.Time) error {
	cert, err := k.certificate()
	if err != nil {
		return err
	}
	leaf := cert.Leaf
	if leaf.NotAfter.Sub(now) > leaf.NotAfter.Sub(leaf.NotBefore)/3 {
		return nil
	}
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return k.certify(k.cloud.authority, names...)
}
