package host

import (
	"bytes"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Where there are several controllers each host holds its session with one of them, and the one that leads has to know which
// hosts the others hear, and when they did. They say so again and again. It is no state: who leads anew waits for it as for the
// hosts' own. Whatever is late or lost of it can only make a host count as lost later or sooner: no lease depends on it.

// A Sighting is that a controller hears a host.
type Sighting struct {
	Host    resource.ID
	Ago     time.Duration `json:",omitempty"` // when it was heard last
	Session bool          `json:",omitempty"` // it has its session there
}

// presence is what another controller said.
type presence struct {
	at       time.Time
	sessions map[resource.ID]bool
	heard    map[resource.ID]time.Time // by our clock; later than it was by as much as the word was under way
}

// A controller says which hosts it hears at least every ReportEvery; that it has their sessions holds for presentFor.
const (
	ReportEvery = 3 * time.Second
	presentFor  = 3 * ReportEvery
)

// HeardBy takes in which hosts another controller hears, by where it is reached.
func (h *Hub) HeardBy(link string, hosts []Sighting) {
	now := h.now()
	p := presence{now, map[resource.ID]bool{}, map[resource.ID]time.Time{}}
	for _, s := range hosts {
		p.heard[s.Host] = now.Add(-max(s.Ago, 0))
		if s.Session {
			p.sessions[s.Host] = true
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.elsewhere == nil {
		h.elsewhere = map[string]presence{}
	}
	for id, at := range h.elsewhere[link].heard { // what it said last may have overtaken this
		if now.Sub(at) < Expect && p.heard[id].Before(at) {
			p.heard[id] = at
		}
	}
	h.elsewhere[link] = p
}

// heardAt is when a host was last heard by any controller, as far as this one knows; zero if it was not. One that renews its
// lease is heard when it does, whatever becomes of its session: what is written into a cut line is long not missed. Another is heard
// as long as its session lasts. The caller holds mu.
func (h *Hub) heardAt(id resource.ID, now time.Time) time.Time {
	at := h.heard[id]
	if s := h.sessions[id]; s != nil && !s.renews {
		at = now
	}
	for _, p := range h.elsewhere {
		if there := p.heard[id]; there.After(at) {
			at = there
		}
	}
	return at
}

// Elsewhere is where the controllers are reached that say they have a host's session. One that broke may still count for a
// moment, so there may be two.
func (h *Hub) Elsewhere(id resource.ID) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var links []string
	for link, p := range h.elsewhere {
		if p.sessions[id] && h.now().Sub(p.at) <= presentFor {
			links = append(links, link)
		}
	}
	slices.Sort(links)
	return links
}

// Here is which hosts this controller hears itself.
func (h *Hub) Here() []Sighting {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []Sighting
	for id, at := range h.heard {
		s := h.sessions[id]
		switch {
		case s != nil && !s.renews:
			at = now
		case s == nil && now.Sub(at) >= Expect:
			delete(h.heard, id) // it is with another, or with none
			continue
		}
		all = append(all, Sighting{Host: id, Ago: now.Sub(at), Session: s != nil})
	}
	slices.SortFunc(all, func(a, b Sighting) int { return bytes.Compare(a.Host[:], b.Host[:]) })
	return all
}

// Moved holds an element when a session began or ended here.
func (h *Hub) Moved() <-chan struct{} { return h.moved }

func (h *Hub) hasMoved() {
	select {
	case h.moved <- struct{}{}:
	default:
	}
}
