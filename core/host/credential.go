package host

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A credential is a certificate that a controller has, or had. With the controller's dismissal it is worth nothing, however
// long it is still valid. (Whoever took a controller's disk has the authority's key, too: against that only a new cloud helps.)
type credential struct {
	resource.Meta // its name is the serial number, in hexadecimal

	Controller string // its name
	URL        string // of its share of the engine; "" once it is known by its name
	Ends       time.Time
	Revoked    bool
}

var credentials = state.NewTable("controller-credential",
	state.Since[credential](2),
	state.Unique("name", func(c *credential) state.Key { return state.KeyOf(c.Name) }),
)

func serialOf(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

// Revoked reports why a certificate of the authority is worth nothing any more, though it is valid; nil if it is not so.
func Revoked(tx *state.Tx, cert *x509.Certificate) error {
	if c, ok := credentials.Lookup(tx, "name", state.KeyOf(serialOf(cert))); ok && c.Revoked {
		return fault.Errorf(fault.Unauthorized, "The controller %s was dismissed: its certificate is worth nothing any more. It can only join anew.", c.Controller)
	}
	return nil
}

// remember keeps whose a certificate is, and forgets those that have run out.
func remember(tx *state.Tx, cert *x509.Certificate, controller, url string) error {
	var over []resource.ID
	for c := range credentials.Peek(tx, "name", state.Range{}) {
		if c.Ends.Before(tx.Now()) {
			over = append(over, c.ID)
		}
	}
	for _, id := range over {
		if err := credentials.Delete(tx, id); err != nil {
			return err
		}
	}
	c, ok := credentials.Lookup(tx, "name", state.KeyOf(serialOf(cert)))
	if !ok {
		c = &credential{Meta: resource.Meta{ID: tx.NewID(), Name: serialOf(cert)}}
	} else if c.Revoked {
		return Revoked(tx, cert)
	}
	c.Controller, c.URL, c.Ends = controller, url, cert.NotAfter
	return credentials.Put(tx, c)
}

// remembered reports whether it is known whose a certificate is.
func remembered(tx *state.Tx, cert *x509.Certificate, controller string) bool {
	c, ok := credentials.Lookup(tx, "name", state.KeyOf(serialOf(cert)))
	return ok && c.Controller == controller && c.URL == ""
}

// revoke makes the certificates of a controller worthless, which is known by its name or by where its share of the engine is.
func revoke(tx *state.Tx, controller string) error {
	for _, c := range slices.Collect(credentials.Each(tx, "name", "")) {
		if c.Controller != controller && c.URL != controller || c.Revoked {
			continue
		}
		c.Revoked = true
		if err := credentials.Put(tx, c); err != nil {
			return err
		}
	}
	return nil
}

// RevocationList is the list of all certificates that are worth nothing any more, signed (DER). It differs from was only if the
// numbers on it do.
func (a *Authority) RevocationList(tx *state.Tx, was []byte, now time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(now.UnixNano()), ThisUpdate: now.Add(-time.Hour), NextUpdate: now.AddDate(authorityYears, 0, 0)}
	var numbers []byte
	for c := range credentials.Peek(tx, "name", state.Range{}) {
		serial, ok := new(big.Int).SetString(c.Name, 16)
		if !ok || !c.Revoked {
			continue
		}
		numbers = append(serial.Append(numbers, 16), ' ')
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: now})
	}
	if old, err := x509.ParseRevocationList(was); err == nil && old.CheckSignatureFrom(a.cert) == nil {
		var same []byte
		for _, e := range old.RevokedCertificateEntries {
			same = append(e.SerialNumber.Append(same, 16), ' ')
		}
		if bytes.Equal(same, numbers) {
			return was, nil
		}
	}
	return x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
}
