package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/api/hostlink"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/core/host"
)

// listenOptions say where clients come in.
type listenOptions struct {
	Listen   string `default:"127.0.0.1:8700" help:"Address for the APIs and the console."`
	TLSCert  string `help:"Certificate for --listen (PEM). Beyond loopback the built-in authority's is used when none is given." type:"existingfile"`
	TLSKey   string `help:"Its key (PEM)." type:"existingfile"`
	Insecure bool   `name:"insecure-plain-http" help:"Serve plain HTTP beyond loopback too. Passwords then cross the network unprotected."`
}

// metricsOption says where Prometheus reads what is measured.
type metricsOption struct {
	Metrics string `help:"Address to serve metrics at, for Prometheus, such as 127.0.0.1:9700 (:9700 is loopback too). None when empty; the control socket always has them. Nobody is asked who they are, and it is no address for tenants."`
}

// loopback reports whether only this machine can reach an address.
func loopback(address string) (bool, error) {
	name, _, err := net.SplitHostPort(address)
	if err != nil {
		return false, fmt.Errorf("--listen %s: %w", address, err)
	}
	ip, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && ip.IsLoopback(), nil
}

// listener opens the address for clients and says whether it speaks TLS.
func (o *listenOptions) listener(a *host.Authority, listen func(address string) (net.Listener, error)) (net.Listener, bool, error) {
	local, err := loopback(o.Listen)
	if err != nil {
		return nil, false, err
	}
	l, err := listen(o.Listen)
	if err != nil {
		return nil, false, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	switch {
	case o.TLSCert != "" || o.TLSKey != "":
		config.Certificates = make([]tls.Certificate, 1)
		config.Certificates[0], err = tls.LoadX509KeyPair(o.TLSCert, o.TLSKey)
	case local:
		return l, false, nil
	case o.Insecure:
		slog.Warn("serving plain HTTP beyond loopback, as told: passwords cross the network unprotected")
		return l, false, nil
	default:
		config.GetCertificate, err = serving(a, o.Listen)
	}
	if err != nil {
		return nil, false, errors.Join(fmt.Errorf("the certificate for --listen: %w", err), l.Close())
	}
	return tls.NewListener(l, config), true, nil
}

// serving makes the built-in authority's certificates for a listener at an address, the first of them now.
func serving(a *host.Authority, address string, also ...string) (func(*tls.ClientHelloInfo) (*tls.Certificate, error), error) {
	s := &host.Serving{Authority: a, Now: time.Now, Names: func() []string { return append(serverNames(address), also...) }}
	_, err := s.Certificate(nil)
	return s.Certificate, err
}

// serverNames are those under which a controller may be reached: the name it listens on, and
// every address of this machine.
func serverNames(address string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	if name, _, err := net.SplitHostPort(address); err == nil && name != "" {
		names = append(names, name)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		slog.Warn("could not list this machine's addresses for the certificate", "err", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			names = append(names, n.IP.String())
		}
	}
	return names
}

// hostTLS is how the listener for hosts at an address speaks.
func hostTLS(a *host.Authority, address string, also ...string) (*tls.Config, error) {
	show, err := serving(a, address, also...)
	if err != nil {
		return nil, fmt.Errorf("make the controller's certificate: %w", err)
	}
	return hostlink.TLS(a, show), nil
}

// serveTLS is serve behind TLS.
func serveTLS(ctx context.Context, l net.Listener, config *tls.Config, h http.Handler) error {
	return serve(ctx, tls.NewListener(l, config), h)
}

// idleAtMost is how long a connection is kept on which nothing is asked.
const idleAtMost = 2 * time.Minute

const (
	// graceful is how long a server that stops waits for what is under way, with its door open and then again with it shut.
	graceful = 3 * time.Second
	// askWithin is how long a new connection has for its first request when its server stops.
	askWithin = time.Second
	// endWithin is how long a stream has to end by itself: one whose client does not read cannot.
	endWithin = 500 * time.Millisecond
	lookAgain = 5 * time.Millisecond
)

// serve answers on a listener until ctx ends, and then lets requests under way finish. What takes its time, as an image does, is waited for
// while others still come in. Once nobody of those is left, or has had its time, nobody comes in any more, and wire.Leaving ends. Whoever was
// connected before that is answered: the connections that come after it are the next process's, which they wait for, or refused.
func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	var v visitors
	leaving, leave := context.WithCancel(context.WithoutCancel(ctx))
	defer leave()
	s := &http.Server{Handler: v.listen(leaving, h), ConnState: v.note,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return hostlink.KeepConn(v.keep(ctx, c), c)
		},
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: idleAtMost, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	told := time.Now()
	for v.any(func(r *request) bool { return !r.stream && r.began.Before(told) }) && time.Since(told) < graceful {
		time.Sleep(lookAgain)
	}
	// A server that shuts down drops what it reads from then on, unanswered, so it does once nobody is about to ask.
	if err := l.Close(); err != nil {
		slog.Debug("close a listener", "err", err)
	}
	<-done
	s.SetKeepAlivesEnabled(false)
	leave()
	left := time.Now()
	v.end()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceful)
	defer cancel()
	go func() {
		for grace.Err() == nil {
			hasTime := func(r *request) bool {
				if r.stream {
					return time.Since(left) < endWithin
				}
				return !r.began.Before(told) // else it was waited for already
			}
			if v.any(func(*request) bool { return true }) && !v.any(hasTime) {
				cancel()
			}
			time.Sleep(lookAgain)
		}
	}()
	if err := s.Shutdown(grace); err != nil {
		if at := v.at(); at != nil {
			slog.WarnContext(ctx, "requests are cut off as this process ends", "at", l.Addr(), "after", time.Since(told).Round(time.Millisecond), "requests", at)
		}
		s.Close()
	}
	return nil
}

// visitors are those who are connected: what they ask, or since when they have not asked anything. Go's clients make some connections to
// spare, and its server would wait five seconds for each; all others ask at once, and are to be answered.
type visitors struct {
	mu     sync.Mutex
	silent map[net.Conn]time.Time // guarded by mu
	asking map[net.Conn]*request  // guarded by mu
}

// A request is one under way.
type request struct {
	method, path string
	began        time.Time
	stream       bool // it ends by itself with wire.Leaving
}

type visitorKey struct{}

// keep is an http.Server's ConnContext.
func (v *visitors) keep(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, visitorKey{}, c)
}

// note is an http.Server's ConnState. A connection is active before its request is with the handler, so that does not count.
func (v *visitors) note(c net.Conn, is http.ConnState) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch is {
	case http.StateNew:
		if v.silent == nil {
			v.silent, v.asking = map[net.Conn]time.Time{}, map[net.Conn]*request{}
		}
		v.silent[c] = time.Now()
	case http.StateIdle, http.StateHijacked, http.StateClosed:
		delete(v.silent, c)
		delete(v.asking, c)
	}
}

// listen takes note of what is asked.
func (v *visitors) listen(leaving context.Context, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := r.Context().Value(visitorKey{}).(net.Conn)
		is := &request{method: r.Method, path: r.URL.Path, began: time.Now()}
		v.mu.Lock()
		delete(v.silent, c)
		v.asking[c] = is
		v.mu.Unlock()
		h.ServeHTTP(w, r.WithContext(wire.WithLeaving(r.Context(), leaving, func() {
			v.mu.Lock()
			defer v.mu.Unlock()
			is.stream = true
		})))
	})
}

// any reports whether there is such a request under way.
func (v *visitors) any(such func(*request) bool) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, r := range v.asking {
		if such(r) {
			return true
		}
	}
	return false
}

// at tells what is under way, in words.
func (v *visitors) at() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []string
	for _, r := range v.asking {
		all = append(all, fmt.Sprintf("%s %s since %v", r.method, r.path, time.Since(r.began).Round(time.Millisecond)))
	}
	slices.Sort(all)
	return all
}

// end returns when all have asked, and closes those that do not.
func (v *visitors) end() {
	for ; v.wait(time.Now()); time.Sleep(lookAgain) {
	}
}

// wait closes those who had their time, and reports whether there are others.
func (v *visitors) wait(now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for c, since := range v.silent {
		if now.Sub(since) > askWithin {
			c.Close()
			delete(v.silent, c)
		}
	}
	return len(v.silent) > 0
}
