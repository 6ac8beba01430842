package network

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A roll is who is in a network on which host, spelled as hosts are sent it. All hosts of a network are sent nearly the
// same, each time that a port comes or goes anywhere: it is spelled once, and each host's is a copy without its own part.
type roll struct {
	hosts []attendance // in the order of their IDs, those with anybody only
	text  []byte       // of all of them, one after the other; never changed, but made anew
	stale map[resource.ID]bool
}

// An attendance is the ports of a network on one host.
type attendance struct {
	host resource.ID
	text []byte // each followed by a comma
	at   int    // where it is in the roll's
}

// call has the rolls follow a change. The caller holds mu.
func (c *crowd) call(e state.Event) {
	switch e.Kind {
	case ports.Kind():
		for _, p := range both[Port](e) {
			if r := c.rolls[p.NetworkID]; r != nil && !p.HostID.IsZero() {
				r.stale[p.HostID] = true
			}
		}
	case host.Table().Kind():
		if was, now := sides[host.Host](e); was == nil || now == nil || was.Address != now.Address {
			for _, r := range c.rolls {
				r.stale[e.ID] = true
			}
		}
	case networks.Kind():
		if e.After == nil {
			delete(c.rolls, e.ID)
		}
	}
}

// others are the neighbors of a network on other hosts, as of now, as JSON with a comma after each.
func (c *crowd) others(networkID, hostID resource.ID) (before, after []byte, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.follow()
	tx := c.state.Latest()
	r := c.rolls[networkID]
	if r == nil {
		r = &roll{stale: map[resource.ID]bool{}}
		for p := range ports.Peek(tx, "network-host", state.Range{Prefix: state.KeyOf(networkID)}) {
			r.stale[p.HostID] = true
		}
	}
	if err := r.refresh(tx, networkID); err != nil {
		return nil, nil, err
	}
	c.rolls[networkID] = r
	n, found := r.find(hostID)
	if !found {
		return r.text, nil, nil
	}
	own := &r.hosts[n]
	return r.text[:own.at], r.text[own.at+len(own.text):], nil
}

func (r *roll) find(hostID resource.ID) (int, bool) {
	return slices.BinarySearchFunc(r.hosts, hostID, func(a attendance, id resource.ID) int { return bytes.Compare(a.host[:], id[:]) })
}

// refresh reads what has changed anew.
func (r *roll) refresh(tx *state.Tx, networkID resource.ID) error {
	if len(r.stale) == 0 {
		return nil
	}
	for id := range r.stale {
		text, err := spellNeighbors(neighborsAt(tx, networkID, id))
		if err != nil {
			return err
		}
		n, found := r.find(id)
		switch {
		case found && text == nil:
			r.hosts = slices.Delete(r.hosts, n, n+1)
		case found:
			r.hosts[n].text = text
		case text != nil:
			r.hosts = slices.Insert(r.hosts, n, attendance{host: id, text: text})
		}
	}
	clear(r.stale)
	size := 0
	for i := range r.hosts {
		r.hosts[i].at = size
		size += len(r.hosts[i].text)
	}
	r.text = make([]byte, 0, size)
	for i := range r.hosts {
		r.text = append(r.text, r.hosts[i].text...)
	}
	return nil
}

// spellNeighbors gives each as JSON with a comma after it; nil for none.
func spellNeighbors(all []Neighbor) ([]byte, error) {
	if len(all) == 0 {
		return nil, nil
	}
	text, err := json.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode neighbors: %w", err)
	}
	text[len(text)-1] = ','
	return text[1:], nil
}

// nobody is how a segment ends that has no neighbors: they come last.
var nobody = []byte("null}")

// segmentText is the JSON of SegmentFor, as of now.
func (c *crowd) segmentText(tx *state.Tx, networkID, hostID resource.ID) (json.RawMessage, bool, error) {
	s, n, ok := segment(tx, networkID, hostID)
	if !ok {
		return nil, false, nil
	}
	head, err := json.Marshal(s)
	if err != nil {
		return nil, false, fmt.Errorf("encode network %s: %w", networkID, err)
	}
	if n.Kind != Overlay {
		return head, true, nil
	}
	head, ok = bytes.CutSuffix(head, nobody)
	if !ok {
		return nil, false, fmt.Errorf("the neighbors of a segment are not its last field")
	}
	before, after, err := c.others(networkID, hostID)
	if err != nil {
		return nil, false, err
	}
	legs, err := spellNeighbors(neighborLegs(tx, networkID, hostID))
	if err != nil {
		return nil, false, err
	}
	if len(before)+len(after)+len(legs) == 0 {
		return append(head, nobody...), true, nil
	}
	text := slices.Concat(head, []byte{'['}, before, after, legs, []byte{'}'})
	text[len(text)-2] = ']' // instead of the last comma
	return text, true, nil
}
