package host

import (
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A Drain is how a host in maintenance is emptied. Who is on it, and how they get elsewhere, is the business of compute.
type Drain struct {
	OperationID resource.ID
	Stop        bool // what cannot be taken elsewhere is stopped, and stays
	AtOnce      int  // how many are on their way at any moment
	Servers     int  // that were on the host when it began
	Begun       time.Time
	Drained     time.Time `json:",omitzero"`  // since when nothing is to be done any more
	Left        []Left    `json:",omitempty"` // what could not be taken elsewhere
	// What leaves as soon as what is under way with it has ended: nothing else may begin before.
	Next []resource.ID `json:",omitempty" since:"2,soft"`
}

// A Left is a thing that stays on a host in maintenance, and why.
type Left struct {
	ID  resource.ID
	Why string
	As  string `json:",omitempty" since:"2,soft"` // how it stood then: once it stands otherwise it is looked at again; "" at once
}

// Stays is what is said of a thing that stays; nil if nothing is.
func (d *Drain) Stays(id resource.ID) *Left {
	if n := slices.IndexFunc(d.Left, func(l Left) bool { return l.ID == id }); n >= 0 {
		return &d.Left[n]
	}
	return nil
}

// Stay says that a thing stays, in the place of what was said of it before. The caller puts the host.
func (d *Drain) Stay(l Left) {
	if was := d.Stays(l.ID); was != nil {
		*was = l
		return
	}
	d.Left = append(d.Left, l)
}

// DrainVerb is the verb of the operation that empties a host.
const DrainVerb = "drain"

// Over reports whether nothing more is done to empty the host.
func (d *Drain) Over() bool { return !d.Drained.IsZero() }

// Retire begins a host's maintenance, in the transaction of the domain that empties it. The caller puts the host.
func (h *Host) Retire(reason string, d Drain) error {
	if h.Maintenance {
		return fault.Errorf(fault.Conflict, "Host %s is in maintenance already.", h.Name).WithCode("host-in-maintenance")
	}
	h.Maintenance, h.Disabled, h.DisabledReason, h.Drain = true, true, reason, &d
	return nil
}

// resume ends a host's maintenance. The caller puts the host.
func (h *Host) resume(tx *state.Tx) error {
	d := h.Drain
	h.Maintenance, h.Drain = false, nil
	if d == nil || d.Over() {
		return nil
	}
	op, err := operation.Get(tx, d.OperationID)
	if fault.Is(err, fault.NotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return operation.End(tx, op, operation.Cancelled, "The host's maintenance was ended.")
}

// CancelDrain is a Canceller: no more is taken off the host, which then is what it was before, but takes nothing new.
func CancelDrain(tx *state.Tx, o *operation.Operation) error {
	h, ok := hosts.Find(tx, o.TargetID)
	if !ok || h.Drain == nil || h.Drain.OperationID != o.ID {
		return operation.NotCancellable("Nothing of it is under way any more.")
	}
	h.Maintenance, h.Drain = false, nil
	return hosts.Put(tx, h)
}
