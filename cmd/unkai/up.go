package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

type upCommand struct {
	dataOption
	listenOptions
	metricsOption
	machineOptions
	Sim   int    `help:"Simulate so many hosts instead of using this machine. Needs no root."`
	Demo  bool   `help:"Boot a first server, and tell how to reach it."`
	Guest string `help:"Where the demo guest's image is (guest/build.sh makes it)." type:"path" default:"/var/cache/unkai/guest"`

	hosts   string // a controller's address for other machines' agents; "" for a cloud on this machine alone
	cluster clusterOptions
	sockets sockets
}

// Run is a whole cloud until it is told to stop. Guests go on.
func (u *upCommand) Run(ctx context.Context) error {
	u.sockets.inherit()
	pool, own, err := u.pool()
	if err != nil {
		return err
	}
	if u.Sim == 0 && u.hosts == "" && os.Geteuid() != 0 {
		return errors.New("a host needs root (see `unkai doctor`); try --sim 2, which does not")
	}
	lock, err := lockDir(u.Data)
	if err != nil {
		return err
	}
	defer lock.Close()
	member, err := u.cluster.membership(ctx, u.Data, u.hosts)
	if err != nil {
		return err
	}
	untold, err := tracing(ctx, "unkai-controller")
	if err != nil {
		return err
	}
	defer untold()
	// Whoever leads has another lead before its work ends, so what ends it is not what it was told to.
	told := ctx
	ctx, stop := context.WithCancelCause(context.WithoutCancel(told))
	var leave atomic.Pointer[func()]
	defer context.AfterFunc(told, func() {
		if leave := leave.Load(); leave != nil {
			(*leave)()
		}
		stop(context.Cause(told))
	})()
	parts := newParts(ctx, stop)
	boundMemory()
	if member != nil {
		if err := member.openLookout(); err != nil {
			return err
		}
		parts.do("look whether a controller leads", member.keepLookout)
	}
	c, err := openCloud(ctx, u.Data, pool, own, member, parts.do)
	defer func() {
		parts.end()
		if c == nil {
			return
		}
		closing := time.Now()
		if err := c.state.Close(); err != nil {
			slog.Error("could not close the state", "err", err)
		}
		took, slow := parts.took()
		slog.Info("the work has ended", "took", took, "waited for", slow, "closing the state", time.Since(closing).Round(time.Millisecond))
	}()
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	l, secure, err := u.listener(c.authority, u.sockets.listen)
	if err != nil {
		return err
	}
	url := urlOf(l, secure)
	parts.do("control", func(ctx context.Context) error { c.run(ctx); return nil })
	debug.FreeOSMemory() // what a start has read and thrown away would else be held for minutes
	hosts, err := u.startHosts(ctx, c, parts)
	if err != nil {
		return err
	}
	authority, err := u.clientFiles(c, url, secure)
	if err != nil {
		return err
	}
	control, err := openControl(c.dir) // before anybody is told that all is ready
	if err != nil {
		return err
	}
	seat := &seat{dir: u.Data, sockets: &u.sockets, leave: stop, mayBe: c.mayBe, standing: c.standing}
	if c.cluster != nil {
		seat.handOver = c.cluster.handOver
		parting := c.cluster.leave
		leave.Store(&parting)
	}
	parts.do("alerts", func(ctx context.Context) error { c.keepAlerts(ctx, url, hosts); return nil })
	parts.answer("serve metrics", func(ctx context.Context) error { return u.metricsOption.serve(ctx, u.sockets.listen, c.metrics()) })
	parts.answer("serve clients", func(ctx context.Context) error { return serve(ctx, l, c.front()) })
	if c.cluster != nil {
		parts.do("be known to the other controllers", func(ctx context.Context) error { return c.cluster.present(ctx, url) })
		parts.do("keep the other controllers", c.cluster.keepWell)
		parts.do("report the hosts", c.cluster.report)
		parts.do("let hosts go", c.cluster.release)
	}
	parts.answer("serve the control socket", func(ctx context.Context) error {
		return c.serveControl(ctx, control, clientsAt{URL: url, HostsURL: hosts}, seat)
	})
	u.sockets.settled()
	slog.InfoContext(ctx, "ready", "after", time.Since(began).Round(time.Millisecond))
	fmt.Println("ready " + url)
	fmt.Fprintf(os.Stderr, "credentials are in %s: clouds.yaml, openrc, aws.env\n", u.Data)
	if u.Demo {
		parts.do("demo", func(ctx context.Context) error { return runDemo(ctx, c, u, url, authority) })
	}
	select {
	case <-ctx.Done():
	case <-c.state.Stopped():
		// Whoever runs us starts us again, and the state is then what the engine has.
		stop(fmt.Errorf("no more changes can be stored: %w", c.state.Broken()))
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// clientFiles writes what clients need, and answers the path of the authority's certificate
// when they need that too.
func (u *upCommand) clientFiles(c *cloud, url string, secure bool) (authority string, err error) {
	if secure && u.TLSCert == "" {
		authority = filepath.Join(u.Data, "authority.pem")
		if err := os.WriteFile(authority, c.authority.PEM(), 0o644); err != nil {
			return "", err
		}
	}
	host, _, err := net.SplitHostPort(u.Listen)
	if err != nil {
		return "", err
	}
	s3 := "http://" + net.JoinHostPort(host, "8701")
	return authority, writeClients(u.Data, url, s3, authority, c.secrets)
}

// startHosts begins the work of this machine as a host, or of simulated ones. It answers where
// hosts elsewhere reach this controller; "" if they cannot.
func (u *upCommand) startHosts(ctx context.Context, c *cloud, parts *parts) (string, error) {
	if u.Sim > 0 {
		if err := seedImages(ctx, c); err != nil {
			return "", fmt.Errorf("make the simulated cloud's images: %w", err)
		}
		if err := c.startSimulated(ctx, u.Sim, parts.do); err != nil || u.hosts == "" {
			return "", err
		}
	}
	address := "127.0.0.1:0"
	if u.hosts != "" {
		address = u.hosts
	}
	l, err := u.sockets.listen(address)
	if err != nil {
		return "", err
	}
	var also []string
	if c.cluster != nil {
		also = append(also, c.cluster.name())
	}
	config, err := hostTLS(c.authority, l.Addr().String(), also...)
	if err != nil {
		return "", err
	}
	parts.answer("serve hosts", func(ctx context.Context) error { return serveTLS(ctx, l, config, c.links()) })
	url := urlOf(l, true)
	if u.hosts != "" {
		return url, nil
	}
	dir := filepath.Join(u.Data, "host")
	id, err := agent.LoadIdentity(dir)
	if errors.Is(err, fs.ErrNotExist) {
		var token string
		if token, err = c.authority.Token(identity.Internal(ctx), time.Minute, host.ForHosts); err == nil {
			id, err = u.join(ctx, url, token, dir)
		}
	}
	if err == nil { // which needs no other way if it was off for longer than its certificate was valid
		err = id.Resign(func(after *x509.Certificate, csr []byte) ([]byte, error) {
			return c.authority.Renew(after, csr, time.Now())
		}, time.Now())
	}
	if err != nil {
		return "", err
	}
	m, err := openMachine(u.machineOptions, dir)
	if err != nil {
		return "", err
	}
	parts.answer("this host", func(ctx context.Context) error { return errors.Join(m.run(ctx, url, id), m.close()) })
	return "", nil
}
