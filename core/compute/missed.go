package compute

import (
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Missed reports whether a host that cannot be heard is. One that was emptied for its maintenance, and has nothing in memory, may be off on
// purpose; one that is still being emptied, or on which something stayed and runs, is lost as any other.
func Missed(tx *state.Tx, h *host.Host) bool {
	if !h.Maintenance || h.Drain != nil && !h.Drain.Over() {
		return true
	}
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
		if srv.inMemory() {
			return true
		}
	}
	return false
}

// Storm reports whether so many hosts are lost at once that it is rather we who are cut off.
func Storm(tx *state.Tx) (lost, of int, is bool) { return host.Storm(tx, Missed) }

// drainDead ends the emptying of a host that has died in the midst of it. What is to be restarted elsewhere is waited for; nothing else
// leaves it any more before it is back.
func drainDead(tx *state.Tx, h *host.Host) error {
	d := h.Drain
	left := slices.Clone(d.Left)
	d.Left = slices.DeleteFunc(d.Left, func(l host.Left) bool { return !belongs(tx, l.ID, h.ID) })
	if d.Over() {
		if len(d.Left) == len(left) {
			return nil
		}
		return host.Table().Put(tx, h)
	}
	op, err := operation.Get(tx, d.OperationID)
	if err != nil {
		return err
	}
	if n := len(servers.IDs(tx, "arriving", state.KeyOf(h.ID))) + leavingDead(tx, h); n > 0 {
		return operation.Note(tx, op, fmt.Sprintf("%d servers that are restarted elsewhere, or given up: the host was lost at %s and is known to be dead", n, h.Lost.UTC().Format(time.RFC3339)), op.Percent)
	}
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
		why := "Its host was lost while it was emptied, and is known to be dead."
		if srv.Stranded != nil {
			why += " It is to be restarted elsewhere: " + srv.Stranded.Why
		}
		d.Stay(host.Left{ID: srv.ID, Why: why})
	}
	return endDrain(tx, h, op)
}

// leavingDead counts the servers of a dead host with which something is, or soon will be.
func leavingDead(tx *state.Tx, h *host.Host) (n int) {
	for srv := range servers.Peek(tx, "host", state.Range{Prefix: state.KeyOf(h.ID)}) {
		if srv.Task != "" || srv.awaits() && srv.Stranded == nil {
			n++
		}
	}
	return n
}
