package host

import (
	"bytes"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Where there are several controllers each host holds its session with one of them, and the one that leads has to know which
// hosts the others hear. They say so again and again. It is no state: who leads anew waits for it as for the hosts' own.

// presence is which hosts another controller has sessions with.
type presence struct {
	at    time.Time
	hosts map[resource.ID]bool
}

// A controller says which hosts it hears at least every ReportEvery; what it said holds for presentFor.
const (
	ReportEvery = 3 * time.Second
	presentFor  = 3 * ReportEvery
)

// HeardBy takes in which hosts another controller has sessions with, by where it is reached.
func (h *Hub) HeardBy(link string, ids []resource.ID) {
	p := presence{h.now(), map[resource.ID]bool{}}
	for _, id := range ids {
		p.hosts[id] = true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.elsewhere == nil {
		h.elsewhere = map[string]presence{}
	}
	h.elsewhere[link] = p
}

// Elsewhere is where the controllers are reached that say they hear a host. A session that broke may still count for a moment, so
// there may be two.
func (h *Hub) Elsewhere(id resource.ID) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.elsewhereNow(id)
}

// elsewhereNow is Elsewhere; the caller holds mu.
func (h *Hub) elsewhereNow(id resource.ID) []string {
	var links []string
	for link, p := range h.elsewhere {
		if h.now().Sub(p.at) > presentFor {
			delete(h.elsewhere, link)
		} else if p.hosts[id] {
			links = append(links, link)
		}
	}
	slices.Sort(links)
	return links
}

// heard reports whether a host has a session with any controller. The caller holds mu.
func (h *Hub) heard(id resource.ID) bool { return h.sessions[id] != nil || len(h.elsewhereNow(id)) > 0 }

// Here lists the hosts that have a session with this controller.
func (h *Hub) Here() []resource.ID {
	h.mu.Lock()
	defer h.mu.Unlock()
	ids := make([]resource.ID, 0, len(h.sessions))
	for id := range h.sessions {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b resource.ID) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// Moved holds an element when the answer of Here has changed.
func (h *Hub) Moved() <-chan struct{} { return h.moved }

func (h *Hub) hasMoved() {
	select {
	case h.moved <- struct{}{}:
	default:
	}
}
