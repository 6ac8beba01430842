package host

import (
	"context"
	"crypto/x509"
	"log/slog"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Newcomer is a machine that has joined and has not yet said what it is. A machine is a member from when it has joined until it
// is removed: while it is new this record stands for it, and from its first session on its Host does. So a certificate alone makes
// nobody a host: one of a removed machine is worth nothing, however long it is still valid. Who never comes is
// a member for a day. Its name is what it said that it is called; "" if it has not.
type Newcomer struct {
	resource.Meta

	Refused Refusal `json:",omitzero" since:"2,soft"` // why it is none of the hosts yet
}

// A Refusal is that a machine said what it is, and was not let in. It goes with the next time that it is.
type Refusal struct {
	Since time.Time
	Why   string // in words for the operator
}

var newcomers = state.NewTable[Newcomer]("joined-machine")

const newcomerFor = 24 * time.Hour

var _ = identity.Rules(map[string]identity.Rule{"host.delete": identity.Admin})

// Newcomers gives operators and the auditor a look at every machine that has joined and was never heard.
func Newcomers() *state.Table[Newcomer] { return newcomers }

// Ends is when the machine is none of the cloud's any more if it has not come.
func (n *Newcomer) Ends() time.Time { return n.CreatedAt.Add(newcomerFor) }

// Forget takes out whoever joined and did not come, and the tokens that nobody used in time.
func Forget(s *state.State, now func() time.Time) []reconcile.Task {
	return []reconcile.Task{
		forget(s, now, "newcomers", newcomers, (*Newcomer).Ends),
		forget(s, now, "join-tokens", joinTokens, func(t *joinToken) time.Time { return t.Expires }),
	}
}

func forget[T any](s *state.State, now func() time.Time, name string, table *state.Table[T], ends func(*T) time.Time) reconcile.Task {
	return reconcile.Task{
		Name: name,
		All:  func(tx *state.Tx) []resource.ID { return table.IDs(tx, "", "") },
		Touched: func(e state.Event) []resource.ID {
			if _, ok := any(e.After).(*T); ok {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
			x, ok := table.PeekOne(s.Latest(), id)
			if !ok {
				return reconcile.Next{}, nil
			}
			if wait := ends(x).Sub(now()); wait > 0 {
				return reconcile.Next{After: wait}, nil
			}
			return reconcile.Next{}, s.Update(ctx, func(tx *state.Tx) error {
				if !table.Has(tx, id) {
					return nil
				}
				return table.Delete(tx, id)
			})
		},
	}
}

// TurnAway takes a machine out that has joined and was never heard.
func TurnAway(ctx context.Context, tx *state.Tx, id resource.ID) error {
	n, ok := newcomers.PeekOne(tx, id)
	if !ok {
		return fault.Missing("host", id)
	}
	if err := identity.Allow(ctx, "host.delete", n.Meta); err != nil {
		return err
	}
	return newcomers.Delete(tx, id)
}

func member(tx *state.Tx, id resource.ID, now time.Time) bool {
	if hosts.Has(tx, id) {
		return true
	}
	n, ok := newcomers.PeekOne(tx, id)
	return ok && now.Before(n.Ends())
}

func notMember() error {
	return fault.Errorf(fault.Unauthorized, "This machine is no host of this cloud, or no more. Join with a new token.")
}

// Check answers for which host a verified client certificate stands now: none if it has run out since
// the connection was made, or if the host was removed.
func (a *Authority) Check(cert *x509.Certificate, now time.Time) (resource.ID, error) {
	id, err := HostOf(cert)
	if err != nil {
		return id, err
	}
	if now.After(cert.NotAfter) {
		return id, fault.Errorf(fault.Unauthorized, "The host's certificate has expired.")
	}
	tx := a.State.Latest()
	if !member(tx, id, a.State.Now()) {
		return id, notMember()
	}
	if h, ok := hosts.PeekOne(tx, id); ok {
		return id, h.shownBy(cert)
	}
	return id, nil
}

// shownBy refuses the certificate of a machine in whose place another has joined.
func (h *Host) shownBy(cert *x509.Certificate) error {
	if machineOf(cert) != h.Machine {
		return fault.Errorf(fault.Unauthorized, "Another machine has joined as host %s since.", h.Name)
	}
	return nil
}

// Arrive is Arrive for a machine elsewhere: only for one that has joined and was not removed.
func (a *Authority) Arrive(ctx context.Context, id resource.ID, hello Hello) error {
	return arrive(ctx, a.State, id, hello, func(tx *state.Tx) error {
		if !member(tx, id, tx.Now()) {
			return notMember()
		}
		if newcomers.Has(tx, id) {
			return newcomers.Delete(tx, id)
		}
		return nil
	})
}

// Refuse records that a machine which has joined was not let in, for operators who wonder where it is. It comes again and again: what is known
// already writes nothing.
func (a *Authority) Refuse(ctx context.Context, id resource.ID, why error) {
	refuse(ctx, a.State, id, "", why)
}

// refuse records a refusal for what a machine says, by which name it does. That nobody can take it in just now is none, nor that it is no member.
func refuse(ctx context.Context, s *state.State, id resource.ID, name string, err error) {
	if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Exists) {
		return
	}
	why := fault.From(err).Message
	if r := refusalOf(s.Latest(), id); r == nil || r.Why == why {
		return
	}
	if err := s.Update(ctx, func(tx *state.Tx) error {
		r := Refusal{tx.Now(), why}
		if h, ok := hosts.Find(tx, id); ok {
			h.Refused = r
			return hosts.Put(tx, h)
		}
		n, ok := newcomers.Find(tx, id)
		if !ok {
			return nil
		}
		if n.Refused = r; CheckNew(name, "") == nil {
			n.Name = name
		}
		return newcomers.Put(tx, n)
	}); err != nil {
		slog.WarnContext(ctx, "it is not known to operators why a host was refused", "host", id, "why", why, "err", err)
	}
}

// refusalOf is why a host, or a machine that has joined, was refused last; nil if it is none.
func refusalOf(tx *state.Tx, id resource.ID) *Refusal {
	if h, ok := hosts.PeekOne(tx, id); ok {
		return &h.Refused
	}
	if n, ok := newcomers.PeekOne(tx, id); ok {
		return &n.Refused
	}
	return nil
}

// Remove takes a host out of the cloud, in the transaction of the domain that has made sure that nothing
// is on it: its session is cut off, and its certificate is worth nothing from then on.
func Remove(tx *state.Tx, id resource.ID) error {
	h, ok := hosts.Find(tx, id)
	if !ok {
		return fault.Missing("host", id)
	}
	if err := h.resume(tx); err != nil {
		return err
	}
	for _, left := range leftovers.IDs(tx, "thing", state.KeyOf(id)) {
		if err := leftovers.Delete(tx, left); err != nil {
			return err
		}
	}
	for _, t := range slices.Collect(joinTokens.Each(tx, "expires", "")) {
		if t.As != id {
			continue
		}
		if err := joinTokens.Delete(tx, t.ID); err != nil {
			return err
		}
	}
	return hosts.Delete(tx, id)
}
