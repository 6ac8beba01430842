package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// KeepCertificate renews the host's certificate in the last third of its life, until ctx ends.
func (r *Remote) KeepCertificate(ctx context.Context) {
	for ctx.Err() == nil {
		if err := r.Renew(ctx, time.Now()); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "could not renew the host's certificate", "err", err)
		}
		sleep(ctx, time.Hour)
	}
}

// Renew gets the host's next certificate, with a new key, if the present one is in the last third of its life.
func (r *Remote) Renew(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	leaf := r.cert.Leaf
	r.mu.Unlock()
	if leaf.NotAfter.Sub(now) > leaf.NotAfter.Sub(leaf.NotBefore)/3 {
		return nil
	}
	private, csr, err := newKey()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := r.do(ctx, http.MethodPost, "renew", host.RenewRequest{Request: csr})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer host.JoinAnswer
	if err := decodeAnswer(res, &answer); err != nil {
		return err
	}
	r.mu.Lock()
	next := *r.Identity
	r.mu.Unlock()
	next.Certificate, next.Key = answer.Certificate, private
	cert, err := next.certificate()
	if err != nil {
		return err
	}
	r.mu.Lock()
	next.Controllers = r.Identity.Controllers
	if err = next.save(); err == nil {
		*r.Identity, r.cert = next, cert
	}
	r.mu.Unlock()
	if err != nil {
		return fmt.Errorf("keep the next certificate: %w", err)
	}
	r.client.CloseIdleConnections() // what comes next is done with the new one
	slog.InfoContext(ctx, "the host's certificate was renewed", "until", cert.Leaf.NotAfter)
	return nil
}
