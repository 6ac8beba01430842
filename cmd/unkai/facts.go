package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/alert"
)

// facts are what alerts are judged by, beside the state.
func (c *cloud) facts(ctx context.Context) alert.Facts {
	f := alert.Facts{Now: c.state.Now(), Store: c.state.Room()}
	if block, _ := pem.Decode(c.authority.PEM()); block != nil {
		if cert, err := x509.ParseCertificate(block.Bytes); err != nil {
			slog.WarnContext(ctx, "could not read the authority's certificate", "err", err)
		} else {
			f.Certificates = []alert.Certificate{{Name: "the built-in authority", Ends: cert.NotAfter, Mend: "Hosts know each other by it."}}
		}
	}
	if c.cluster != nil {
		f.Machines, f.Silences = c.cluster.machines(ctx)
	} else {
		f.Machines = []alert.Machine{c.machine(ctx)}
	}
	return f
}

// machine is how this controller's is.
func (c *cloud) machine(ctx context.Context) alert.Machine {
	m := alert.Machine{Ahead: c.state.Now().Sub(machineClock()), Certificates: c.shown.last()}
	if c.cluster != nil {
		m.Controller = c.cluster.Name
		if cert, err := c.cluster.certificate(); err != nil {
			slog.WarnContext(ctx, "could not see the certificate by which other controllers know this one", "err", err)
		} else {
			m.Certificates = append(m.Certificates[:len(m.Certificates):len(m.Certificates)], alert.Certificate{Name: "other controllers", Ends: cert.Leaf.NotAfter,
				Mend: "It is made anew in time, unless the controller cannot write to its data directory: see its log."})
		}
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(c.dir, &disk); err != nil {
		slog.WarnContext(ctx, "could not see how full the disk is", "dir", c.dir, "err", err)
	} else {
		m.Disk = alert.Disk{Free: int64(disk.Bavail) * disk.Bsize, Size: int64(disk.Blocks-disk.Bfree+disk.Bavail) * disk.Bsize}
	}
	return m
}

// certificates are those that a controller shows, as a client sees them.
type certificates struct {
	mu   sync.Mutex
	seen []alert.Certificate // guarded by mu
}

// last is what was seen of them last.
func (c *certificates) last() []alert.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.seen
}

// keep looks at what is shown at addresses every hour until ctx ends; a minute later when it could not.
func (c *certificates) keep(ctx context.Context, addresses []string) {
	for {
		again := time.Hour
		if seen, err := certificatesAt(ctx, addresses); err == nil {
			c.mu.Lock()
			c.seen = seen
			c.mu.Unlock()
		} else if again = time.Minute; ctx.Err() == nil {
			slog.WarnContext(ctx, "could not see the certificates that are shown", "err", err)
		}
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return
		}
	}
}

func certificatesAt(ctx context.Context, addresses []string) (seen []alert.Certificate, err error) {
	for _, address := range addresses {
		at, ok := strings.CutPrefix(address, "https://")
		if !ok {
			continue
		}
		ends, err := certificateAt(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("at %s: %w", address, err)
		}
		seen = append(seen, alert.Certificate{Name: address, Ends: ends,
			Mend: "One from --tls-cert has to be replaced, and the controller started anew; the built-in authority makes a new one in time."})
	}
	return seen, nil
}

// certificateAt is when the certificate ends that is shown at an address. Who shows it is not the question.
func certificateAt(ctx context.Context, address string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var ends time.Time
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		ends = s.PeerCertificates[0].NotAfter
		return nil
	}}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err == nil {
		return ends, conn.Close()
	}
	if !ends.IsZero() {
		return ends, nil // it wants a certificate of us, which we have not
	}
	return ends, err
}
