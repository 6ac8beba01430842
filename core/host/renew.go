package host

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A RenewRequest asks for a host's next certificate: over a connection made with its present one, or, when that has run out and can
// be shown to nobody, with a proof that the host has its key. See docs/decisions/host-stream.md.
type RenewRequest struct {
	Request     []byte // certificate request, DER
	Certificate []byte `json:",omitempty"` // that has run out, DER
	Proof       []byte `json:",omitempty"` // its key's signature under the request; see Prove
}

// lapsedFor is for how long after its end a certificate still makes its host's next one.
const lapsedFor = 365 * 24 * time.Hour

// Renew makes the certificate (DER) that follows one of a host, for the key in a request (DER). It is of the same machine: who signs it may
// not know yet that another has joined in its place.
func (a *Authority) Renew(after *x509.Certificate, request []byte, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil || csr.CheckSignature() != nil {
		return nil, fault.Errorf(fault.Invalid, "The certificate request is not valid.")
	}
	id, err := HostOf(after)
	if err != nil {
		return nil, err
	}
	return a.signHost(id, machineOf(after), csr, now)
}

// Prove signs a certificate request with a certificate's key. Whoever repeats it gets one more certificate for the same new key, which
// is of use to its owner alone.
func Prove(key crypto.Signer, request []byte) ([]byte, error) {
	return key.Sign(rand.Reader, proven(request), crypto.SHA256)
}

func proven(request []byte) []byte {
	sum := sha256.Sum256(append([]byte("unkai: the next certificate of a host\x00"), request...))
	return sum[:]
}

// RenewLapsed is Renew for a host that was off for longer than its certificate was valid. It is a host still: whoever is to come in
// no more is removed, and no certificate's end does that for an operator. The certificate has to be sound but for its end, no older than the
// one that the host was last heard with, so that a key that was replaced long ago is worth nothing, and not have ended long ago.
func (a *Authority) RenewLapsed(q RenewRequest, now time.Time) (id resource.ID, der []byte, err error) {
	cert, err := x509.ParseCertificate(q.Certificate)
	if err != nil {
		return id, nil, fault.Errorf(fault.Invalid, "The certificate that has run out cannot be read.")
	}
	if cert.CheckSignatureFrom(a.cert) != nil || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || now.Before(cert.NotBefore) {
		return id, nil, fault.Errorf(fault.Unauthorized, "This cloud's authority has not given the certificate that has run out to a host.")
	}
	if id, err = HostOf(cert); err != nil {
		return id, nil, err
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, proven(q.Request), q.Proof) {
		return id, nil, fault.Errorf(fault.Unauthorized, "It is not proven that the machine has the key of the certificate that has run out.")
	}
	h, ok := hosts.PeekOne(a.State.Latest(), id)
	switch {
	case !ok:
		return id, nil, notMember()
	case now.Sub(cert.NotAfter) > lapsedFor:
		return id, nil, fault.Errorf(fault.Unauthorized, "The certificate of host %s ended more than a year ago. Let the machine join with a token of `unkai controller token --as %s`.", h.Name, h.Name)
	case cert.NotAfter.Before(h.CertificateEnds):
		return id, nil, fault.Errorf(fault.Unauthorized, "Host %s has had a newer certificate. Let the machine join with a token of `unkai controller token --as %s`.", h.Name, h.Name)
	}
	if err := h.shownBy(cert); err != nil {
		return id, nil, err
	}
	der, err = a.Renew(cert, q.Request, now)
	return id, der, err
}

// CertificatesEnding gives the hosts whose certificate, as far as is known, ends before a moment: they have not renewed it in time.
func CertificatesEnding(tx *state.Tx, before time.Time) []*Host {
	var ending []*Host
	for h := range hosts.Each(tx, "name", "") {
		if !h.CertificateEnds.IsZero() && h.CertificateEnds.Before(before) {
			ending = append(ending, h)
		}
	}
	return ending
}
