package hostlink

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
)

// A rig is a controller that hosts reach over TLS as in life.
type rig struct {
	*cloudtest.Cloud
	t         *testing.T
	server    *Server
	authority *host.Authority
	web       *httptest.Server
	late      atomic.Int64 // how far its clock is ahead
	peers     int
	wrap      func(http.Handler) http.Handler // the server; nil: as it is
}

func newRig(t *testing.T, change ...func(*rig)) *rig {
	t.Helper()
	r := &rig{Cloud: cloudtest.New(t, 0), t: t}
	var err error
	if r.authority, err = host.OpenAuthority(t.Context(), r.State, time.Now()); err != nil {
		t.Fatal(err)
	}
	r.server = &Server{Hub: r.Hub, Authority: r.authority, Patience: 5 * time.Second,
		Now: func() time.Time { return time.Now().Add(time.Duration(r.late.Load())) },
		Image: func(_ context.Context, h, id resource.ID) (io.ReadCloser, error) {
			if id != r.Image || !compute.MadeFrom(r.State.Latest(), h, id) {
				return nil, fault.Missing("image", id)
			}
			return io.NopCloser(io.MultiReader(strings.NewReader("half of the image"), failing{})), nil
		},
		Fill: func(ctx context.Context, h, id resource.ID, body io.Reader, bytes int64) error {
			if !compute.Makes(r.State.Latest(), h, id) {
				return fault.Missing("image", id)
			}
			return r.Images.Fill(ctx, id, body, bytes)
		}}
	for _, c := range change {
		c(r)
	}
	var h http.Handler = r.server
	if r.wrap != nil {
		h = r.wrap(h)
	}
	r.web = httptest.NewUnstartedServer(h)
	r.web.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.web.TLS = testTLS(t, r.authority)
	r.web.StartTLS()
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.server.Hub.Run(ctx) })
	t.Cleanup(func() {
		stop()
		wg.Wait()
		r.web.CloseClientConnections()
		r.web.Close()
	})
	return r
}

// testTLS is TLS for a test's server, which shows a certificate of its own if it is not given one.
func testTLS(t *testing.T, a *host.Authority) *tls.Config {
	t.Helper()
	serving := &host.Serving{Authority: a, Names: func() []string { return []string{"127.0.0.1"} }, Now: time.Now}
	cert, err := serving.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	config := TLS(a, serving.Certificate)
	config.Certificates = []tls.Certificate{*cert}
	return config
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is broken") }

// A peer is who speaks to the controller: a host, if it has a certificate of one.
type peer struct {
	r      *rig
	id     resource.ID
	config *tls.Config
	client *http.Client
}

func newKey(t *testing.T) (*ecdsa.PrivateKey, *x509.CertificateRequest) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, csr
}

// peer speaks with these certificates.
func (r *rig) peer(certs ...tls.Certificate) *peer {
	p := &peer{r: r, config: &tls.Config{RootCAs: r.authority.Pool()}}
	if len(certs) > 0 { // shown whatever the controller asks for
		p.config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certs[0], nil }
	}
	p.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: p.config}}
	r.t.Cleanup(p.client.CloseIdleConnections)
	return p
}

// signed is a peer with a certificate that this authority made for a host at this time.
func (r *rig) signed(a *host.Authority, id resource.ID, at time.Time) *peer {
	r.t.Helper()
	key, csr := newKey(r.t)
	der, err := a.SignHost(id, csr, at)
	if err != nil {
		r.t.Fatal(err)
	}
	p := r.peer(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	p.id = id
	return p
}

func (r *rig) token(valid time.Duration) string {
	r.t.Helper()
	token, err := r.authority.Token(r.Admin, valid, host.ForHosts)
	if err != nil {
		r.t.Fatal(err)
	}
	return token
}

// host joins, and says hello.
func (r *rig) host() (*peer, *stream) {
	r.t.Helper()
	p := r.join()
	r.peers++
	return p, p.connect(fmt.Sprintf("node-%d", r.peers))
}

func (r *rig) join() *peer {
	r.t.Helper()
	key, csr := newKey(r.t)
	var answer host.JoinAnswer
	p := r.peer()
	if err := json.Unmarshal(p.post("join", host.JoinRequest{Token: r.token(time.Hour), Request: csr.Raw}).must(200), &answer); err != nil {
		r.t.Fatal(err)
	}
	p = r.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key})
	p.id = answer.Host
	return p
}

// An answered request; status 0 when TLS or the connection failed.
type answered struct {
	t      *testing.T
	status int
	body   []byte
	err    error
}

func (a answered) must(status int) []byte {
	a.t.Helper()
	if a.status != status {
		a.t.Fatalf("the answer is %d %s (%v), not %d", a.status, a.body, a.err, status)
	}
	return a.body
}

func (p *peer) send(method, path string, body io.Reader) answered {
	p.r.t.Helper()
	req, err := http.NewRequest(method, p.r.web.URL+"/host/v1/"+path, body)
	if err != nil {
		p.r.t.Fatal(err)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return answered{t: p.r.t, err: err}
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return answered{p.r.t, res.StatusCode, text, err}
}

func (p *peer) post(path string, v any) answered {
	p.r.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		p.r.t.Fatal(err)
	}
	return p.send("POST", path, bytes.NewReader(text))
}

// A stream is a session as its host sees it.
type stream struct {
	t     *testing.T
	body  io.ReadCloser
	lines *bufio.Reader
}

func (p *peer) connect(name string) *stream {
	p.r.t.Helper()
	text, err := json.Marshal(host.Hello{Name: name, Capacity: cloudtest.Capacity})
	if err != nil {
		p.r.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: p.config}}
	p.r.t.Cleanup(client.CloseIdleConnections)
	res, err := client.Post(p.r.web.URL+"/host/v1/session", "", bytes.NewReader(text))
	if err != nil {
		p.r.t.Fatal(err)
	}
	p.r.t.Cleanup(func() { res.Body.Close() })
	if res.StatusCode != 200 {
		text, _ := io.ReadAll(res.Body)
		p.r.t.Fatalf("the session is refused: %d %s", res.StatusCode, text)
	}
	return &stream{p.r.t, res.Body, bufio.NewReader(res.Body)}
}

// next is the next message that says something; nil when the stream has ended.
func (s *stream) next() *host.Message {
	s.t.Helper()
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil {
			return nil
		}
		m := new(host.Message)
		if err := json.Unmarshal(line, m); err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		if m.Call != nil || m.Delivery != nil {
			return m
		}
	}
}

func (s *stream) delivery() *host.Delivery {
	s.t.Helper()
	m := s.next()
	if m == nil || m.Delivery == nil {
		s.t.Fatalf("instead of a delivery came %+v", m)
	}
	return m.Delivery
}

// ended waits for the end of the stream.
func (s *stream) ended() {
	s.t.Helper()
	guard := time.AfterFunc(10*time.Second, func() { s.body.Close() })
	for s.next() != nil {
	}
	if !guard.Stop() {
		s.t.Fatal("the session goes on")
	}
}

func report(id resource.ID, seen any) host.Observation {
	text, err := json.Marshal(seen)
	if err != nil {
		panic(err)
	}
	return host.Observation{Key: host.Key{Kind: "guest", ID: id}, Seen: text}
}

func TestJoinIsOnce(t *testing.T) {
	r := newRig(t)
	stranger := r.peer()
	_, csr := newKey(t)
	with := func(token string) answered {
		return stranger.post("join", host.JoinRequest{Token: token, Request: csr.Raw})
	}
	good, old := r.token(time.Hour), r.token(time.Minute)
	stranger.post("join", host.JoinRequest{Token: good, Request: []byte("no request")}).must(400)
	stranger.send("POST", "join", strings.NewReader(`{"Token":`)).must(400)
	stranger.send("POST", "join", strings.NewReader(`[]`)).must(400)
	stranger.send("POST", "join", bytes.NewReader(make([]byte, 1<<20))).must(400)
	with("").must(401)
	with(good[1:]).must(401)
	with(good).must(200) // nothing of the above has used it up
	with(good).must(401)
	r.Clock = r.Clock.Add(time.Hour)
	with(old).must(401)
	stranger.send("GET", "join", nil).must(405)
	stranger.send("GET", "nothing", nil).must(404)
	if n := host.Table().Len(r.State.Latest()); n != 0 {
		t.Errorf("%d hosts are there before any has said hello", n)
	}
}

// routes is all that only hosts may ask for.
var routes = []struct{ method, path, body string }{
	{"POST", "session", `{"Name":"intruder"}`},
	{"POST", "observations", `[]`},
	{"POST", "renew", `{}`},
	{"GET", "images/0190a0b0-0000-7000-8000-000000000000", ""},
	{"PUT", "images/0190a0b0-0000-7000-8000-000000000000", ""},
	{"GET", "calls/x", ""},
}

func TestOnlyHostsComeIn(t *testing.T) {
	r := newRig(t)
	known, _ := r.host()
	other, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	forger, err := host.OpenAuthority(t.Context(), other, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	controller, err := r.authority.ServerCertificate(time.Now(), known.id.String())
	if err != nil {
		t.Fatal(err)
	}
	removed, _ := r.host()
	if err := r.Compute.DismissHost(r.Admin, removed.id); err != nil {
		t.Fatal(err)
	}
	fresh := r.signed(r.authority, known.id, time.Now()) // connects while its certificate is good
	fresh.send("POST", "observations", strings.NewReader(`[]`)).must(204)
	for name, test := range map[string]struct {
		peer   *peer
		status int // 0: TLS refuses
		late   time.Duration
	}{
		"without a certificate":                  {r.peer(), 401, 0},
		"with another authority's certificate":   {r.signed(forger, known.id, time.Now()), 0, 0},
		"with an expired certificate":            {r.signed(r.authority, known.id, time.Now().AddDate(-1, 0, 0)), 0, 0},
		"with one that is not yet valid":         {r.signed(r.authority, known.id, time.Now().AddDate(1, 0, 0)), 0, 0},
		"with a certificate that expires":        {fresh, 401, 100 * 24 * time.Hour},
		"with a controller's certificate":        {r.peer(controller), 0, 0},
		"with a machine's that never joined":     {r.signed(r.authority, resource.NewID(time.Now(), nil), time.Now()), 401, 0},
		"with a removed host's certificate":      {removed, 401, 0},
		"with the last of a removed one's names": {r.signed(r.authority, removed.id, time.Now()), 401, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r.late.Store(int64(test.late))
			defer r.late.Store(0)
			for _, q := range routes {
				got := test.peer.send(q.method, q.path, strings.NewReader(q.body))
				if got.status != test.status || test.status == 0 && got.err == nil {
					t.Errorf("%s %s answers %d %s, %v", q.method, q.path, got.status, got.body, got.err)
				}
			}
		})
	}
	if n := host.Table().Len(r.State.Latest()); n != 1 {
		t.Errorf("%d hosts", n)
	}
}

func TestRenewedCertificate(t *testing.T) {
	r := newRig(t)
	p := r.join()
	key, csr := newKey(t)
	var answer host.JoinAnswer
	p.send("POST", "renew", strings.NewReader(`{`)).must(400)
	p.post("renew", host.RenewRequest{Request: []byte("x")}).must(400)
	if err := json.Unmarshal(p.post("renew", host.RenewRequest{Request: csr.Raw}).must(200), &answer); err != nil || answer.Host != p.id {
		t.Fatalf("%+v, %v", answer, err)
	}
	r.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key}).connect("renewed").delivery()
	if _, ok := host.Find(r.State.Latest(), p.id); !ok {
		t.Error("with the next certificate it is another host")
	}
}

func TestSession(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	if d := s.delivery(); !d.Full || len(d.Items) != 0 {
		t.Fatalf("first comes %+v", d)
	}
	id := r.Launch(compute.Launch{})[0]
	if d := s.delivery(); d.Full || len(d.Items) != 1 || d.Items[0].ID != id || d.Items[0].Body == nil {
		t.Fatalf("then comes %+v", d)
	}
	again := p.connect("node-1")
	s.ended()
	if d := again.delivery(); !d.Full || len(d.Items) != 1 || d.Items[0].ID != id {
		t.Fatalf("a new session begins with %+v", d)
	}
	r.Must(r.Compute.Delete(r.Ctx, id))
	if d := again.delivery(); len(d.Items) != 1 || d.Items[0].Body != nil {
		t.Fatalf("after the delete comes %+v", d)
	}
	p.post("observations", []host.Observation{report(id, compute.Seen{Gone: true})}).must(204)
	if r.Server(id) != nil {
		t.Fatal("the server is still there")
	}
	if err := r.Compute.DismissHost(r.Admin, p.id); err != nil {
		t.Fatal(err)
	}
	again.ended()
	p.send("POST", "observations", strings.NewReader(`[]`)).must(401)
}

// A session ends when its server is to stop.
func TestASessionEndsWithItsServer(t *testing.T) {
	leaving, leave := context.WithCancel(t.Context())
	r := newRig(t, func(r *rig) {
		r.wrap = func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				h.ServeHTTP(w, r.WithContext(wire.WithLeaving(r.Context(), leaving, func() {})))
			})
		}
	})
	_, s := r.host()
	s.delivery()
	leave()
	began := time.Now()
	s.ended()
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("it goes on for %v", took)
	}
}

func TestAHostWithServersIsNotRemoved(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	r.Launch(compute.Launch{})
	if err := r.Compute.DismissHost(r.Admin, p.id); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the answer is %v", err)
	}
	if err := r.Compute.DismissHost(r.Ctx, p.id); err == nil || fault.KindOf(err) == fault.Conflict {
		t.Errorf("a tenant is answered %v", err)
	}
	p.send("POST", "observations", strings.NewReader(`[]`)).must(204)
}

func TestTwoHostsOfOneName(t *testing.T) {
	r := newRig(t)
	r.host()
	r.join().post("session", host.Hello{Name: "node-1"}).must(409)
	_, csr := newKey(t)
	token := r.token(time.Hour)
	says := func(name string, status int) {
		t.Helper()
		r.peer().post("join", host.JoinRequest{Token: token, Request: csr.Raw, Says: &host.Hello{Name: name}}).must(status)
	}
	says("node-1", 409)
	says("another", 200) // the token was not used up
	p := r.join()
	p.send("POST", "session", strings.NewReader(`{"Name":`)).must(400)
	p.send("POST", "session", strings.NewReader(`"hello"`)).must(400)
}

// What a host says of another's server changes nothing, and a bad report does not hold up a good one.
func TestReports(t *testing.T) {
	r := newRig(t)
	one, _ := r.host()
	id := r.Launch(compute.Launch{})[0]
	two, _ := r.host()
	wish := r.Server(id).Wish
	on := compute.Seen{Observation: compute.Observation{Power: compute.On}, Wish: wish}
	for name, seen := range map[string]compute.Seen{
		"gone": {Gone: true}, "off": {Observation: compute.Observation{Power: compute.Off}, Wish: wish}, "on": on,
		"in trouble": {Observation: compute.Observation{Power: compute.Crashed, Trouble: "ha"}, Wish: wish},
	} {
		before := r.State.Latest().Revision()
		two.post("observations", []host.Observation{report(id, seen)}).must(204)
		if r.State.Latest().Revision() != before {
			t.Errorf("another host says that it is %s, and is believed", name)
		}
	}
	for _, bad := range []string{`{`, `[`, `{}`, `"x"`, `[{"Kind":7}]`, `[{"Kind":"guest","ID":"zz"}]`} {
		one.send("POST", "observations", strings.NewReader(bad)).must(400)
	}
	one.send("POST", "observations", io.LimitReader(zeros{}, maxBody+1)).must(400)
	many := []host.Observation{
		{Key: host.Key{Kind: "dragon", ID: id}, Seen: json.RawMessage(`{}`)},
		{Key: host.Key{Kind: "guest", ID: id}, Seen: json.RawMessage(`{"Power":7}`)},
		{Key: host.Key{Kind: "guest", ID: id}, Seen: json.RawMessage(`[]`)},
		{Key: host.Key{Kind: "guest", ID: resource.NewID(time.Now(), nil)}, Seen: json.RawMessage(`{"Gone":true}`)},
		{Key: host.Key{Kind: "guest", ID: id}, Seen: json.RawMessage(`{"Power":"on","Wish":` + fmt.Sprint(wish) + `,"FromTheFuture":{"x":1}}`)},
	}
	for range 5000 {
		many = append(many, report(resource.NewID(time.Now(), nil), on))
	}
	one.post("observations", many).must(204)
	if got := r.Server(id).Standing(); got != (compute.Standing{Stage: compute.Running}) {
		t.Errorf("the server is %v", got)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// A host that does not read is cut off, and holds up nobody else.
func TestSlowReader(t *testing.T) {
	r := newRig(t, func(r *rig) {
		big := strings.Repeat("x", 64<<20)
		r.server.Hub = host.NewHub(r.State, host.Source{Kind: "blob",
			All:     func(*state.Tx, resource.ID) []resource.ID { return []resource.ID{r.Image} },
			Want:    func(*state.Tx, resource.ID, resource.ID) (any, bool) { return big, true },
			Touched: func(*state.Tx, state.Event) []host.Ref { return nil }})
		r.server.Patience = 300 * time.Millisecond
	})
	p := r.join()
	conn, err := tls.Dial("tcp", r.web.Listener.Addr().String(), p.config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	hello := `{"Name":"slow"}`
	fmt.Fprintf(conn, "POST /host/v1/session HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(hello), hello)
	wait(t, "the session begins", func() bool { return r.server.Hub.Connected(p.id) })
	wait(t, "it is cut off", func() bool { return !r.server.Hub.Connected(p.id) })
}

// Who sends a request too slowly is cut off too, long before it has a certificate.
func TestSlowSender(t *testing.T) {
	r := newRig(t, func(r *rig) { r.server.Patience = 300 * time.Millisecond })
	conn, err := tls.Dial("tcp", r.web.Listener.Addr().String(), r.peer().config)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /host/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if got, err := io.ReadAll(conn); len(got) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the answer is %q, %v", got, err)
	}
}

func wait(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to be that %s", what)
		}
	}
}

func TestImages(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	p.send("GET", "images/x", nil).must(404)
	p.send("GET", "images/"+resource.NewID(time.Now(), nil).String(), nil).must(404)
	// An image that no server there is made from is not for this host.
	p.send("GET", "images/"+r.Image.String(), nil).must(404)
	other, _ := r.host()
	r.Must(r.State.Update(r.Admin, func(tx *state.Tx) error {
		return compute.Servers().Put(tx, &compute.Server{Meta: resource.Meta{ID: tx.NewID(), ProjectID: r.Project, Name: "s"}, HostID: p.id,
			Boot: compute.Boot{Initrd: &compute.ImageRef{ID: r.Image}}})
	}))
	other.send("GET", "images/"+r.Image.String(), nil).must(404)
	if got := p.send("GET", "images/"+r.Image.String(), nil); got.err == nil {
		t.Errorf("half an image is taken for the whole: %d %q", got.status, got.body)
	}
}

// A host brings bytes into the images that it is to fill, and into no others; again does no harm.
func TestSnapshots(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	other, _ := r.host()
	img, err := r.Images.Create(r.Admin, image.Request{Name: "copy", ProjectID: r.Project, Spec: image.Spec{Format: "raw", Container: "bare"}})
	r.Must(err)
	path, disk := "images/"+img.ID.String(), strings.Repeat("d", 512)
	p.send("PUT", "images/x", strings.NewReader(disk)).must(404)
	p.send("PUT", path, strings.NewReader(disk)).must(404)
	r.Must(r.State.Update(r.Admin, func(tx *state.Tx) error {
		return compute.Servers().Put(tx, &compute.Server{Meta: resource.Meta{ID: tx.NewID(), ProjectID: r.Project, Name: "s"}, HostID: p.id,
			Snapshot: &compute.Snapshot{Number: 1, ImageID: img.ID}})
	}))
	other.send("PUT", path, strings.NewReader(disk)).must(404)
	for range 2 {
		p.send("PUT", path, strings.NewReader(disk)).must(204)
	}
	if i, err := r.Images.Get(r.Admin, img.ID); err != nil || i.State != image.Active || i.Bytes != 512 {
		t.Errorf("the image is %+v, %v", i, err)
	}
}

// answer is a host's connection for a call.
func (p *peer) answer(id string) (net.Conn, *bufio.Reader, int) {
	p.r.t.Helper()
	conn, err := tls.Dial("tcp", p.r.web.Listener.Addr().String(), p.config)
	if err != nil {
		p.r.t.Error(err)
		return nil, nil, 0
	}
	p.r.t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /host/v1/calls/%s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: unkai-call\r\n\r\n", id)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return conn, in, 0
	}
	return conn, in, res.StatusCode
}

func TestCalls(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	s.delivery()
	other, _ := r.host()
	if _, err := r.server.Dial(t.Context(), resource.NewID(time.Now(), nil), host.Call{Kind: "vnc"}); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a call to a host that is not there answers %v", err)
	}
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled)
	go func() {
		conn, err := r.server.Dial(t.Context(), p.id, host.Call{Kind: "vnc", Guest: r.Image})
		done <- dialled{conn, err}
	}()
	m := s.next()
	if m == nil || m.Call == nil || m.Call.Kind != "vnc" || m.Call.Guest != r.Image {
		t.Fatalf("the host is sent %+v", m)
	}
	if _, _, status := other.answer(m.Call.ID); status != 404 {
		t.Errorf("another host's answer to the call is answered %d", status)
	}
	if _, _, status := p.answer("nonsense"); status != 404 {
		t.Errorf("an answer to no call is answered %d", status)
	}
	theirs, in, status := p.answer(m.Call.ID)
	if status != 101 {
		t.Fatalf("the host's answer is answered %d", status)
	}
	ours := <-done
	if ours.err != nil {
		t.Fatal(ours.err)
	}
	fmt.Fprintln(ours.conn, "ping")
	if line, err := in.ReadString('\n'); line != "ping\n" {
		t.Errorf("%q, %v", line, err)
	}
	fmt.Fprintln(theirs, "pong")
	if line, err := bufio.NewReader(ours.conn).ReadString('\n'); line != "pong\n" {
		t.Errorf("%q, %v", line, err)
	}
	ours.conn.Close()
	if _, err := in.ReadByte(); err == nil {
		t.Error("the host does not see the end")
	}
	if _, _, status := p.answer(m.Call.ID); status != 404 {
		t.Errorf("the same call answered twice is answered %d", status)
	}
}

// Whoever waited may give up at any moment: no connection is left over.
func TestLateAnswersAreClosed(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	s.delivery()
	taken, late := 0, 0
	for n := range 60 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan net.Conn)
		go func() {
			conn, _ := r.server.Dial(ctx, p.id, host.Call{Kind: "vnc"})
			done <- conn
		}()
		m := s.next()
		if m == nil || m.Call == nil {
			t.Fatalf("the host is sent %+v", m)
		}
		time.AfterFunc(time.Duration(n)*100*time.Microsecond, cancel)
		conn, in, status := p.answer(m.Call.ID)
		if ours := <-done; ours != nil {
			taken++
			ours.Close()
		} else {
			late++
		}
		if status == 404 { // refused: an ordinary connection
			continue
		}
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		var timeout net.Error
		if _, err := io.Copy(io.Discard, in); errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatal("a connection that nobody waits for stays open")
		}
		conn.Close()
		cancel()
	}
	r.server.calls.mu.Lock()
	defer r.server.calls.mu.Unlock()
	if n := len(r.server.calls.waiting); n != 0 {
		t.Errorf("%d calls are still waited for", n)
	}
	if taken == 0 || late == 0 {
		t.Logf("only one of both happened: %d taken, %d late", taken, late)
	}
}

// The answer arrives after whoever waited has gone, and before the call was forgotten.
func TestAnswerToWhoHasJustGone(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	gone := &waiting{host: p.id, conn: make(chan net.Conn, 1), over: true}
	r.server.calls.mu.Lock()
	r.server.calls.waiting["late"] = gone
	r.server.calls.mu.Unlock()
	conn, in, _ := p.answer("late")
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("the connection ends with %v", err)
	}
	if len(gone.conn) != 0 {
		t.Error("it was handed to nobody")
	}
}
