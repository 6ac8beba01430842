package host

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Controller is one of the processes that keep the state together and speak with clients. One of them leads.
type Controller struct {
	resource.Meta // its name is unlike any other's

	Member  uint64 // of the engine that keeps the state, by which the leader is known
	Link    string // where other controllers and hosts reach it: "https://10.0.0.1:8702"
	URL     string // where clients do
	Version string // of Unkai on it
	Speaks  release.Span
}

var controllers = state.NewTable("controller",
	state.Since[Controller](2),
	state.Unique("name", func(c *Controller) state.Key { return state.KeyOf(c.Name) }),
	state.Index("member", func(c *Controller) state.Key { return state.KeyOf(int64(c.Member)) }),
)

var _ = identity.Rules(map[string]identity.Rule{"controller.get": identity.Admin, "controller.list": identity.Admin})

// Controllers gives the native API and `unkai status` a look at every controller.
func Controllers() *state.Table[Controller] { return controllers }

// ControllerOf gives the controller whose engine has a member.
func ControllerOf(tx *state.Tx, member uint64) (*Controller, bool) {
	for c := range controllers.Each(tx, "member", state.KeyOf(int64(member))) {
		return c, true
	}
	return nil, false
}

// Links are where hosts reach the controllers.
func Links(tx *state.Tx) []string {
	var links []string
	for c := range controllers.Peek(tx, "name", state.Range{}) {
		links = append(links, c.Link)
	}
	return links
}

// Present records where a controller is, and whose the certificate is that it shows. What is no news writes nothing. Who bears the name of
// another, which has a data directory of its own and so another member, is refused until that one is dismissed.
func Present(ctx context.Context, s *state.State, is Controller, cert *x509.Certificate) error {
	if Presented(s.Latest(), &is, cert) {
		return nil
	}
	return s.Update(ctx, func(tx *state.Tx) error {
		c, ok := controllers.Lookup(tx, "name", state.KeyOf(is.Name))
		if !ok {
			c = &Controller{Meta: resource.Meta{ID: tx.NewID(), Name: is.Name}}
		} else if c.Member != is.Member {
			return namesake(c)
		}
		c.Member, c.Link, c.URL, c.Version, c.Speaks = is.Member, is.Link, is.URL, is.Version, is.Speaks
		if err := controllers.Put(tx, c); err != nil {
			return err
		}
		return remember(tx, cert, is.Name, "")
	})
}

func namesake(c *Controller) error {
	return fault.Errorf(fault.Conflict, "There is another controller named %s, at %s. Give this one another --name; or, if that one is lost, dismiss it first (unkai controller dismiss %s, on another).",
		c.Name, c.Link, c.Name)
}

// MayServe reports why the controller with a name, a member and a certificate, nil if it has none yet, may not be one of those that keep this
// state: it was dismissed, or another bears its name.
func MayServe(tx *state.Tx, name string, member uint64, cert *x509.Certificate) error {
	if cert != nil {
		if err := Revoked(tx, cert); err != nil {
			return err
		}
	}
	if c, ok := controllers.Lookup(tx, "name", state.KeyOf(name)); ok && c.Member != member {
		return namesake(c)
	}
	return nil
}

// Presented reports whether all that a controller says of itself is known.
func Presented(tx *state.Tx, is *Controller, cert *x509.Certificate) bool {
	c, ok := controllers.Lookup(tx, "name", state.KeyOf(is.Name))
	return ok && c.Member == is.Member && c.Link == is.Link && c.URL == is.URL && c.Version == is.Version && c.Speaks == is.Speaks && remembered(tx, cert, is.Name)
}

// Dismiss forgets a controller, whose certificates are worth nothing from then on. It may be one that was let in and never
// came, which is known by where its share of the engine is.
func Dismiss(ctx context.Context, s *state.State, name string) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		if c, ok := controllers.Lookup(tx, "name", state.KeyOf(name)); ok {
			if err := controllers.Delete(tx, c.ID); err != nil {
				return err
			}
		}
		return revoke(tx, name)
	})
}

// ControllerRole is the common name in controllers' certificates. With one the whole state can be read and written: nobody
// else is ever given it.
const ControllerRole = "unkai controller"

// ControllerCertificate makes the certificate with which a controller is server and client of the others. names are what it is
// reached under.
func (a *Authority) ControllerCertificate(now time.Time, names ...string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := a.signController(now, key.Public(), names)
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, err
}

func (a *Authority) signController(now time.Time, key any, names []string) ([]byte, error) {
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: ControllerRole, OrganizationalUnit: []string{"controller"}},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	return x509.CreateCertificate(rand.Reader, template, a.cert, key, a.key)
}

// IsController reports why a verified client certificate is not a controller's.
func IsController(cert *x509.Certificate) error {
	if cert.Subject.CommonName != ControllerRole || len(cert.Subject.OrganizationalUnit) != 1 || cert.Subject.OrganizationalUnit[0] != "controller" {
		return fault.Errorf(fault.Unauthorized, "This certificate is not a controller's.")
	}
	return nil
}

// Controller is the certificate in DER, which one of the cloud's controllers says is its own; Unauthorized if it is none of a
// controller of this cloud.
func (a *Authority) Controller(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Errorf(fault.Invalid, "The certificate cannot be read.")
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: a.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return nil, fault.Errorf(fault.Unauthorized, "The certificate is not of this cloud.")
	}
	return cert, IsController(cert)
}

// JoinController uses a token up and signs the certificate request (DER) of a machine that is to be one more controller, called name,
// with its share of the engine at url.
func (a *Authority) JoinController(ctx context.Context, token string, request []byte, now time.Time, name, url string, names ...string) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil || csr.CheckSignature() != nil {
		return nil, fault.Errorf(fault.Invalid, "The certificate request is not valid.")
	}
	der, err := a.signController(now, csr.PublicKey, names)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return der, a.State.Update(ctx, func(tx *state.Tx) error {
		if _, err := spend(tx, token, ForControllers); err != nil {
			return err
		}
		return remember(tx, cert, name, url)
	})
}

// LeaderHeader names the controller that leads, in the answer of one that does not.
const LeaderHeader = "Unkai-Leader"
