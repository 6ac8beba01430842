package hostlink

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// A lapse is a host's certificate that was made at a time, and its key.
type lapse struct {
	key *ecdsa.PrivateKey
	der []byte
}

func (r *rig) lapse(a *host.Authority, id resource.ID, made time.Time) lapse {
	r.t.Helper()
	key, csr := newKey(r.t)
	der, err := a.SignHost(id, csr, made)
	if err != nil {
		r.t.Fatal(err)
	}
	return lapse{key, der}
}

// renewal asks for the next certificate, with a key for it.
func (l lapse) renewal(t *testing.T) (host.RenewRequest, *ecdsa.PrivateKey) {
	t.Helper()
	key, csr := newKey(t)
	proof, err := host.Prove(l.key, csr.Raw)
	if err != nil {
		t.Fatal(err)
	}
	return host.RenewRequest{Request: csr.Raw, Certificate: l.der, Proof: proof}, key
}

// renewed is the peer with its next certificate.
func (p *peer) renewed() *peer {
	p.r.t.Helper()
	key, csr := newKey(p.r.t)
	var answer host.JoinAnswer
	p.r.Must(json.Unmarshal(p.post("renew", host.RenewRequest{Request: csr.Raw}).must(200), &answer))
	next := p.r.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key})
	next.id = p.id
	return next
}

// lose has the controller take a host for lost.
func (r *rig) lose(p *peer, s *stream) {
	r.t.Helper()
	s.body.Close()
	r.Must(host.Lose(r.Admin, r.State, p.id))
	s.ended()
}

const day = 24 * time.Hour

// A host that was off for longer than its certificate was valid comes back, and its guests are told to it.
func TestAHostComesBackAfterItsCertificateHasEnded(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	id := r.Launch(compute.Launch{})[0]
	r.lose(p, s)
	// A year later, so to speak: all that it has was made long ago.
	r.Must(r.State.Update(r.Admin, func(tx *state.Tx) error {
		h, _ := host.Find(tx, p.id)
		h.CertificateEnds = time.Now().AddDate(0, 0, -111)
		return host.Table().Put(tx, h)
	}))
	l := r.lapse(r.authority, p.id, time.Now().AddDate(0, 0, -200))
	old := r.peer(tls.Certificate{Certificate: [][]byte{l.der}, PrivateKey: l.key})
	if a := old.send("POST", "observations", strings.NewReader(`[]`)); a.status != 0 {
		t.Errorf("with the old certificate it is answered %d", a.status)
	}
	q, key := l.renewal(t)
	var answer host.JoinAnswer
	if err := json.Unmarshal(r.peer().post("renew", q).must(200), &answer); err != nil || answer.Host != p.id {
		t.Fatalf("%+v, %v", answer, err)
	}
	back := r.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key})
	if d := back.connect("node-1").delivery(); len(d.Items) != 1 || d.Items[0].ID != id || d.Items[0].Body == nil {
		t.Errorf("it is told %+v", d)
	}
	// The certificate before is worth nothing now, not even that.
	q, _ = l.renewal(t)
	r.peer().post("renew", q).must(401)
}

func TestWhoseLapsedCertificateIsNotRenewed(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	fresh, _ := r.host()
	removed, s := r.host()
	r.lose(removed, s)
	r.Must(r.Compute.DismissHost(r.Admin, removed.id))
	newcomer := r.join()
	for _, id := range []resource.ID{p.id} {
		r.Must(r.State.Update(r.Admin, func(tx *state.Tx) error {
			h, _ := host.Find(tx, id)
			h.CertificateEnds = time.Time{}
			return host.Table().Put(tx, h)
		}))
	}
	other := newRig(t)
	ago := func(days int) time.Time { return time.Now().AddDate(0, 0, -days) }
	server, err := r.authority.ControllerCertificate(ago(400), p.id.String())
	if err != nil {
		t.Fatal(err)
	}
	valid := func(l lapse) host.RenewRequest { q, _ := l.renewal(t); return q }
	good := r.lapse(r.authority, p.id, ago(100))
	for name, test := range map[string]struct {
		q      host.RenewRequest
		status int
	}{
		"sound":                          {valid(good), 200},
		"ended nearly a year ago":        {valid(r.lapse(r.authority, p.id, ago(90+364))), 200},
		"ended long ago":                 {valid(r.lapse(r.authority, p.id, ago(90+367))), 401},
		"older than one that was seen":   {valid(r.lapse(r.authority, fresh.id, ago(100))), 401},
		"of a host that was removed":     {valid(r.lapse(r.authority, removed.id, ago(100))), 401},
		"of a machine that did not come": {valid(r.lapse(r.authority, newcomer.id, ago(100))), 401},
		"of nobody":                      {valid(r.lapse(r.authority, resource.NewID(time.Now(), nil), ago(100))), 401},
		"of another cloud":               {valid(r.lapse(other.authority, p.id, ago(100))), 401},
		"a controller's":                 {valid(lapse{server.PrivateKey.(*ecdsa.PrivateKey), server.Certificate[0]}), 401},
		"not yet valid":                  {valid(r.lapse(r.authority, p.id, ago(-100))), 401},
		"no certificate":                 {host.RenewRequest{Request: good.der, Certificate: []byte("x")}, 400},
		"none":                           {host.RenewRequest{}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			if got := r.peer().post("renew", test.q); got.status != test.status {
				t.Errorf("the answer is %d %s, %v", got.status, got.body, got.err)
			}
		})
	}
	// Who has the certificate and not its key, or a proof for another request.
	q, thief := valid(good), r.lapse(r.authority, p.id, ago(100))
	stolen := valid(thief)
	stolen.Certificate = good.der
	swapped := q
	swapped.Request = stolen.Request
	for name, q := range map[string]host.RenewRequest{"another's key": stolen, "another request": swapped, "no proof": {Request: q.Request, Certificate: q.Certificate}} {
		if got := r.peer().post("renew", q); got.status != 401 {
			t.Errorf("with %s the answer is %d %s", name, got.status, got.body)
		}
	}
}

// The controllers know until when a host's certificate is valid, so that somebody is told when it is not renewed.
func TestCertificatesThatEnd(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	key, csr := newKey(t)
	der, err := r.authority.SignHost(p.id, csr, time.Now().AddDate(0, 0, -80))
	if err != nil {
		t.Fatal(err)
	}
	late := r.peer(tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	late.connect("node-1").delivery()
	ending := func(within time.Duration) int {
		return len(host.CertificatesEnding(r.State.Latest(), time.Now().Add(within)))
	}
	if ending(9*day) != 0 || ending(11*day) != 1 {
		t.Errorf("%d end within nine days, and %d within eleven", ending(9*day), ending(11*day))
	}
	next := r.signed(r.authority, p.id, time.Now())
	next.connect("node-1").delivery()
	if ending(85*day) != 0 {
		t.Error("it was renewed, and ends all the same")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	before := r.State.Latest().Revision()
	next.connect("node-1").delivery() // the same again is no news
	if h, _ := host.Find(r.State.Latest(), p.id); r.State.Latest().Revision() != before || !h.CertificateEnds.After(cert.NotAfter) {
		t.Errorf("known is that it ends at %v", h.CertificateEnds)
	}
}

// A machine that was set up anew, with its guests' disks, joins as the host that it was.
func TestAMachineJoinsAsTheHostItWas(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	id := r.Launch(compute.Launch{})[0]
	as := func() (string, error) { return r.authority.TokenAs(r.Admin, time.Hour, p.id) }
	if _, err := as(); !fault.Is(err, fault.Conflict) {
		t.Errorf("as a host that can be heard: %v", err)
	}
	if _, err := r.authority.TokenAs(r.Admin, time.Hour, resource.NewID(time.Now(), nil)); !fault.Is(err, fault.NotFound) {
		t.Errorf("as nobody: %v", err)
	}
	r.lose(p, s)
	token, err := as()
	r.Must(err)
	join := func(token string, status int) (*peer, host.JoinAnswer) {
		t.Helper()
		key, csr := newKey(t)
		var answer host.JoinAnswer
		text := r.peer().post("join", host.JoinRequest{Token: token, Request: csr.Raw}).must(status)
		if status == http.StatusOK {
			r.Must(json.Unmarshal(text, &answer))
		}
		return r.peer(tls.Certificate{Certificate: [][]byte{answer.Certificate}, PrivateKey: key}), answer
	}
	again := p.connect("node-1") // it was not gone
	join(token, http.StatusConflict)
	r.lose(p, again)
	_, csr := newKey(t)
	next := p.renewed() // in the same second, or by a controller whose clock is ahead: it is of the old machine still
	anew, answer := join(token, http.StatusOK)
	if answer.Host != p.id {
		t.Fatalf("it is host %s", answer.Host)
	}
	join(token, http.StatusUnauthorized) // once
	// The certificate before is worth nothing: there are not two machines that are this host.
	p.send("POST", "observations", strings.NewReader(`[]`)).must(401)
	next.send("POST", "observations", strings.NewReader(`[]`)).must(401)
	next.post("renew", host.RenewRequest{Request: csr.Raw}).must(401)
	if d := anew.connect("another name").delivery(); len(d.Items) != 1 || d.Items[0].ID != id || d.Items[0].Body == nil {
		t.Errorf("it is told %+v", d)
	}
	if h, ok := host.ByName(r.State.Latest(), "node-1"); !ok || h.ID != p.id || !h.Up() {
		t.Error("the host is not what it was")
	}
	p.send("POST", "session", strings.NewReader(`{"Name":"node-1"}`)).must(401)
	if host.Newcomers().Len(r.State.Latest()) != 0 || host.Table().Len(r.State.Latest()) != 1 {
		t.Error("another host is there")
	}
}

// A machine that has joined and never says hello can be seen, and taken out, and goes by itself.
func TestWhoJoinsAndDoesNotCome(t *testing.T) {
	r := newRig(t)
	seen := func() int { return host.Newcomers().Len(r.State.Latest()) }
	_, csr := newKey(t)
	renew := host.RenewRequest{Request: csr.Raw}
	p, silent, came := r.join(), r.join(), r.join()
	came.connect("came").delivery()
	if seen() != 2 {
		t.Fatalf("%d machines are seen to have joined", seen())
	}
	p.post("renew", renew).must(200)
	if err := r.Compute.DismissHost(r.Ctx, p.id); err == nil || seen() != 2 {
		t.Errorf("a tenant takes it out: %v", err)
	}
	r.Must(r.Compute.DismissHost(r.Admin, p.id))
	p.post("renew", renew).must(401)
	p.send("POST", "session", strings.NewReader(`{"Name":"late"}`)).must(401)
	if err := r.Compute.DismissHost(r.Admin, p.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("once more: %v", err)
	}
	task := host.Forget(r.State, r.State.Now)[0]
	step := func() {
		t.Helper()
		for _, id := range task.All(r.State.Latest()) {
			next, err := task.Step(r.Admin, id)
			if r.Must(err); seen() > 0 && (next.After <= 0 || next.After > day) {
				t.Errorf("it is looked at again after %v", next.After)
			}
		}
	}
	r.Clock = r.Clock.Add(day - time.Minute)
	if step(); seen() != 1 {
		t.Error("it went before its day was over")
	}
	silent.post("renew", renew).must(200)
	r.Clock = r.Clock.Add(2 * time.Minute)
	silent.send("POST", "session", strings.NewReader(`{"Name":"late"}`)).must(401) // whether or not anybody has looked
	if step(); seen() != 0 {
		t.Error("it is there for ever")
	}
	if _, ok := host.ByName(r.State.Latest(), "came"); !ok {
		t.Error("the one that came has gone, too")
	}
}

// What a host says of itself is shown to operators and tenants, handed to programs, and counted with.
func TestWhatAHostMayNotSayOfItself(t *testing.T) {
	r := newRig(t)
	sound := host.Hello{Name: "node-1.example.org", Zone: "rack 1", Version: "v1", Physical: []string{"public"},
		Capacity: host.Capacity{Driver: "sim", VCPUs: 4, MaxVCPUs: 4, MemoryMiB: 4096, DiskGiB: 10, CPUModel: "Intel(R) Xeon® @ 2.4GHz"}}
	long := strings.Repeat("x", 300)
	for name, change := range map[string]func(*host.Hello){
		"no name":                    func(h *host.Hello) { h.Name = "" },
		"a dot":                      func(h *host.Hello) { h.Name = "." },
		"two dots":                   func(h *host.Hello) { h.Name = ".." },
		"a label that is empty":      func(h *host.Hello) { h.Name = "a..b" },
		"a name that is an option":   func(h *host.Hello) { h.Name = "-rf" },
		"a name of a terminal's":     func(h *host.Hello) { h.Name = "\x1b[2J\n" },
		"a name with a line's end":   func(h *host.Hello) { h.Name = "node\n" },
		"a name with a slash":        func(h *host.Hello) { h.Name = "a/b" },
		"a long label":               func(h *host.Hello) { h.Name = strings.Repeat("a", 64) },
		"a long name":                func(h *host.Hello) { h.Name = strings.Repeat("a.", 126) + "ab" },
		"a name in another script":   func(h *host.Hello) { h.Name = "nоde" },
		"a long zone":                func(h *host.Hello) { h.Zone = long },
		"a zone with a colon":        func(h *host.Hello) { h.Zone = "a:b" },
		"less than no processors":    func(h *host.Hello) { h.Capacity.VCPUs = -5 },
		"too many processors":        func(h *host.Hello) { h.Capacity.VCPUs = 1 << 40 },
		"less than none for a guest": func(h *host.Hello) { h.Capacity.MaxVCPUs = -1 },
		"less than no memory":        func(h *host.Hello) { h.Capacity.MemoryMiB = -1 },
		"all memory":                 func(h *host.Hello) { h.Capacity.MemoryMiB = 1 << 62 },
		"less than no disk":          func(h *host.Hello) { h.Capacity.DiskGiB = -1 },
		"all disks":                  func(h *host.Hello) { h.Capacity.DiskGiB = 1 << 62 },
		"less than no wire":          func(h *host.Hello) { h.Capacity.WireMbps = -1 },
		"a long version":             func(h *host.Hello) { h.Version = long },
		"a driver with an escape":    func(h *host.Hello) { h.Capacity.Driver = "sim\x1b[2J" },
		"a processor of two lines":   func(h *host.Hello) { h.Capacity.CPUModel = "a\nb" },
		"a long storage":             func(h *host.Hello) { h.Capacity.Storage = long },
		"a network with a long name": func(h *host.Hello) { h.Physical = []string{long} },
		"many networks":              func(h *host.Hello) { h.Physical = make([]string, 1000) },
		"a network turned about":     func(h *host.Hello) { h.Physical = []string{"\u202epublic"} },
	} {
		t.Run(name, func(t *testing.T) {
			hello, before := sound, r.State.Latest().Revision()
			change(&hello)
			p := r.signed(r.authority, r.join().id, time.Now())
			if text := string(p.post("session", hello).must(400)); strings.ContainsAny(strings.TrimSpace(text), "\x1b\n\u202e") || len(text) > 1000 {
				t.Errorf("it is told %q", text)
			}
			if host.Table().Len(r.State.Latest()) != 0 || r.State.Latest().Revision() > before+3 { // the token's, its use, and why it is no host
				t.Error("something was written")
			}
			if n, ok := host.Newcomers().PeekOne(r.State.Latest(), p.id); !ok || n.Refused.Why == "" || strings.ContainsAny(n.Name+n.Refused.Why, "\x1b\n\u202e") || len(n.Refused.Why) > 1000 {
				t.Errorf("operators are told %+v", n)
			}
		})
	}
	for _, name := range []string{"node-1.example.org", "Node_2", "3", "a", strings.Repeat("a", 63), "sim-0001"} {
		if err := host.CheckNew(name, "nova"); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// One host cannot fill the state, whatever it says that it holds.
func TestAHostFillsNothing(t *testing.T) {
	r := newRig(t)
	p, _ := r.host()
	other, _ := r.host()
	now := time.Now()
	held := func(n int, until time.Time) (seen []host.Observation) {
		for range n {
			seen = append(seen, report(resource.NewID(time.Now(), nil), host.HeldReport{Held: &host.Holding{Since: now, Until: until}}))
		}
		return seen
	}
	first := held(host.MaxHeld, now.Add(7*day))
	p.post("observations", first).must(204)
	p.post("observations", held(3000, now.Add(7*day))).must(204)
	if n := host.Held(r.State.Latest(), p.id); n != host.MaxHeld || host.Leftovers().Len(r.State.Latest()) != n {
		t.Errorf("account is kept of %d things", n)
	}
	other.post("observations", held(1, time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("", -20*3600)))).must(204) // another host has room of its own, and times that can be stored
	if n := host.Held(r.State.Latest(), other.id); n != 1 {
		t.Errorf("of another's it is kept of %d", n)
	}
	// What has gone makes room.
	p.post("observations", []host.Observation{report(first[0].ID, compute.Seen{Gone: true})}).must(204)
	p.post("observations", held(2, now.Add(day))).must(204)
	if n := host.Held(r.State.Latest(), p.id); n != host.MaxHeld {
		t.Errorf("account is kept of %d things after one has gone", n)
	}
	// Orders are the control plane's own: they always find room.
	r.Must(r.State.Update(r.Admin, func(tx *state.Tx) error { return host.Discard(tx, p.id, "guest", resource.NewID(now, nil)) }))
	if n := host.Leftovers().Len(r.State.Latest()); n != host.MaxHeld+2 {
		t.Errorf("there are %d", n)
	}
	// Nor by what it says of what it is to have.
	id := r.Launch(compute.Launch{})[0]
	on := p
	if r.Server(id).HostID == other.id {
		on = other
	}
	before := r.State.Latest().Revision()
	on.post("observations", []host.Observation{report(id, compute.Seen{Observation: compute.Observation{Power: compute.Crashed, Trouble: strings.Repeat("x", 1<<20)}, Wish: r.Server(id).Wish})}).must(204)
	if r.State.Latest().Revision() != before {
		t.Error("a report of a megabyte is taken in")
	}
}

// TestWhyAHostIsNotUpIsKnown: also of one whose release is too far, and then no more.
func TestWhyAHostIsNotUpIsKnown(t *testing.T) {
	r := newRig(t)
	p, s := r.host()
	s.delivery()
	why := func() string {
		t.Helper()
		h, ok := host.Find(r.State.Latest(), p.id)
		if !ok {
			t.Fatal("it is no host")
		}
		return h.Refused.Why
	}
	p.post("session", host.Hello{Name: "node-1", Speaks: release.Span{Oldest: 98, Newest: 99}}).must(409)
	if !strings.Contains(why(), "98 to 99") {
		t.Errorf("operators are told %q", why())
	}
	p.connect("node-1")
	if why() != "" {
		t.Errorf("when it is in: %q", why())
	}
}
