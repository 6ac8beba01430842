package host

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A machine is a member from when it has joined until it is removed. While it has not yet said what
// it is, this record stands for it; from then on its Host does. So a certificate alone
// makes nobody a host: one of a removed machine is worth nothing, however long it is still valid.
type newcomer struct{ resource.Meta }

var newcomers = state.NewTable[newcomer]("joined-machine")

var _ = identity.Rules(map[string]identity.Rule{"host.delete": identity.Admin})

func member(tx *state.Tx, id resource.ID) bool { return hosts.Has(tx, id) || newcomers.Has(tx, id) }

func notMember() error {
	return fault.Errorf(fault.Unauthorized, "This machine is no host of this cloud, or no more. Join with a new token.")
}

// Check answers for which host a verified client certificate stands now: none if it has run out since
// the connection was made, or if the host was removed.
func (a *Authority) Check(cert *x509.Certificate, now time.Time) (resource.ID, error) {
	id, err := HostOf(cert)
	if err != nil {
		return id, err
	}
	if now.After(cert.NotAfter) {
		return id, fault.Errorf(fault.Unauthorized, "The host's certificate has expired.")
	}
	if !member(a.State.Latest(), id) {
		return id, notMember()
	}
	return id, nil
}

// Arrive is Arrive for a machine elsewhere: only for one that has joined and was not removed.
func (a *Authority) Arrive(ctx context.Context, id resource.ID, hello Hello) error {
	return arrive(ctx, a.State, id, hello, func(tx *state.Tx) error {
		if !member(tx, id) {
			return notMember()
		}
		if newcomers.Has(tx, id) {
			return newcomers.Delete(tx, id)
		}
		return nil
	})
}

// Renew makes a host's next certificate (DER) for the key in a request (DER).
func (a *Authority) Renew(id resource.ID, request []byte, now time.Time) ([]byte, error) {
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil || csr.CheckSignature() != nil {
		return nil, fault.Errorf(fault.Invalid, "The certificate request is not valid.")
	}
	return a.SignHost(id, csr, now)
}

// Remove takes a host out of the cloud, in the transaction of the domain that has made sure that nothing
// is on it: its session is cut off, and its certificate is worth nothing from then on.
func Remove(tx *state.Tx, id resource.ID) error {
	h, ok := hosts.Find(tx, id)
	if !ok {
		return fault.Missing("host", id)
	}
	if err := h.resume(tx); err != nil {
		return err
	}
	for _, left := range leftovers.IDs(tx, "thing", state.KeyOf(id)) {
		if err := leftovers.Delete(tx, left); err != nil {
			return err
		}
	}
	return hosts.Delete(tx, id)
}
