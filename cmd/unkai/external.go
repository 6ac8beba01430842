package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"

	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// An externalEtcd keeps the state for controllers that have no share of it themselves.
type externalEtcd struct {
	Etcd       []string `sep:"," help:"Keep the state in an etcd elsewhere, at these URLs. It needs --max-txn-ops=65536 --max-request-bytes=134217728. Controllers that are started with the same one are one cloud: whoever can read it is trusted." json:",omitempty"`
	EtcdCA     string   `name:"etcd-ca" help:"Authority of the etcd's certificates (PEM)." type:"path" json:",omitempty"`
	EtcdCert   string   `help:"Certificate for the etcd (PEM)." type:"path" json:",omitempty"`
	EtcdKey    string   `help:"Its key (PEM)." type:"path" json:",omitempty"`
	EtcdPrefix string   `help:"Begins every key, so that two clouds can share an etcd. When not given it is what it was, and /unkai/ the first time." json:",omitempty"`
}

// options are those of an engine on it.
func (x *externalEtcd) options(candidate uint64) (etcd.Options, error) {
	o := etcd.Options{Endpoints: x.Etcd, Prefix: x.EtcdPrefix, Candidate: candidate}
	if x.EtcdCA == "" && x.EtcdCert == "" && x.EtcdKey == "" {
		return o, nil
	}
	info := transport.TLSInfo{CertFile: x.EtcdCert, KeyFile: x.EtcdKey, TrustedCAFile: x.EtcdCA}
	var err error
	if o.TLS, err = info.ClientConfig(); err != nil {
		return o, fmt.Errorf("--etcd-ca, --etcd-cert, --etcd-key: %w", err)
	}
	return o, nil
}

// beginElsewhere makes this controller one of those on an etcd elsewhere.
func (m *membership) beginElsewhere(x *externalEtcd) error {
	if _, err := os.Stat(filepath.Join(m.dir, "etcd")); err == nil {
		return errors.New("this data directory has a state of its own; for one in an etcd elsewhere begin with an empty one")
	}
	traces, err := tracesOf(m.dir)
	if err != nil {
		return err
	}
	// The first accounts' secrets may have been put there, where no other controller is to give them.
	if traces = slices.DeleteFunc(traces, func(name string) bool { return name == secretsFile }); len(traces) > 0 {
		return fmt.Errorf("a controller has been at work in this data directory (%s); for a state in an etcd elsewhere begin with an empty one", strings.Join(traces, ", "))
	}
	var random [8]byte
	rand.Read(random[:]) // never fails: crypto/rand ends the process instead
	m.Etcd, m.Candidate = x, binary.BigEndian.Uint64(random[:])>>1|1
	return nil
}

// enterElsewhere makes this controller a candidate of those whose state is elsewhere, if it is the state that it knows, or its first, and if the controller
// may be one of them.
func (c *cloud) enterElsewhere(ctx context.Context, engine *etcd.Engine, m *membership) error {
	tx := c.state.Latest()
	if !host.HasAuthority(tx) {
		traces, err := tracesOf(m.dir)
		if err != nil {
			return err
		}
		if slices.Contains(traces, filepath.Join("peer", authorityFile)) || len(traces) > 0 && tx.Revision() == 0 && !founding(m.dir) {
			return stateIsMissing(m.dir, fmt.Sprintf("the etcd at %s below %s", strings.Join(m.Etcd.Etcd, ", "), engine.Prefix()), traces)
		}
		if err := markFounding(m.dir); err != nil {
			return err
		}
	} else if a, err := host.OpenAuthority(ctx, c.state, time.Now()); err != nil {
		return err
	} else if err := m.knows(a.PEM()); err != nil {
		return err
	}
	if err := m.mayServe(tx, engine.Self()); err != nil {
		return err
	}
	if err := m.save(); err != nil {
		return err
	}
	engine.Stand(func(ctx context.Context) error {
		if err := c.state.Confirm(ctx); err != nil {
			return err
		}
		return m.mayServe(c.state.Latest(), engine.Self())
	})
	return nil
}

// openElsewhere is the rest of openShare where the state is elsewhere, once there is something in it or this controller leads: whoever
// can read the state knows the authority in it, and certifies itself.
func (c *cloud) openElsewhere(ctx context.Context, engine *etcd.Engine, m *membership) error {
	a, err := c.authorityElsewhere(ctx)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.file(pairFile)); errors.Is(err, fs.ErrNotExist) {
		if err := m.certify(a, m.name()); err != nil {
			return err
		}
	}
	if c.cluster, err = newCluster(c, m, engine); err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(c.dir, secretsFile))
	if errors.Is(err, fs.ErrNotExist) && !identity.ProjectNamed(c.state.Latest(), "admin").IsZero() {
		if err := c.cluster.fetchSecrets(ctx); err != nil {
			return fmt.Errorf("the first accounts' passwords are in %s of each of the other controllers, of which none answers: start one, or copy it here: %w", secretsFile, err)
		}
	}
	c.secrets, err = openSecrets(c.dir)
	return err
}

// authorityElsewhere opens the authority, whoever makes it: the lead may change meanwhile.
func (c *cloud) authorityElsewhere(ctx context.Context) (*host.Authority, error) {
	for {
		a, err := host.OpenAuthority(ctx, c.state, time.Now())
		if err == nil || c.state.Leads() {
			return a, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fetchSecrets takes over what each controller keeps of the first accounts.
func (k *cluster) fetchSecrets(ctx context.Context) error {
	for end := time.Now().Add(secretsWithin); ; {
		failed := errors.New("there is none")
		for _, link := range k.others() {
			text, err := k.get(ctx, link, "secrets")
			if err == nil {
				return writePrivate(filepath.Join(k.dir, secretsFile), text)
			}
			slog.WarnContext(ctx, "a controller did not give the first accounts' secrets", "link", link, "err", err)
			failed = err
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return failed
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// secretsWithin is how long the first controller may take, which started just now too, until it says where it is.
const secretsWithin = 10 * time.Second

func (k *cluster) get(ctx context.Context, link, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	to, err := url.JoinPath(link, "controller/v1", path)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, to, nil)
	if err != nil {
		return nil, err
	}
	res, err := k.transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the controller at %s answers %s", link, res.Status)
	}
	return text, err
}
