package simulation

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Machines join with tokens and show certificates. Their keys are no choices of a run's: nothing hangs on what is in them.

// A request for a certificate is the same for all machines.
var request = func() []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), key)
	if err != nil {
		panic(err)
	}
	return csr
}()

// A joiner is a machine on its way into the cloud, which is turned away when it has come.
type joiner struct {
	token string // "" for none yet, or one that is worth nothing
	id    resource.ID
	cert  *x509.Certificate // nil: it has not joined, or does not know it
}

// join uses a token. Commits fail, and machines crash, before they know what came of it: then it is asked again.
func (w *world) join(token string) (id resource.ID, cert *x509.Certificate, err error) {
	answer, err := w.control.authority.Join(w.ctx, host.JoinRequest{Token: token, Request: request}, w.clock)
	if err == nil || fault.From(err) != nil && fault.Is(err, fault.Unauthorized) {
		w.spent = append(w.spent, token)
	}
	if err != nil {
		return id, nil, err
	}
	if !w.calm && w.chance(300) {
		w.fault("machine crashed in mid-join")
		return id, nil, fmt.Errorf("simulated: the answer to host %s is lost", answer.Host)
	}
	cert, err = x509.ParseCertificate(answer.Certificate)
	return answer.Host, cert, err
}

// enter has one of the machines that are no hosts yet, and shall be none for long, go on joining.
func (c *client) enter() (string, error) {
	w, a := c.w, c.w.control.authority
	if k := len(w.spent); k > 0 && w.chance(300) {
		token := w.spent[w.rng.IntN(k)]
		if answer, err := a.Join(w.ctx, host.JoinRequest{Token: token, Request: request}, w.clock); err == nil {
			c.broken = fmt.Errorf("a token that was used made host %s", answer.Host)
		} else if !fault.Is(err, fault.Unauthorized) {
			return "join with a used token", err
		}
		w.result.Reached["a used token refused"]++
		return "join with a used token", nil
	}
	if n := w.estranged(); n != nil && w.chance(700) {
		return "join again as " + n.name, n.rejoin()
	}
	for _, n := range w.nodes {
		if !n.dead && n.offUntil.IsZero() && w.lost(n.id) && w.chance(500) {
			return "join as " + n.name, n.rejoin()
		}
	}
	if len(w.joiners) == 0 || len(w.joiners) < 3 && w.chance(300) {
		w.joiners = append(w.joiners, new(joiner))
	}
	at := w.rng.IntN(len(w.joiners))
	what, over, err := w.joiners[at].step(w, at)
	if over {
		w.joiners = append(w.joiners[:at], w.joiners[at+1:]...)
	}
	return what, err
}

// step takes a joiner further; over: it is out of the cloud again.
func (j *joiner) step(w *world, at int) (what string, over bool, err error) {
	admin, a := identity.Internal(w.ctx), w.control.authority
	switch {
	case j.cert == nil && j.token == "":
		only := []string{host.ForHosts, ""}[w.rng.IntN(2)]
		valid := time.Duration(1+w.rng.IntN(600)) * time.Second
		if w.calm {
			valid = time.Hour
		}
		j.token, err = a.Token(w.ctx, valid, only)
		if err != nil {
			j.token = ""
		}
		return "token", false, err
	case j.cert == nil:
		j.id, j.cert, err = w.join(j.token)
		if fault.Is(err, fault.Unauthorized) { // it was used after all, or is too old
			j.token = ""
		}
		return "join", false, err
	}
	id, err := a.Check(j.cert, w.clock)
	if err != nil {
		return "show the certificate of a newcomer", true, fmt.Errorf("newcomer %s is not known: %w", j.id, err)
	}
	if !host.Table().Has(w.control.state.Latest(), id) && w.chance(600) {
		// It comes, with room for nothing.
		hello := host.Hello{Speaks: release.Own, Name: fmt.Sprintf("guest-%d-%s", at, id.String()[24:]), Capacity: host.Capacity{Driver: "sim", Arch: "x86_64"}}
		if err := a.Arrive(w.ctx, id, hello); err != nil {
			return "arrive", false, err
		}
	}
	if err := w.control.compute.DismissHost(admin, id); err != nil {
		return "dismiss", false, err
	}
	if _, err := a.Check(j.cert, w.clock); err == nil {
		w.client.broken = fmt.Errorf("host %s was taken out of the cloud, and is one still", id)
	}
	w.result.Reached["a newcomer came and went"]++
	return "join, and go", true, nil
}

// estranged is a machine of which the cloud knows that another, or it itself without knowing it, has joined in its place; nil for none.
func (w *world) estranged() *node {
	for _, n := range w.nodes {
		if _, err := w.control.authority.Check(n.cert, w.clock); err != nil && !n.dead {
			return n
		}
	}
	return nil
}

// rejoin is that a machine was set up anew, with its guests and what its agent keeps, and joins as the host that it was.
func (n *node) rejoin() error {
	w := n.w
	token, err := w.control.authority.TokenAs(identity.Internal(w.ctx), time.Hour, n.id)
	if err != nil {
		return err
	}
	id, cert, err := w.join(token)
	if err != nil {
		return err
	}
	if id != n.id {
		w.client.broken = fmt.Errorf("%s has joined as the host it was, and is host %s", n.name, id)
	}
	n.cert = cert
	n.restart() // not before it may: a new agent has something to do at once, and what is refused would be tried again before time goes on
	w.result.Reached["a machine joined as the host it was"]++
	return nil
}

// first is how a machine joins that the cloud begins with.
func (n *node) first() error {
	token, err := n.w.control.authority.Token(n.w.ctx, time.Hour, host.ForHosts)
	if err != nil {
		return err
	}
	n.id, n.cert, err = n.w.join(token)
	return err
}

// leaveNobodyAtTheDoor brings all that is half in the cloud in, or out. The operator sees who has joined and did not come.
func (w *world) leaveNobodyAtTheDoor() error {
	for _, j := range w.joiners {
		for n := 0; ; n++ {
			what, over, err := j.step(w, n)
			if over {
				break
			}
			if n == 10 {
				return fmt.Errorf("a machine does not come in: %s: %w", what, err)
			}
		}
	}
	w.joiners = nil
	admin := identity.Internal(w.ctx)
	for _, id := range host.Newcomers().IDs(w.control.state.Latest(), "", "") {
		if n := w.node(id); n != nil && !n.dead {
			continue // it was never heard so far
		}
		if err := w.control.compute.DismissHost(admin, id); err != nil {
			return fmt.Errorf("turn newcomer %s away: %w", id, err)
		}
	}
	return nil
}
