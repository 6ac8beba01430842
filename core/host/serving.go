package host

import (
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"
)

// A Serving is what a controller shows to those who connect, made by the authority, and made anew in the last third of its life: a
// process may run for longer than its first certificate holds.
type Serving struct {
	Authority *Authority
	Names     func() []string // what the controller is reached under, now
	Now       func() time.Time

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
}

// Certificate is a tls.Config's GetCertificate.
func (s *Serving) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	if s.current != nil && !due(s.current.Leaf, now) {
		return s.current, nil
	}
	next, err := s.Authority.ServerCertificate(now, s.Names()...)
	if err == nil {
		next.Leaf, err = x509.ParseCertificate(next.Certificate[0])
	}
	if err != nil {
		return nil, err
	}
	s.current = &next
	return s.current, nil
}

// due reports whether a certificate is in the last third of its life.
func due(c *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) <= c.NotAfter.Sub(c.NotBefore)/3
}
