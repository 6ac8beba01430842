package relay

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

// A pair is two controllers on one engine: one leads, and the other has a front for clients.
type pair struct {
	t         *testing.T
	leads     *state.State
	follows   *state.State
	engine    *severed // the follower's
	authority *host.Authority
	server    *Server
	web       *httptest.Server // the leader's listener for controllers
	front     *Front
	asked     atomic.Int64 // how often the leader's dialects were
	clients   http.HandlerFunc
}

type noBlobs struct{}

func (noBlobs) Open(context.Context, resource.ID) (image.Blob, error) {
	return nil, fault.Errorf(fault.NotFound, "There is no such blob.")
}
func (noBlobs) Fetch(context.Context, resource.ID, string) error { return nil }

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t}
	engine := state.NewMemory(0)
	var err error
	if p.leads, err = state.OpenFollower(t.Context(), engine, state.Options{}); err != nil {
		t.Fatal(err)
	}
	if err := p.leads.Lead(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.authority, err = host.OpenAuthority(t.Context(), p.leads, time.Now()); err != nil {
		t.Fatal(err)
	}
	p.engine = &severed{Engine: engine}
	if p.follows, err = state.OpenFollower(t.Context(), p.engine, state.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.follows.Follow(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	p.clients = func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		fmt.Fprintf(w, "the leader: %s %s %q from %s at %s", r.Method, r.URL.RequestURI(), body, r.RemoteAddr, wire.BaseURL(r))
	}
	p.server = &Server{Authority: p.authority, State: p.leads, Now: time.Now, Blobs: noBlobs{}, Clients: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked.Add(1)
		p.clients(w, r)
	}), MayJoin: func(context.Context, string, string) error { return nil }, Join: func(_ context.Context, name, url string) (*JoinAnswer, error) {
		return &JoinAnswer{Members: map[string]string{name: url}, Secrets: []byte("{}")}, nil
	}}
	cert, err := p.authority.ControllerCertificate(time.Now(), "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	p.web = httptest.NewUnstartedServer(p.server)
	p.web.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.web.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: p.authority.Pool()}
	p.web.StartTLS()
	t.Cleanup(p.web.Close)
	p.front = &Front{State: p.follows, Patience: time.Second, Transport: p.transport(&cert), Leader: func() (string, bool) { return p.web.URL, true },
		Here: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Here", "yes")
			io.WriteString(w, "here") // to a recorder
		})}
	return p
}

func (p *pair) transport(cert *tls.Certificate) *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.authority.Pool()}
	if cert != nil { // whatever the server asks for
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &http.Transport{TLSClientConfig: config}
	p.t.Cleanup(tr.CloseIdleConnections)
	return tr
}

func (p *pair) ask(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	p.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body == "" {
		r = httptest.NewRequest(method, path, nil)
	}
	r.Host, r.RemoteAddr = "cloud.example:8700", "192.0.2.7:999"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	p.front.ServeHTTP(w, r)
	return w
}

func TestWhoAnswers(t *testing.T) {
	p := newPair(t)
	for name, c := range map[string]struct{ method, path, body, want string }{
		"a read is answered here":          {"GET", "/compute/v2.1/servers", "", "here"},
		"the index, too":                   {"GET", "/", "", "here"},
		"a write goes to the leader":       {"POST", "/compute/v2.1/servers?x=a%2Fb", `{"a":1}`, `the leader: POST /compute/v2.1/servers?x=a%2Fb "{\"a\":1}" from 192.0.2.7:999 at http://cloud.example:8700`},
		"an escaped path stays as it was":  {"DELETE", "/network/v2.0/a%2Fb", "", `the leader: DELETE /network/v2.0/a%2Fb "" from 192.0.2.7:999 at http://cloud.example:8700`},
		"EC2's GET may be anything":        {"GET", "/ec2?Action=RunInstances", "", `the leader: GET /ec2?Action=RunInstances "" from 192.0.2.7:999 at http://cloud.example:8700`},
		"a console is where the hosts are": {"GET", "/console/x", "", `the leader: GET /console/x "" from 192.0.2.7:999 at http://cloud.example:8700`},
		"no prefix of a prefix":            {"GET", "/v10", "", `the leader: GET /v10 "" from 192.0.2.7:999 at http://cloud.example:8700`},
	} {
		if got := p.ask(c.method, c.path, c.body); got.Body.String() != c.want || got.Header().Get(StaleHeader) != "" {
			t.Errorf("%s: %d %s", name, got.Code, got.Body)
		}
	}
}

// TestReadsThatWrite are asked of the leader, and nothing of the first try is seen.
func TestReadsThatWrite(t *testing.T) {
	p := newPair(t)
	p.front.Here = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Here", "yes")
		if err := p.follows.Update(r.Context(), func(*state.Tx) error { return nil }); err != nil {
			http.Error(w, "not me", http.StatusServiceUnavailable)
		}
	})
	got := p.ask("GET", "/network/v2.0/security-groups", "")
	if got.Code != 200 || !strings.HasPrefix(got.Body.String(), "the leader: GET") || got.Header().Get("X-Here") != "" {
		t.Errorf("%d %v %s", got.Code, got.Header(), got.Body)
	}
}

func TestSpoofedHeadersAreOverwritten(t *testing.T) {
	p := newPair(t)
	got := p.ask("POST", "/ec2", "x", hostHeader, "evil", sourceHeader, "10.0.0.1:1", protoHeader, "https")
	if !strings.Contains(got.Body.String(), "from 192.0.2.7:999 at http://cloud.example:8700") {
		t.Error(got.Body)
	}
}

// TestNobodyLeads: a write waits a moment, and is refused in words; a read goes on.
func TestNobodyLeads(t *testing.T) {
	p := newPair(t)
	p.front.Leader = func() (string, bool) { return "", false }
	if got := p.ask("POST", "/network/v2.0/networks", "{}"); got.Code != 503 || !strings.Contains(got.Body.String(), "Nothing was changed") {
		t.Errorf("%d %s", got.Code, got.Body)
	}
	if got := p.ask("GET", "/network/v2.0/networks", ""); got.Code != 200 {
		t.Errorf("a read: %d", got.Code)
	}
}

// TestLeaderThatIsNone: who is asked and does not lead does nothing, so that the next is asked, with the whole request.
func TestLeaderThatIsNone(t *testing.T) {
	p := newPair(t)
	p.leads.Resign()
	go func() {
		time.Sleep(200 * time.Millisecond)
		if err := p.leads.Lead(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	if got := p.ask("POST", "/x", "whole"); !strings.Contains(got.Body.String(), `"whole"`) || p.asked.Load() != 1 {
		t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
	}
}

// TestTheLeadIsHandedOverMeanwhile: what was asked of the one that led, and was refused for that, is asked again where it surely did nothing,
// or has one effect.
func TestTheLeadIsHandedOverMeanwhile(t *testing.T) {
	for name, c := range map[string]struct {
		header string
		writes int // before the lead is gone
		code   int
	}{
		"it did nothing":                        {"X-None", 0, 200},
		"it did a part":                         {"X-None", 1, 503},
		"it did a part, and has a key for that": {wire.OnceHeader, 1, 200},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			answer := p.clients
			p.clients = func(w http.ResponseWriter, r *http.Request) {
				if p.asked.Load() > 1 {
					answer(w, r)
					return
				}
				for range c.writes {
					if _, err := p.authority.Token(r.Context(), time.Hour, host.ForHosts); err != nil {
						t.Error(err)
					}
				}
				p.leads.Retire()
				if _, err := p.authority.Token(r.Context(), time.Hour, host.ForHosts); err == nil {
					t.Error("who retired writes")
				}
				if err := p.leads.Lead(context.Background()); err != nil { // the other, here
					t.Error(err)
				}
				http.Error(w, "not me", http.StatusServiceUnavailable)
			}
			if got := p.ask("POST", "/x", "whole", c.header, "k"); got.Code != c.code || c.code == 200 && !strings.Contains(got.Body.String(), `"whole"`) {
				t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
			}
		})
	}
}

// TestLostAnswer is tried again only where that is safe.
func TestLostAnswer(t *testing.T) {
	for name, c := range map[string]struct {
		method string
		header string
		asked  int64
		code   int
	}{
		"a write may have been done": {"POST", "X-None", 1, 503},
		"with a key it is done once": {"POST", wire.OnceHeader, 2, 200},
		"EC2's GET, too":             {"GET", "X-None", 1, 503},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			answer := p.clients
			p.clients = func(w http.ResponseWriter, r *http.Request) {
				if p.asked.Load() == 1 {
					panic(http.ErrAbortHandler)
				}
				answer(w, r)
			}
			body := "b"
			if c.method == "GET" {
				body = ""
			}
			if got := p.ask(c.method, "/ec2", body, c.header, "k"); got.Code != c.code || p.asked.Load() != c.asked {
				t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
			}
		})
	}
}

// hostRequest is a key, and a request for a certificate of it.
func hostRequest(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

// TestOnlyControllers: a host's certificate is of the same authority, and opens nothing here.
func TestOnlyControllers(t *testing.T) {
	p := newPair(t)
	key, der := hostRequest(t)
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := p.authority.SignHost(resource.NewID(time.Now(), nil), csr, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token := func(only string) string {
		text, err := p.authority.Token(identity.Internal(t.Context()), time.Hour, only)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	hosts := &tls.Certificate{Certificate: [][]byte{signed}, PrivateKey: key}
	for who, cert := range map[string]*tls.Certificate{"a host": hosts, "nobody": nil} {
		client := &http.Client{Transport: p.transport(cert), Timeout: 5 * time.Second}
		for _, path := range []string{"relay/identity/v3/users", "operate/token", "present", "blobs/" + resource.NewID(time.Now(), nil).String()} {
			res, err := client.Post(p.web.URL+prefix+path, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s asks for %s and is answered %s", who, path, res.Status)
			}
		}
		for only, want := range map[string]int{host.ForHosts: 401, host.ForControllers: 200} {
			body, err := json.Marshal(JoinRequest{Token: token(only), Request: der, Names: []string{"127.0.0.1"}, Member: "m", URL: "https://127.0.0.1:1", Speaks: release.Own})
			if err != nil {
				t.Fatal(err)
			}
			res, err := client.Post(p.web.URL+prefix+"join", "application/json", strings.NewReader(string(body)))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if res.StatusCode != want {
				t.Errorf("a token for a %s: %s, want %d", only, res.Status, want)
			}
		}
	}
	if p.asked.Load() != 0 {
		t.Error("a request went through")
	}
}
