package host

import (
	"cmp"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// What follows knows which hosts have the things that many have part in, so that a change of one of those wakes no others. A session
// is among a thing's holders from before it looks what the thing is: whatever changes after that look marks it.

// refer marks what changes touch. The caller holds mu.
func (h *Hub) refer(source *Source, tx *state.Tx, events []state.Event) {
	var shared []resource.ID             // once, in their order: many changes, of one crowd, come together
	requests := map[resource.ID]string{} // the newest that touched each
	for _, e := range events {
		for _, ref := range source.Touched(tx, e) {
			if s := h.sessions[ref.Host]; s != nil {
				s.mark(Key{source.Kind, ref.ID}, e.Cause.RequestID)
			}
		}
		if source.Shared == nil {
			continue
		}
		for _, id := range source.Shared(tx, e) {
			before, twice := requests[id]
			if !twice {
				shared = append(shared, id)
			}
			requests[id] = cmp.Or(e.Cause.RequestID, before)
		}
	}
	for _, id := range shared {
		key := Key{source.Kind, id}
		for s := range h.holders[key] {
			s.mark(key, requests[id])
		}
		for s := range h.fresh {
			s.mark(key, requests[id])
		}
	}
}

// hold counts a session among a thing's holders. The caller holds mu.
func (h *Hub) hold(s *Session, key Key) {
	if h.holders[key] == nil {
		h.holders[key] = map[*Session]struct{}{}
	}
	h.holders[key][s] = struct{}{}
	s.holds[key] = struct{}{}
}

// release takes it from among them. The caller holds mu.
func (h *Hub) release(s *Session, key Key) {
	delete(s.holds, key)
	delete(h.holders[key], s)
	if len(h.holders[key]) == 0 {
		delete(h.holders, key)
	}
}

// expect has the session hear of what it is about to look at, whatever it will be.
func (s *Session) expect(dirty []Key) {
	var shared []Key
	for _, key := range dirty {
		if slices.ContainsFunc(s.hub.Sources, func(source Source) bool { return source.Kind == key.Kind && source.Shared != nil }) {
			shared = append(shared, key)
		}
	}
	if len(shared) == 0 {
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.closed {
		return
	}
	for _, key := range shared {
		s.hub.hold(s, key)
	}
}

// renounce takes in that the host does not have a thing.
func (s *Session) renounce(key Key) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.hub.release(s, key)
}

// settleIn has the session, which was told everything, hear from now on of what it has.
func (s *Session) settleIn() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.closed {
		return
	}
	for key := range s.holds {
		if _, has := s.sent[key]; !has {
			s.hub.release(s, key)
		}
	}
	for _, source := range s.hub.Sources {
		if source.Shared == nil {
			continue
		}
		for key := range s.sent {
			if key.Kind == source.Kind {
				s.hub.hold(s, key)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.full { // else it will be told everything once more
		delete(s.hub.fresh, s)
	}
}
