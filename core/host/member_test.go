package host

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// gate is where machines join.
type gate struct {
	*Authority
	t      *testing.T
	engine *state.Memory
	fails  string // the step at which the next commit does
	clock  time.Time
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{t: t, engine: state.NewMemory(0), clock: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
	g.engine.Fault = func(step string) error {
		if step != g.fails {
			return nil
		}
		g.fails = ""
		return fault.Errorf(fault.Unavailable, "crash")
	}
	g.open()
	return g
}

// open is a new controller on the same engine.
func (g *gate) open() {
	g.t.Helper()
	s, err := state.Open(g.t.Context(), g.engine, state.Options{Now: func() time.Time { return g.clock }})
	g.must(err)
	g.Authority, err = OpenAuthority(g.t.Context(), s, g.clock)
	g.must(err)
}

func (g *gate) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// sound makes sure that the auditor finds nothing.
func (g *gate) sound() {
	g.t.Helper()
	if wrong := append(Audit(g.State.Latest()), state.Verify(g.State.Latest())...); len(wrong) > 0 {
		g.t.Error(wrong)
	}
}

func (g *gate) csr() (*ecdsa.PrivateKey, []byte) {
	g.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	g.must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	g.must(err)
	return key, csr
}

func (g *gate) join(token string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	g.t.Helper()
	key, csr := g.csr()
	answer, err := g.Join(g.t.Context(), JoinRequest{Token: token, Request: csr}, g.clock)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(answer.Certificate)
	g.must(err)
	return cert, key, nil
}

// host is a machine that has joined and come.
func (g *gate) host() (*x509.Certificate, *ecdsa.PrivateKey, resource.ID) {
	g.t.Helper()
	token, err := g.Token(g.t.Context(), time.Hour, ForHosts)
	g.must(err)
	cert, key, err := g.join(token)
	g.must(err)
	g.must(g.arrive(cert))
	id, err := HostOf(cert)
	g.must(err)
	return cert, key, id
}

func (g *gate) arrive(cert *x509.Certificate) error {
	id, err := g.Check(cert, g.clock)
	if err != nil {
		return err
	}
	return g.Arrive(g.t.Context(), id, Hello{Speaks: release.Own, Name: "node-1", CertificateEnds: cert.NotAfter})
}

func (g *gate) lose(id resource.ID) {
	g.t.Helper()
	g.must(Lose(g.t.Context(), g.State, id))
}

// A controller that leads ends just before, or just after, it has written that a machine has joined: the token was used or it was not,
// and with it, or with the next one, the machine comes in.
func TestJoinWhoseAnswerIsLost(t *testing.T) {
	for step, used := range map[string]bool{"before": false, "after": true} {
		for name, again := range map[string]bool{"as a new host": false, "as the host it was": true} {
			t.Run(name+", "+step+" the commit", func(t *testing.T) {
				g := newGate(t)
				old, _, id := g.host()
				g.lose(id)
				admin := identity.Internal(t.Context())
				token := func() string {
					t.Helper()
					text, err := g.TokenAs(admin, time.Hour, id)
					if !again {
						text, err = g.Token(admin, time.Hour, ForHosts)
					}
					g.must(err)
					return text
				}
				first := token()
				g.fails = step
				if _, _, err := g.join(first); err == nil || g.fails != "" {
					t.Fatalf("the fault was not reached: %v", err)
				}
				g.open()
				g.sound()
				cert, _, err := g.join(first)
				if used {
					if !fault.Is(err, fault.Unauthorized) {
						t.Fatalf("a token is used twice: %v", err)
					}
					cert, _, err = g.join(token())
				}
				g.must(err)
				if _, _, err := g.join(first); !fault.Is(err, fault.Unauthorized) {
					t.Errorf("a token is used twice: %v", err)
				}
				g.sound()
				joined, err := g.Check(cert, g.clock)
				g.must(err)
				if (joined == id) != again {
					t.Errorf("it is host %s", joined)
				}
				if _, err := g.Check(old, g.clock); (err == nil) == again {
					t.Errorf("the machine before: %v", err)
				}
				if again {
					g.must(g.arrive(cert))
				}
				g.sound()
				g.clock = g.clock.Add(25 * time.Hour)
				for _, task := range Forget(g.State, g.State.Now) {
					for _, id := range task.All(g.State.Latest()) {
						_, err := task.Step(admin, id)
						g.must(err)
					}
				}
				g.sound()
				if n := newcomers.Len(g.State.Latest()) + joinTokens.Len(g.State.Latest()); n > 0 {
					t.Errorf("%d of them are left", n)
				}
			})
		}
	}
}

// A machine that was off for too long gets its next certificate, and ends before it has written it down: it gets another one, for as
// long as it has not come with one.
func TestLapsedRenewalThatIsNotKept(t *testing.T) {
	g := newGate(t)
	cert, key, id := g.host()
	g.lose(id)
	g.clock = cert.NotAfter.Add(time.Hour)
	lapsed := func(next []byte) ([]byte, error) {
		proof, err := Prove(key, next)
		g.must(err)
		_, der, err := g.RenewLapsed(RenewRequest{Request: next, Certificate: cert.Raw, Proof: proof}, g.clock)
		return der, err
	}
	var kept *x509.Certificate
	for range 3 {
		_, csr := g.csr()
		before := g.State.Latest().Revision()
		der, err := lapsed(csr)
		g.must(err)
		if g.State.Latest().Revision() != before {
			t.Error("it is written down before the machine has it")
		}
		kept, err = x509.ParseCertificate(der)
		g.must(err)
		g.open() // whichever controller answers
		g.clock = g.clock.Add(time.Minute)
	}
	g.must(g.arrive(kept))
	g.sound()
	_, csr := g.csr()
	if _, err := lapsed(csr); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("the machine has come with a newer one, and the one before makes another: %v", err)
	}
}

// What is to be used for a host goes with it, and what nobody used in time goes by itself.
func TestTokensEnd(t *testing.T) {
	g := newGate(t)
	_, _, id := g.host()
	g.lose(id)
	admin := identity.Internal(t.Context())
	_, err := g.TokenAs(admin, time.Hour, id)
	g.must(err)
	g.must(g.State.Update(admin, func(tx *state.Tx) error { return Remove(tx, id) }))
	g.sound()
	if n := joinTokens.Len(g.State.Latest()); n > 0 {
		t.Errorf("%d tokens are for a host that is gone", n)
	}
	_, err = g.Token(admin, time.Hour, "")
	g.must(err)
	var work *reconcile.Reconciler
	for range 3 {
		work = reconcile.New(g.State, g.clock, Forget(g.State, g.State.Now)...)
		g.must(work.Pump(g.clock))
		for work.Do(admin, g.State.Now) {
		}
		g.clock = g.clock.Add(45 * time.Minute)
	}
	g.sound()
	if n := joinTokens.Len(g.State.Latest()); n > 0 {
		t.Errorf("%d tokens are there for ever", n)
	}
}

// The auditor finds what is wrong with tokens.
func TestAuditOfTokens(t *testing.T) {
	for what, change := range map[string]func(*joinToken){
		"has no end":             func(t *joinToken) { t.Expires = time.Time{} },
		"nobody's to show":       func(t *joinToken) { t.Hash = nil },
		"worth nothing any more": func(t *joinToken) { t.Expires = t.Expires.Add(-2 * time.Hour) },
		"which is not there":     func(t *joinToken) { t.As, t.Only = resource.ID{1}, ForHosts },
	} {
		g := newGate(t)
		_, err := g.Token(t.Context(), time.Hour, "")
		g.must(err)
		g.sound()
		g.must(g.State.Update(t.Context(), func(tx *state.Tx) error {
			for token := range joinTokens.Each(tx, "expires", "") {
				change(token)
				return joinTokens.Put(tx, token)
			}
			return nil
		}))
		if wrong := Audit(g.State.Latest()); len(wrong) != 1 || !strings.Contains(wrong[0], what) {
			t.Errorf("%s: it finds %v", what, wrong)
		}
	}
}

// TestWhoWouldBeRefusedIsToldAtTheJoin: before the token is used up, and before anything is written.
func TestWhoWouldBeRefusedIsToldAtTheJoin(t *testing.T) {
	g := newGate(t)
	admin := identity.Internal(t.Context())
	comes := func(name, address string) Hello {
		h := Hello{Name: name, Capacity: Capacity{Driver: "qemu"}}
		if address != "" {
			h.Address = netip.MustParseAddr(address)
		}
		return h
	}
	g.must(Arrive(admin, g.State, resource.NewID(g.clock, nil), comes("a", "192.0.2.1")))
	g.clock = g.clock.Add(time.Second)
	token, err := g.Token(admin, time.Hour, ForHosts)
	g.must(err)
	_, csr := g.csr()
	join := func(token string, says Hello) error {
		t.Helper()
		answer, err := g.Join(admin, JoinRequest{Token: token, Request: csr, Says: &says}, g.clock)
		if err == nil && newcomers.Len(g.State.Latest()) != 1 {
			t.Errorf("%d have joined", newcomers.Len(g.State.Latest()))
		}
		if n, ok := newcomers.PeekOne(g.State.Latest(), answer.Host); err == nil && (!ok || n.Name != says.Name) {
			t.Errorf("it is known as %+v", n)
		}
		return err
	}
	before := g.State.Latest().Revision()
	for what, c := range map[string]struct {
		says Hello
		kind fault.Kind
		word string
	}{
		"an address that is taken":   {comes("b", "192.0.2.1"), fault.Conflict, "so does host a"},
		"the same, spelled as IPv6":  {comes("b", "::ffff:192.0.2.1"), fault.Conflict, "so does host a"},
		"another family":             {comes("b", "2001:db8::2"), fault.Conflict, "IPv4"},
		"no address":                 {comes("b", ""), fault.Conflict, "no address"},
		"an address of nobody's":     {comes("b", "127.0.0.1"), fault.Invalid, "127.0.0.1"},
		"a name that is taken":       {comes("a", "192.0.2.2"), fault.Exists, "named a"},
		"a name that is none":        {comes("a b", "192.0.2.2"), fault.Invalid, "--name"},
		"a wire that there is not":   {Hello{Name: "b", MTU: -1}, fault.Invalid, "-1 bytes"},
		"a mark of a later state":    {Hello{Name: "b", Address: netip.MustParseAddr("192.0.2.1"), Mark: Mark{Era: 9}}, fault.Conflict, "so does host a"},
		"a release that is unlikely": {Hello{Name: "b", Version: strings.Repeat("x", 300)}, fault.Invalid, "300 characters"},
	} {
		if err := join(token, c.says); !fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.word) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := join("unknown.00", comes("b", "192.0.2.1")); !fault.Is(err, fault.Unauthorized) || strings.Contains(err.Error(), "192.0.2.1") {
		t.Errorf("one that has no token: %v", err)
	}
	if now := g.State.Latest().Revision(); now != before || newcomers.Len(g.State.Latest()) != 0 {
		t.Errorf("something was written: %d, then %d", before, now)
	}
	g.must(join(token, comes("b", "192.0.2.2")))
	if hosts.Len(g.State.Latest()) != 1 {
		t.Error("it is a host before it has come")
	}
	if err := join(token, comes("c", "192.0.2.3")); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("a used token: %v", err)
	}
	g.sound()
}

// TestAMachineJoinsAsTheHostThatItWasWhateverItsAddress: its guests wait for it, and who is in is not shut out.
func TestAMachineJoinsAsTheHostThatItWasWhateverItsAddress(t *testing.T) {
	g := newGate(t)
	_, _, id := g.host()
	admin := identity.Internal(t.Context())
	g.must(Arrive(admin, g.State, resource.NewID(g.clock, nil), Hello{Name: "a", Address: netip.MustParseAddr("192.0.2.1")}))
	g.lose(id)
	token, err := g.TokenAs(admin, time.Hour, id)
	g.must(err)
	_, csr := g.csr()
	_, err = g.Join(admin, JoinRequest{Token: token, Request: csr, Says: &Hello{Name: "node-1", Address: netip.MustParseAddr("192.0.2.1")}}, g.clock)
	g.must(err)
}

// TestWhyAMachineWasRefused is known as long as it is so, and is written once.
func TestWhyAMachineWasRefused(t *testing.T) {
	g := newGate(t)
	admin := identity.Internal(t.Context())
	g.must(Arrive(admin, g.State, resource.NewID(g.clock, nil), Hello{Name: "a", Address: netip.MustParseAddr("192.0.2.1")}))
	g.clock = g.clock.Add(time.Second)
	token, err := g.Token(admin, time.Hour, ForHosts)
	g.must(err)
	cert, _, err := g.join(token)
	g.must(err)
	id, err := HostOf(cert)
	g.must(err)
	comes := func(address string) error {
		return g.Arrive(admin, id, Hello{Name: "b", Address: netip.MustParseAddr(address)})
	}
	known := func(word string) {
		t.Helper()
		r := refusalOf(g.State.Latest(), id)
		if (r.Why == "") != (word == "") || r.Since.IsZero() != (word == "") || !strings.Contains(r.Why, word) {
			t.Errorf("known is %+v, not %q", r, word)
		}
		g.sound()
	}
	known("")
	if err := comes("192.0.2.1"); !fault.Is(err, fault.Conflict) {
		t.Fatal(err)
	}
	known("so does host a")
	if n, _ := newcomers.PeekOne(g.State.Latest(), id); n.Name != "b" {
		t.Errorf("it is called %q", n.Name)
	}
	before := g.State.Latest().Revision()
	if err := comes("192.0.2.1"); !fault.Is(err, fault.Conflict) || g.State.Latest().Revision() != before {
		t.Errorf("the next time something is written: %v", err)
	}
	_ = comes("2001:db8::2")
	known("IPv4")
	g.must(comes("192.0.2.2"))
	known("")
	if newcomers.Has(g.State.Latest(), id) {
		t.Error("it is new still")
	}
	// One that is in may be refused, too, for what no machine can be, or for its release.
	if err := g.Arrive(admin, id, Hello{Name: "b", MTU: -1}); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	known("-1 bytes")
	says := Hello{Name: "b", Address: netip.MustParseAddr("192.0.2.2")}
	if Expected(g.State.Latest(), id, says) {
		t.Error("a controller that follows would not have it known that it is let in")
	}
	g.must(comes("192.0.2.2"))
	known("")
	// Nor is it kept of one that is no member.
	g.must(g.State.Update(admin, func(tx *state.Tx) error { return Remove(tx, id) }))
	before = g.State.Latest().Revision()
	if err := comes("192.0.2.2"); !fault.Is(err, fault.Unauthorized) || g.State.Latest().Revision() != before {
		t.Errorf("one that was removed: %v", err)
	}
}
