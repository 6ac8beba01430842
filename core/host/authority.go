package host

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// An authority is the cloud's own certificate authority. There is one.
type authority struct {
	resource.Meta

	Certificate []byte // DER
	Key         []byte `secret:"true"` // PKCS #8
}

var authorities = state.NewTable[authority]("authority",
	state.Unique("name", func(a *authority) state.Key { return state.KeyOf(a.Name) }))

// A joinToken lets one machine join, once. Only its hash is kept.
type joinToken struct {
	resource.Meta

	Hash    []byte `secret:"true"`
	Expires time.Time
	Only    string `since:"2,soft"` // ForHosts or ForControllers; "" for either
	// The host that the machine is to be, which is there already; zero for a new one.
	As resource.ID `json:",omitzero" since:"2"`
}

// What a join token may be for alone. A controller holds the whole state and the authority's key, so a token that is handed
// to whoever sets up hosts is better for hosts alone.
const (
	ForHosts       = "host"
	ForControllers = "controller"
)

var joinTokens = state.NewTable[joinToken]("join-token",
	state.Unique("hash", func(t *joinToken) state.Key { return state.KeyOf(string(t.Hash)) }),
	state.Index("expires", func(t *joinToken) state.Key { return state.KeyOf(t.Expires) }))

const (
	authorityYears = 20
	hostCertDays   = 90
)

// An Authority signs the certificates with which controllers and hosts know each other.
type Authority struct {
	State *state.State
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
}

// OpenAuthority reads the cloud's authority, which it makes the first time.
func OpenAuthority(ctx context.Context, s *state.State, now time.Time) (*Authority, error) {
	made, err := makeAuthority(now)
	if err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	kept, ok := authorities.Lookup(s.Latest(), "name", state.KeyOf(made.Name))
	if !ok {
		err = s.Update(ctx, func(tx *state.Tx) error {
			if kept, ok = authorities.Lookup(tx, "name", state.KeyOf(made.Name)); ok {
				return nil
			}
			made.ID = tx.NewID()
			kept = made
			return authorities.Put(tx, made)
		})
	}
	if err != nil {
		return nil, err
	}
	a := &Authority{State: s}
	if a.cert, err = x509.ParseCertificate(kept.Certificate); err != nil {
		return nil, fmt.Errorf("read the authority's certificate: %w", err)
	}
	key, err := x509.ParsePKCS8PrivateKey(kept.Key)
	if err != nil {
		return nil, fmt.Errorf("read the authority's key: %w", err)
	}
	a.key = key.(*ecdsa.PrivateKey)
	return a, nil
}

// HasAuthority reports whether the cloud has its authority already.
func HasAuthority(tx *state.Tx) bool { return authorities.Len(tx) > 0 }

// Founded is when the cloud began: since then it has its authority. Zero if it has none yet.
func Founded(tx *state.Tx) time.Time {
	for a := range authorities.Peek(tx, "name", state.Range{}) {
		return a.CreatedAt
	}
	return time.Time{}
}

func makeAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "Unkai cloud " + hex.EncodeToString(serial().Bytes()[:4])},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(authorityYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	return &authority{Meta: resource.Meta{Name: "hosts"}, Certificate: der, Key: private}, err
}

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the process instead
	b[0] |= 1
	return new(big.Int).SetBytes(b[:])
}

// PEM is the authority's certificate, for clients that are to trust it.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// Pool is what trusts the authority and nobody else.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// ServerCertificate makes a certificate for a controller that is reached under these
// names and addresses.
func (a *Authority) ServerCertificate(now time.Time, names ...string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: serial(), Subject: pkix.Name{CommonName: "unkai controller"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(1, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	return tls.Certificate{Certificate: [][]byte{der, a.cert.Raw}, PrivateKey: key}, err
}

// Token makes a token with which one machine may join within the given time: only as ForHosts or ForControllers says, or "" for
// either. It carries the authority's fingerprint, so that the machine knows the controller too.
func (a *Authority) Token(ctx context.Context, valid time.Duration, only string) (string, error) {
	return a.token(ctx, valid, joinToken{Only: only})
}

// TokenAs is Token for a machine that is a host already and cannot show that any more: it was set up anew and has its guests' disks still,
// or was off for too long. It takes the host's record over, and the certificates before are worth nothing. Whether it is that machine
// the operator says.
func (a *Authority) TokenAs(ctx context.Context, valid time.Duration, as resource.ID) (string, error) {
	if _, err := missed(a.State.Latest(), as); err != nil {
		return "", err
	}
	return a.token(ctx, valid, joinToken{Only: ForHosts, As: as})
}

// missed gives a host that a machine can take over: one that cannot be heard.
func missed(tx *state.Tx, id resource.ID) (*Host, error) {
	h, ok := hosts.Find(tx, id)
	if !ok {
		return nil, fault.Missing("host", id)
	}
	if h.Up() {
		return nil, fault.Errorf(fault.Conflict, "Host %s can be heard: no other machine can join as it. If it is this one, end its agent first, and wait until it counts as lost.", h.Name)
	}
	return h, nil
}

func (a *Authority) token(ctx context.Context, valid time.Duration, t joinToken) (string, error) {
	if only := t.Only; only != "" && only != ForHosts && only != ForControllers {
		return "", fault.Errorf(fault.Invalid, "A token is for a %q, a %q or either, and not for %q.", ForHosts, ForControllers, only)
	}
	secret := make([]byte, 20)
	rand.Read(secret)
	text := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret))
	hash := sha256.Sum256([]byte(text))
	err := a.State.Update(ctx, func(tx *state.Tx) error {
		t.ID, t.Hash, t.Expires = tx.NewID(), hash[:], tx.Now().Add(valid)
		return joinTokens.Put(tx, &t)
	})
	print := sha256.Sum256(a.cert.Raw)
	return text + "." + hex.EncodeToString(print[:16]), err
}

// TokenTrusts reports whether a token's fingerprint is that of this certificate (DER).
func TokenTrusts(token string, certificate []byte) bool {
	_, want, _ := strings.Cut(token, ".")
	print := sha256.Sum256(certificate)
	return subtle.ConstantTimeCompare([]byte(want), []byte(hex.EncodeToString(print[:16]))) == 1
}

// Join uses a token up and signs a machine's certificate request (DER). The certificate
// names the new host's ID. A machine that would be refused for what it says of itself is told so, and the token is good for the next try.
func (a *Authority) Join(ctx context.Context, req JoinRequest, now time.Time) (JoinAnswer, error) {
	csr, err := x509.ParseCertificateRequest(req.Request)
	if err != nil || csr.CheckSignature() != nil {
		return JoinAnswer{}, fault.Errorf(fault.Invalid, "The certificate request is not valid.")
	}
	answer, machine := JoinAnswer{Authority: a.PEM()}, 0
	err = a.State.Update(ctx, func(tx *state.Tx) error {
		t, err := spend(tx, req.Token, ForHosts) // first: who has none is told nothing of other hosts
		if err != nil {
			return err
		}
		if t.As.IsZero() {
			n := &Newcomer{Meta: resource.Meta{ID: tx.NewID()}}
			answer.Host = n.ID
			if req.Says != nil {
				if err := wouldCome(tx, n.ID, *req.Says); err != nil {
					return err
				}
				n.Name = req.Says.Name
			}
			return newcomers.Put(tx, n)
		}
		h, err := missed(tx, t.As)
		if err != nil {
			return err
		}
		h.Machine++
		h.CertificateEnds = hostCertificateEnds(now)
		answer.Host, machine = h.ID, h.Machine
		return hosts.Put(tx, h)
	})
	if err != nil {
		return JoinAnswer{}, err
	}
	answer.Certificate, err = a.signHost(answer.Host, machine, csr, now)
	return answer, err
}

// spend uses a token up.
func spend(tx *state.Tx, token, purpose string) (*joinToken, error) {
	text, _, _ := strings.Cut(token, ".")
	hash := sha256.Sum256([]byte(text))
	t, ok := joinTokens.Lookup(tx, "hash", state.KeyOf(string(hash[:])))
	if !ok || !t.Expires.After(tx.Now()) {
		return nil, fault.Errorf(fault.Unauthorized, "The join token is not known, was used, or has expired. Make a new one.")
	}
	if t.Only != "" && t.Only != purpose {
		return nil, fault.Errorf(fault.Unauthorized, "The join token is for a %s, and does not make a %s. Make one with `unkai controller token --for %s`.", t.Only, purpose, purpose)
	}
	return t, joinTokens.Delete(tx, t.ID)
}

// hostCertificateEnds is when a host's certificate ends that is made now; certificates know no parts of a second.
func hostCertificateEnds(now time.Time) time.Time {
	return now.UTC().AddDate(0, 0, hostCertDays).Truncate(time.Second)
}

// SignHost makes the certificate (DER) of a host's first machine, for the key in a request.
func (a *Authority) SignHost(id resource.ID, csr *x509.CertificateRequest, now time.Time) ([]byte, error) {
	return a.signHost(id, 0, csr, now)
}

func (a *Authority) signHost(id resource.ID, machine int, csr *x509.CertificateRequest, now time.Time) ([]byte, error) {
	subject := pkix.Name{CommonName: id.String(), OrganizationalUnit: []string{"host"}}
	if machine > 0 {
		subject.SerialNumber = strconv.Itoa(machine)
	}
	template := &x509.Certificate{SerialNumber: serial(), Subject: subject,
		NotBefore: now.Add(-time.Hour), NotAfter: hostCertificateEnds(now),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	return x509.CreateCertificate(rand.Reader, template, a.cert, csr.PublicKey, a.key)
}

// machineOf is which of a host's machines, one after the other, a certificate is of; -1 if that cannot be told.
func machineOf(cert *x509.Certificate) int {
	if cert.Subject.SerialNumber == "" {
		return 0
	}
	n, err := strconv.Atoi(cert.Subject.SerialNumber)
	if err != nil {
		return -1
	}
	return n
}

// HostOf is the host that a verified client certificate is of.
func HostOf(cert *x509.Certificate) (resource.ID, error) {
	if len(cert.Subject.OrganizationalUnit) != 1 || cert.Subject.OrganizationalUnit[0] != "host" {
		return resource.ID{}, fault.Errorf(fault.Unauthorized, "This certificate is not a host's.")
	}
	id, err := resource.ParseID(cert.Subject.CommonName)
	if err != nil {
		return id, fault.Errorf(fault.Unauthorized, "This certificate names no host.")
	}
	return id, nil
}
