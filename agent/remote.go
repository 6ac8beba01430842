package agent

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

func decodeAnswer(res *http.Response, v any) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the controller answers %s: %s", res.Status, strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, v)
}

// Remote is a Link to a cloud's controllers over mutual TLS: to any that knows what is wanted now.
type Remote struct {
	Identity *Identity
	Hello    func(context.Context) (host.Hello, error)
	// Consoles connects calls from the controller to guests; nil: none can be made.
	Consoles compute.Consoler

	tls       *tls.Config
	client    *http.Client
	transport transport

	mu      sync.Mutex
	url     string           // of the controller that is asked now; guarded by mu
	leads   string           // the one that leads, when another has said so of late; guarded by mu
	cert    *tls.Certificate // guarded by mu
	speaks  release.Span     // of the controller; guarded by mu
	session *remoteSession   // the present one, or the last; guarded by mu
	home    time.Time        // when the one is tried again that comes first; guarded by mu
}

// Speaks is what the controllers' release speaks; zero while it is not known.
func (r *Remote) Speaks() release.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.speaks
}

// Says is at which levels this host works, as it has told the controllers in its present session, or the last; zero before the first.
func (r *Remote) Says() release.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return release.Span{}
	}
	return r.session.said.Speaks
}

// SaysMTU is what this host's wire carries, as it has told the controllers in its present session, or the last; false before the first.
func (r *Remote) SaysMTU() (int, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.session == nil {
		return 0, false
	}
	return r.session.said.MTU, true
}

// Again has the present session end, and another begin at once: what the host says of itself has changed.
func (r *Remote) Again() {
	r.mu.Lock()
	s := r.session
	r.mu.Unlock()
	if s != nil {
		s.again()
	}
}

// NewRemote makes a link for a host that has joined.
func NewRemote(url string, id *Identity, hello func(context.Context) (host.Hello, error), consoles compute.Consoler) (*Remote, error) {
	cert, err := id.certificate()
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	block, _ := pem.Decode(id.Authority)
	if block == nil || !pool.AppendCertsFromPEM(id.Authority) {
		return nil, errors.New("the authority's certificate is damaged")
	}
	r := &Remote{url: strings.TrimSuffix(url, "/"), Identity: id, Hello: hello, Consoles: consoles, cert: cert}
	r.tls = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if time.Now().After(r.cert.Leaf.NotAfter) {
				return new(tls.Certificate), nil // it would be refused: see Renew
			}
			return r.cert, nil
		}}
	r.client = &http.Client{Transport: &r.transport}
	r.transport.renew(r.tls)
	return r, nil
}

// A transport is one that can be replaced: connections that were made with an earlier certificate are used no more then, those in use
// at that moment included.
type transport struct {
	now atomic.Pointer[http.Transport]
}

// RoundTrip goes over the present one.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	return t.now.Load().RoundTrip(r)
}

// CloseIdleConnections is the http.Client's.
func (t *transport) CloseIdleConnections() { t.now.Load().CloseIdleConnections() }

func (t *transport) renew(config *tls.Config) {
	was := t.now.Swap(&http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 8, ExpectContinueTimeout: 5 * time.Second, IdleConnTimeout: 90 * time.Second,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second})
	if was != nil {
		was.CloseIdleConnections()
	}
}

func (r *Remote) do(ctx context.Context, method, path string, v any) (*http.Response, error) {
	return r.ask(ctx, r.at(), method, path, v)
}

// ask is do of the controller at a URL. When that does not answer, or cannot, the next request goes to another.
func (r *Remote) ask(ctx context.Context, at, method, path string, v any) (*http.Response, error) {
	var body io.Reader
	if v != nil {
		text, err := json.Marshal(v)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, at+"/host/v1/"+path, body)
	if err != nil {
		return nil, err
	}
	res, err := r.client.Do(req)
	if err != nil {
		if !errors.Is(ctx.Err(), context.Canceled) {
			r.elsewhere(at)
		}
		return nil, err
	}
	if res.StatusCode == http.StatusMisdirectedRequest || res.StatusCode == http.StatusServiceUnavailable {
		r.elsewhere(at) // it cannot say what is wanted now, or reach the one that leads
	}
	if res.StatusCode >= 300 {
		defer res.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // only to say more
		return nil, &StatusError{res.StatusCode, strings.TrimSpace(string(text))}
	}
	return res, nil
}

// A StatusError is a controller's refusal.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("the controller answers %d: %s", e.Status, e.Message)
}

// Observe reports.
func (r *Remote) Observe(ctx context.Context, seen []host.Observation) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	res, err := r.do(ctx, http.MethodPost, "observations", seen)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// Lease asks for the host's lease.
func (r *Remote) Lease(ctx context.Context, q host.LeaseRequest) (host.LeaseAnswer, error) {
	var answer host.LeaseAnswer
	res, err := r.do(ctx, http.MethodPost, "lease", q)
	if err != nil {
		return answer, err
	}
	defer res.Body.Close()
	return answer, decodeAnswer(res, &answer)
}

// Image reads an image from the controller.
func (r *Remote) Image(ctx context.Context, id resource.ID) (io.ReadCloser, error) {
	res, err := r.do(ctx, http.MethodGet, "images/"+id.String(), nil)
	if err != nil {
		var refused *StatusError
		if errors.As(err, &refused) && refused.Status == http.StatusNotFound {
			return nil, &ImageError{"The image is no longer there."}
		}
		return nil, err
	}
	return res.Body, nil
}

// PutImage brings bytes into an image that a controller has made for a snapshot: to the one that leads, once another has said which that is.
func (r *Remote) PutImage(ctx context.Context, id resource.ID, body io.Reader, bytes int64) error {
	r.mu.Lock()
	at := cmp.Or(r.leads, r.url)
	r.leads = ""
	r.mu.Unlock()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, at+"/host/v1/images/"+id.String(), io.NopCloser(body))
	if err != nil {
		return err
	}
	req.ContentLength = bytes
	req.Header.Set("Expect", "100-continue") // most refusals need no byte of it
	res, err := r.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 4096)) // only to say more
	said := strings.TrimSpace(string(text))
	switch res.StatusCode {
	case http.StatusNoContent:
		return nil
	case http.StatusNotFound, http.StatusGone:
		return &ImageError{"The image was taken away before it was complete."}
	case http.StatusBadRequest: // there is no room for it, for one
		return &ImageError{said}
	case http.StatusMisdirectedRequest:
		r.mu.Lock()
		if leader := res.Header.Get(host.LeaderHeader); slices.Contains(r.Identity.Controllers, leader) {
			r.leads = leader // the next attempt goes there
		}
		r.mu.Unlock()
	}
	return &StatusError{res.StatusCode, said}
}
