package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

// An Identity is what makes a machine a host of one cloud: its ID, its certificate and key,
// and the authority it trusts. It is kept in a directory that only its user may read.
type Identity struct {
	Host        resource.ID
	Certificate []byte // DER
	Key         []byte // PKCS #8
	Authority   []byte // PEM
	// Where the cloud's controllers are, as far as this host was told.
	Controllers []string `json:",omitempty"`

	dir string // where it is kept
}

// IdentityFile is the file, in an agent's directory, that the identity is kept in.
const IdentityFile = "identity.json"

// LoadIdentity reads the identity kept in a directory; fs.ErrNotExist if the machine
// has not joined.
func LoadIdentity(dir string) (*Identity, error) {
	text, err := os.ReadFile(filepath.Join(dir, IdentityFile))
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir}
	if err := json.Unmarshal(text, id); err != nil {
		return nil, fmt.Errorf("read the host's identity: %w", err)
	}
	return id, nil
}

func (id *Identity) save() error {
	text, err := json.Marshal(id)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(id.dir, 0o711); err != nil { // guests' own users pass through it
		return err
	}
	temp := filepath.Join(id.dir, IdentityFile+".new")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, filepath.Join(id.dir, IdentityFile))
}

// Join makes this machine a host of the cloud at url with a one-time token, and keeps its
// identity in dir. The token says which authority to trust, so the first contact is safe too.
func Join(ctx context.Context, url, token, dir string) (*Identity, error) {
	private, csr, err := newKey()
	if err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The token's fingerprint replaces the usual verification, below.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, cert := range c.PeerCertificates[1:] {
				if host.TokenTrusts(token, cert.Raw) {
					return isController(c.PeerCertificates[0], cert)
				}
			}
			return errors.New("the controller is not the one that the token is from")
		},
	}}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(host.JoinRequest{Token: token, Request: csr, Speaks: release.Own})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/host/v1/join", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("join the cloud at %s: %w", url, err)
	}
	defer res.Body.Close()
	var answer host.JoinAnswer
	if err := decodeAnswer(res, &answer); err != nil {
		return nil, fmt.Errorf("join the cloud at %s: %w", url, err)
	}
	id := &Identity{Host: answer.Host, Certificate: answer.Certificate, Key: private, Authority: answer.Authority, dir: dir}
	return id, id.save()
}

// newKey makes a key (PKCS #8), and a request for a certificate of it (DER).
func newKey() (private, csr []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	if private, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
		return nil, nil, err
	}
	csr, err = x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	return private, csr, err
}

// isController reports why a certificate is not one that the authority gave to a controller: a host's
// is signed by it too.
func isController(cert, authority *x509.Certificate) error {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	_, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

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

	tls    *tls.Config
	client *http.Client

	mu     sync.Mutex
	url    string           // of the controller that is asked now; guarded by mu
	leads  string           // the one that leads, when another has said so of late; guarded by mu
	cert   *tls.Certificate // guarded by mu
	speaks release.Span     // of the controller; guarded by mu
	home   time.Time        // when the one is tried again that comes first; guarded by mu
}

// at is the controller to ask.
func (r *Remote) at() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.url
}

// At is the controller that is asked now.
func (r *Remote) At() string { return r.at() }

// Speaks is what the controllers' release speaks; zero while it is not known.
func (r *Remote) Speaks() release.Span {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.speaks
}

// elsewhere has the next request go to the next controller that is known. failed is where it was sent.
func (r *Remote) elsewhere(failed string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.url != failed {
		return // another request has found that out
	}
	if order := r.order(); len(order) > 0 {
		r.url = order[(slices.Index(order, failed)+1)%len(order)]
	}
}

// order is the controllers in the order in which this host takes them. Each host has its own, so that many are spread over
// them, and those of one that is lost over the others. The caller holds mu.
func (r *Remote) order() []string {
	rank := func(url string) []byte {
		sum := sha256.Sum256(append(r.Identity.Host[:], url...))
		return sum[:]
	}
	return slices.SortedFunc(slices.Values(r.Identity.Controllers), func(a, b string) int { return bytes.Compare(rank(a), rank(b)) })
}

// goHome has the next session be with the controller that this host takes first, if that has not been tried for a while.
func (r *Remote) goHome(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order := r.order(); len(order) > 0 && !now.Before(r.home) {
		r.url, r.home = order[0], now.Add(homeAgain+time.Duration(r.Identity.Host[15])*homeAgain/256)
	}
}

// away is how long a session with the controller at a URL may last, if that is not where this host belongs; 0: for ever.
func (r *Remote) away(at string, now time.Time) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if order := r.order(); len(order) == 0 || order[0] == at {
		return 0
	}
	return max(r.home.Sub(now), time.Second)
}

// homeAgain is how long a host at least stays away from the controller that it takes first, once that did not answer.
const homeAgain = 5 * time.Minute

// learn takes in where the controllers are, and keeps it for when none of those that are known is left.
func (r *Remote) learn(controllers []string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(controllers, r.Identity.Controllers) {
		return nil
	}
	next := *r.Identity
	next.Controllers = controllers
	if err := next.save(); err != nil {
		return fmt.Errorf("keep where the controllers are: %w", err)
	}
	*r.Identity = next
	return nil
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
			return r.cert, nil
		}}
	r.client = &http.Client{Transport: &http.Transport{TLSClientConfig: r.tls, MaxIdleConnsPerHost: 8, ExpectContinueTimeout: 5 * time.Second,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second}}
	return r, nil
}

func (id *Identity) certificate() (*tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(id.Key)
	if err != nil {
		return nil, fmt.Errorf("read the host's key: %w", err)
	}
	leaf, err := x509.ParseCertificate(id.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read the host's certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{id.Certificate}, PrivateKey: key, Leaf: leaf}, nil
}

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

// Connect begins a session.
func (r *Remote) Connect(ctx context.Context) (Session, error) {
	hello, err := r.Hello(ctx)
	if err != nil {
		return nil, err
	}
	hello.Differences, hello.Speaks = true, release.Own
	r.goHome(time.Now())
	ctx, cancel := context.WithCancel(ctx)
	s := &remoteSession{remote: r, at: r.at(), ctx: ctx, cancel: cancel}
	s.silence = time.AfterFunc(host.Expect, func() {
		r.elsewhere(s.at) // it may take connections and answer nothing
		cancel()
	})
	res, err := r.ask(ctx, s.at, http.MethodPost, "session", hello)
	if err != nil {
		s.silence.Stop()
		cancel()
		return nil, err
	}
	s.body, s.lines = res.Body, bufio.NewReaderSize(res.Body, 64<<10)
	s.belong()
	slog.InfoContext(ctx, "connected to the controller", "url", s.at)
	return s, nil
}

// belong has the session end in time if another controller is this host's own.
func (s *remoteSession) belong() {
	wait := s.remote.away(s.at, time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leave != nil {
		s.leave.Stop()
	}
	if wait > 0 {
		s.leave = time.AfterFunc(wait, func() { s.left.Store(true); s.cancel() })
	}
}

// remoteSession reads a session's lines. It ends when the controller is silent for too long.
type remoteSession struct {
	remote  *Remote
	at      string          // of the controller
	ctx     context.Context // of the request that the session is
	cancel  context.CancelFunc
	body    io.ReadCloser
	lines   *bufio.Reader
	silence *time.Timer
	left    atomic.Bool // to another controller

	mu    sync.Mutex
	leave *time.Timer // to where the host belongs; nil: it stays; guarded by mu
}

func (s *remoteSession) Next(ctx context.Context) (*host.Delivery, error) {
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil && s.left.Load() {
			return nil, io.EOF
		}
		if err != nil {
			return nil, err
		}
		s.silence.Reset(host.Expect)
		var m host.Message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("read the session: %w", err)
		}
		if !m.Speaks.IsZero() {
			if err := release.Own.Meets(m.Speaks); err != nil {
				return nil, fmt.Errorf("the controller's release: %w", err)
			}
			s.remote.mu.Lock()
			s.remote.speaks = m.Speaks
			s.remote.mu.Unlock()
		}
		if m.Controllers != nil {
			if err := s.remote.learn(m.Controllers); err != nil {
				slog.WarnContext(ctx, "a new controller may not be found again", "err", err)
			}
			s.belong()
		}
		if m.Call != nil {
			go s.remote.answer(s.ctx, s.at, *m.Call) // ends with the call, or with the session's context
		}
		if m.Delivery != nil {
			return m.Delivery, nil
		}
	}
}

func (s *remoteSession) Close() error {
	s.silence.Stop()
	s.mu.Lock()
	if s.leave != nil {
		s.leave.Stop()
	}
	s.mu.Unlock()
	s.cancel()
	return s.body.Close()
}

// answer connects a call to what it is for.
func (r *Remote) answer(ctx context.Context, at string, call host.Call) {
	if err := r.connect(ctx, cmp.Or(call.At, at), call); err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "a call from the controller failed", "kind", call.Kind, "guest", call.Guest, "err", err)
	}
}

func (r *Remote) connect(ctx context.Context, at string, call host.Call) error {
	if r.Consoles == nil {
		return errors.New("this host's guests have no consoles")
	}
	ours, err := r.takes(ctx, call)
	if err != nil {
		return err
	}
	defer ours.Close()
	address := strings.TrimPrefix(at, "https://")
	conn, err := (&tls.Dialer{Config: r.tls}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintf(conn, "GET /host/v1/calls/%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: unkai-call\r\n\r\n", call.ID, address); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("the controller answers %s", res.Status)
	}
	return splice(ours, conn, in)
}

// takes is this host's end of a call.
func (r *Remote) takes(ctx context.Context, call host.Call) (io.ReadWriteCloser, error) {
	switch call.Kind {
	case host.ConsoleLogCall:
		log, err := r.Consoles.ConsoleLog(ctx, call.Guest, call.Max)
		return nothingBack{bytes.NewReader(log)}, err
	case host.WeighCall:
		weigher, ok := r.Consoles.(compute.Weigher)
		if !ok {
			return nil, errors.New("this host's driver cannot tell what a guest would take along")
		}
		b, err := weigher.Weigh(ctx, call.Guest, call.Where)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(b)
		return nothingBack{bytes.NewReader(text)}, err
	}
	return r.Consoles.Console(ctx, call.Guest, call.Kind)
}

// splice copies both ways until the guest's side ends or the controller goes.
func splice(ours io.ReadWriteCloser, conn net.Conn, in io.Reader) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(ours, in) // its end is the controller's going, not an error
		ours.Close()
	}()
	_, err := io.Copy(conn, ours)
	conn.Close()
	<-done
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// nothingBack is a finite answer: what is written to it goes nowhere.
type nothingBack struct{ *bytes.Reader }

func (nothingBack) Write(b []byte) (int, error) { return len(b), nil }
func (nothingBack) Close() error                { return nil }
