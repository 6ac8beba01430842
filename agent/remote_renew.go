package agent

import (
	"context"
	"crypto"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// KeepCertificate renews the host's certificate in the last third of its life, until ctx ends. One that has run out opens nothing but the
// way to the next.
func (r *Remote) KeepCertificate(ctx context.Context) {
	for ctx.Err() == nil {
		wait := time.Hour
		if err := r.Renew(ctx, time.Now()); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "could not renew the host's certificate", "err", err)
			if r.lapsed(time.Now()) {
				wait = 10 * time.Second
			}
		}
		sleep(ctx, wait)
	}
}

// lapsed reports whether the host's certificate has run out.
func (r *Remote) lapsed(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return now.After(r.cert.Leaf.NotAfter)
}

// Renew gets the host's next certificate, with a new key, if the present one is in the last third of its life, or over.
func (r *Remote) Renew(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	present, cert := *r.Identity, r.cert
	r.mu.Unlock()
	if !due(cert.Leaf, now) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	next, cert, err := present.next(func(csr []byte) ([]byte, error) { return r.askNext(ctx, cert, csr, now) })
	if err != nil {
		return err
	}
	r.mu.Lock()
	next.Controllers = r.Identity.Controllers
	if err = next.save(); err == nil {
		*r.Identity, r.cert = *next, cert
	}
	session := r.session
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keep the next certificate: %w", err)
	}
	r.transport.renew(r.tls) // what comes next is done with the new one
	if session != nil {
		session.again() // and the controllers see that the host has it
	}
	slog.InfoContext(ctx, "the host's certificate was renewed", "until", cert.Leaf.NotAfter)
	return nil
}

// askNext has a controller make the certificate after one.
func (r *Remote) askNext(ctx context.Context, cert *tls.Certificate, csr []byte, now time.Time) ([]byte, error) {
	q := host.RenewRequest{Request: csr}
	if now.After(cert.Leaf.NotAfter) {
		key, ok := cert.PrivateKey.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("the host's key is a %T", cert.PrivateKey)
		}
		proof, err := host.Prove(key, csr)
		if err != nil {
			return nil, fmt.Errorf("prove that the host has its key: %w", err)
		}
		q.Certificate, q.Proof = cert.Leaf.Raw, proof
	}
	res, err := r.do(ctx, http.MethodPost, "renew", q)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var answer host.JoinAnswer
	err = decodeAnswer(res, &answer)
	return answer.Certificate, err
}
