package host

import (
	"crypto/x509"
	"encoding/json"
	"strconv"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// Hosts take connections of each other, and know each other by the authority's certificates. A removed host has one still, until it ends. So
// each host that others reach is told which hosts there are, keeps that as it keeps all it is told, and goes by it when no controller can be heard, too.

// A Roster is the hosts that there are, and which of the machines that have joined as it, one after the other, each is.
type Roster map[resource.ID]int

// RosterKey is what hosts are told of it under: it is the same for all of them.
var RosterKey = Key{Kind: "roster", ID: resource.ID{15: 1}}

// MachineOf is which of a host's machines, one after the other, a host's certificate is of; -1 if that cannot be told.
func MachineOf(cert *x509.Certificate) int { return machineOf(cert) }

// rosterPace is how often at most a host is told of it: a thousand machines that join at a time are some rosters for each host, not a thousand.
const rosterPace = 500 * time.Millisecond

// roster tells it. That a machine has joined and was never heard is not in it: nothing can be on its way there yet.
func roster() Source {
	return Source{
		Kind: RosterKey.Kind,
		All: func(tx *state.Tx, id resource.ID) []resource.ID {
			if !reached(tx, id) {
				return nil
			}
			return []resource.ID{RosterKey.ID}
		},
		Want: func(tx *state.Tx, id, _ resource.ID) (any, bool) {
			if !reached(tx, id) {
				return nil, false
			}
			return spelled(tx), true
		},
		Touched: func(*state.Tx, state.Event) []Ref { return nil }, // an address is told as a session begins
		Shared: func(_ *state.Tx, e state.Event) []resource.ID {
			if e.Kind != hosts.Kind() {
				return nil
			}
			was, _ := e.Before.(*Host)
			now, _ := e.After.(*Host)
			if was != nil && now != nil && was.Machine == now.Machine {
				return nil
			}
			return []resource.ID{RosterKey.ID}
		},
		Every: rosterPace,
	}
}

// reached reports whether other hosts can reach a host. Simulated ones have no address.
func reached(tx *state.Tx, id resource.ID) bool {
	h, ok := hosts.PeekOne(tx, id)
	return ok && h.Address.IsValid()
}

// spelled is the roster's JSON. It is made for each host when one comes or goes, so no map is.
func spelled(tx *state.Tx) json.RawMessage {
	text := []byte{'{'}
	for h := range hosts.Peek(tx, "", state.Range{}) {
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = append(text, '"')
		text = append(text, h.ID.String()...)
		text = append(text, `":`...)
		text = strconv.AppendInt(text, int64(h.Machine), 10)
	}
	return append(text, '}')
}
