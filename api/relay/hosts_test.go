package relay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// TestHostsOfOthers: what a controller that follows asks about its hosts is done by the one that leads, and refused in its words.
func TestHostsOfOthers(t *testing.T) {
	p := newPair(t)
	p.server.Hub = host.NewHub(p.leads)
	var called host.Call
	p.server.Call = func(_ context.Context, _ resource.ID, call host.Call) error { called = call; return nil }
	p.server.Health = func(context.Context) Health {
		return Health{Revision: p.leads.Latest().Revision(), Leads: p.leads.Leads(), Hosts: 7}
	}
	h := &Hosts{Transport: p.front.Transport, Leader: p.front.Leader, Own: "https://follower"}
	ctx := t.Context()

	token, err := p.authority.Token(identity.Internal(ctx), time.Hour, host.ForHosts)
	if err != nil {
		t.Fatal(err)
	}
	_, request := hostRequest(t)
	answer, err := h.Join(ctx, host.JoinRequest{Token: token, Request: request})
	if err != nil || answer.Host.IsZero() {
		t.Fatalf("%+v, %v", answer, err)
	}
	if _, err := h.Join(ctx, host.JoinRequest{Token: token, Request: request}); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a used token: %v", err)
	}
	if err := h.Arrive(ctx, answer.Host, host.Hello{Name: "one"}); err != nil {
		t.Error(err)
	}
	if _, ok := host.Find(p.leads.Latest(), answer.Host); !ok {
		t.Error("it has not arrived")
	}
	stranger := resource.NewID(time.Now(), nil)
	if err := h.Arrive(ctx, stranger, host.Hello{Name: "two"}); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a stranger: %v", err)
	}
	if err := h.Observe(ctx, answer.Host, []host.Observation{}); err != nil {
		t.Error(err)
	}
	if err := h.Observe(ctx, stranger, []host.Observation{}); !fault.Is(err, fault.NotFound) {
		t.Errorf("a stranger's report: %v", err)
	}
	if h.Told() {
		t.Error("it is said to be known before it was said")
	}
	if err := h.Report(ctx, []host.Sighting{{Host: answer.Host, Session: true}}); err != nil {
		t.Error(err)
	}
	if !h.Told() {
		t.Error("it was said, and is not said to be known")
	}
	if got := p.server.Hub.Elsewhere(answer.Host); len(got) != 1 || got[0] != "https://follower" {
		t.Errorf("it is heard by %v", got)
	}
	if err := h.Call(ctx, p.web.URL, answer.Host, host.Call{ID: "c", At: "https://here"}); err != nil || called.At != "https://here" {
		t.Errorf("%+v, %v", called, err)
	}
	if got, err := Ask(ctx, h.Transport, p.web.URL); err != nil || got.Hosts != 7 || !got.Leads {
		t.Errorf("%+v, %v", got, err)
	}
	p.leads.Resign()
	if err := h.Observe(ctx, answer.Host, []host.Observation{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a report to who does not lead: %v", err)
	}
	h.Leader = func() (string, bool) { return "", false }
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if err := h.Observe(short, answer.Host, nil); err == nil {
		t.Error("a report to nobody")
	}
}

// TestDismissed: the certificates of a controller that was dismissed open nothing at once, also on a connection that is open.
func TestDismissed(t *testing.T) {
	p := newPair(t)
	p.server.Hub = host.NewHub(p.leads)
	p.server.Health = func(context.Context) Health { return Health{} }
	token, err := p.authority.Token(identity.Internal(t.Context()), time.Hour, host.ForControllers)
	if err != nil {
		t.Fatal(err)
	}
	key, request := hostRequest(t)
	der, err := p.authority.JoinController(identity.Internal(t.Context()), token, request, time.Now(), "gone", "https://gone:8703", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	transport := p.transport(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	is := host.Controller{Link: "https://gone:8702"}
	is.Name = "gone"
	if err := Post(t.Context(), transport, p.web.URL, "present", is, nil); err != nil {
		t.Fatal(err)
	}
	before, err := p.authority.RevocationList(p.leads.Latest(), nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Dismiss(identity.Internal(t.Context()), p.leads, "gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := Ask(t.Context(), transport, p.web.URL); !fault.Is(err, fault.Unauthorized) || !strings.Contains(err.Error(), "dismissed") {
		t.Errorf("who was dismissed is answered %v", err)
	}
	if err := Post(t.Context(), transport, p.web.URL, "present", is, nil); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("who was dismissed presents itself: %v", err)
	}
	list, err := p.authority.RevocationList(p.leads.Latest(), before, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := p.authority.RevocationList(p.leads.Latest(), list, time.Now()); err != nil || string(again) != string(list) {
		t.Errorf("the same list is made anew: %v", err)
	}
	read, err := x509.ParseRevocationList(list)
	if err != nil || len(read.RevokedCertificateEntries) != 1 || read.RevokedCertificateEntries[0].SerialNumber.Cmp(cert.SerialNumber) != 0 {
		t.Errorf("%+v, %v", read, err)
	}
}

// TestNothingIsSentTwice: a transport sends a GET again by itself when a connection that it kept ends instead of an answer. EC2's may
// have been done.
func TestNothingIsSentTwice(t *testing.T) {
	p := newPair(t)
	if got := p.ask("GET", "/ec2?Action=One", ""); got.Code != 200 {
		t.Fatal(got.Code)
	}
	p.clients = func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack() // the connection ends, and says nothing
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	}
	if got := p.ask("GET", "/ec2?Action=Two", ""); got.Code != 503 || p.asked.Load() != 2 {
		t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
	}
}

// TestOperatorsHaveNoKeys: what an operator asks is not repeated for a key, which nothing behind the front remembers.
func TestOperatorsHaveNoKeys(t *testing.T) {
	p := newPair(t)
	p.front.Operators = true
	p.server.Operators = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { p.asked.Add(1); panic(http.ErrAbortHandler) })
	if got := p.ask("POST", "/alert-targets", "{}", wire.OnceHeader, "k"); got.Code != 503 || p.asked.Load() != 1 {
		t.Errorf("%d %s, asked %d times", got.Code, got.Body, p.asked.Load())
	}
}

// TestSlowBodies: nobody holds a connection by sending a request's body for ever.
func TestSlowBodies(t *testing.T) {
	p := newPair(t)
	done := make(chan error, 1)
	p.web.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := wire.BodyWithin(w, r, 1000, 50*time.Millisecond)
		done <- err
	})
	conn, err := tls.Dial("tcp", p.web.Listener.Addr().String(), &tls.Config{RootCAs: p.authority.Pool()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /controller/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nslow"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !fault.Is(err, fault.Invalid) {
		t.Errorf("a body that does not come: %v", err)
	}
}
