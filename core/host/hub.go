package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Source derives one kind of thing that hosts make real. Its functions are pure.
type Source struct {
	Kind string // "guest", "segment", …
	// All lists what the host is to have.
	All func(tx *state.Tx, host resource.ID) []resource.ID
	// Want is what the host is to make real of one thing, as JSON will carry it, or is already if it is a RawMessage; false when
	// the thing is none of the host's. A nil and true: the host is to take it away, if it has
	// it at all, and to report that it is gone.
	Want func(tx *state.Tx, host, id resource.ID) (any, bool)
	// Touched says which things have to be derived anew after a change, each on one host. It may name too much, but nothing stands
	// for every host: what looks at each of them for one change grows with the cloud.
	Touched func(tx *state.Tx, e state.Event) []Ref
	// Shared, of things that many hosts have, says which are to be derived anew wherever they are: the hub knows who has them. That
	// is for what is no reason to have a thing; whoever is to have it now for the first time Touched names. nil: hosts share none.
	Shared func(tx *state.Tx, e state.Event) []resource.ID
	// Every is how often at most a thing that a host has is told to it anew: for things that many
	// changes elsewhere touch. 0: at once.
	Every time.Duration
	// Observe takes in what the host saw, in a transaction. What is no news writes nothing. nil:
	// nothing is reported of this kind.
	Observe func(tx *state.Tx, host, id resource.ID, seen json.RawMessage) error
}

// A Ref names one thing on one host.
type Ref struct{ Host, ID resource.ID }

// Reports is a source of what hosts report by themselves, and are told nothing of.
func Reports(kind string, observe func(tx *state.Tx, host, id resource.ID, seen json.RawMessage) error) Source {
	return Source{
		Kind:    kind,
		All:     func(*state.Tx, resource.ID) []resource.ID { return nil },
		Want:    func(*state.Tx, resource.ID, resource.ID) (any, bool) { return nil, false },
		Touched: func(*state.Tx, state.Event) []Ref { return nil },
		Observe: observe,
	}
}

// Sources are of what hosts report of themselves, and are told of each other.
func Sources() []Source {
	return []Source{muteness(), uplinks(), storage(), disks(), clocks(), roster()}
}

// A Key names a thing within one host.
type Key struct {
	Kind string
	ID   resource.ID
}

// An Item is one message to a host: what it is to make real of one thing.
type Item struct {
	Key
	// Left out on the wire when nil, for a RawMessage reads null as a value.
	Body json.RawMessage `json:",omitempty"` // nil: take it away
	// Instead of a long body: what is different from the one that this session sent before.
	Difference *Difference `json:",omitempty"`
	// The request that it is sent for, if it is for one: for logs and traces.
	Request string `json:",omitempty"`
}

// A Delivery is some items. The first one of a session is Full: what it does not
// name, nobody wants on the host.
type Delivery struct {
	Full  bool
	Mark  Mark // of the state that it is derived from
	Items []Item
	// Of a full one: which of the host's arrivals it was derived after. The lease is asked for with it; see Hub.Renew.
	Arrival int `json:",omitempty"`
}

// An Observation is one message from a host: what it saw of one thing.
type Observation struct {
	Key
	Seen json.RawMessage
}

// A Hub tells each connected host what it is to make real, and anew whenever that
// changes. It holds nothing that is not derived from the state.
type Hub struct {
	State   *state.State
	Sources []Source // in the order in which a host best takes them up
	// The clock, and what calls a function after a time; time.Now and time.AfterFunc when nil.
	Now   func() time.Time
	After func(time.Duration, func())
	// Confirm makes sure that no other controller knows more; nil: there is none.
	Confirm func(context.Context) error

	watch *state.Watcher

	mu        sync.Mutex
	sessions  map[resource.ID]*Session      // guarded by mu
	holders   map[Key]map[*Session]struct{} // of shared things, whose host has them or is about to look; guarded by mu
	fresh     map[*Session]struct{}         // may have anything: they are told everything next; guarded by mu
	heard     map[resource.ID]time.Time     // when hosts were last heard here; guarded by mu
	elsewhere map[string]presence           // of the other controllers; guarded by mu
	moved     chan struct{}                 // holds one element when a session began or ended
}

// NewHub makes a hub. Call Pump or Run to keep it following the changes.
func NewHub(s *state.State, sources ...Source) *Hub {
	return &Hub{State: s, Sources: sources, watch: s.Watch(s.Latest().Revision()), sessions: map[resource.ID]*Session{}, holders: map[Key]map[*Session]struct{}{},
		fresh: map[*Session]struct{}{}, heard: map[resource.ID]time.Time{}, moved: make(chan struct{}, 1)}
}

// A Session is the conversation with one connected host.
type Session struct {
	hub  *Hub
	host resource.ID

	mu     sync.Mutex
	full   bool           // everything is to be sent; guarded by mu
	dirty  []Key          // to be derived anew, each once; guarded by mu
	marked map[Key]bool   // those in dirty; guarded by mu
	later  map[Key]bool   // put off by their pace; guarded by mu
	asked  map[Key]string // of those in dirty, the newest request that touched it; guarded by mu
	wake   chan struct{}  // holds one element when there is something to send
	over   chan struct{}  // closed when another session of the host has begun, or the host was removed
	ended  bool           // guarded by mu

	// What the host was last sent, and when, of things with a pace. Only Poll, which one
	// goroutine calls, touches them.
	sent   map[Key]digest
	when   map[Key]time.Time
	pieces map[Key][]piece // of long bodies

	holds  map[Key]struct{} // where it is among the hub's holders; guarded by the hub's mu
	closed bool             // guarded by the hub's mu

	differences bool // the host can put differences together

	renews bool // the host renews its lease; guarded by the hub's mu
}

// Connect begins a session; an older one of the same host ends.
func (h *Hub) Connect(host resource.ID) *Session {
	s := &Session{hub: h, host: host, full: true, marked: map[Key]bool{}, later: map[Key]bool{}, asked: map[Key]string{}, wake: make(chan struct{}, 1),
		over: make(chan struct{}), sent: map[Key]digest{}, when: map[Key]time.Time{}, pieces: map[Key][]piece{},
		holds: map[Key]struct{}{}}
	s.wake <- struct{}{}
	h.mu.Lock()
	old := h.sessions[host]
	h.sessions[host], h.heard[host] = s, h.now()
	h.fresh[s] = struct{}{}
	h.mu.Unlock()
	h.hasMoved()
	if old != nil {
		old.end()
	}
	return s
}

func (s *Session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.ended = true
		close(s.over)
	}
}

// Close ends the session.
func (s *Session) Close() {
	s.end()
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	if s.hub.sessions[s.host] == s {
		if !s.renews {
			s.hub.heard[s.host] = s.hub.now()
		}
		delete(s.hub.sessions, s.host)
		s.hub.hasMoved()
	}
	s.closed = true
	delete(s.hub.fresh, s)
	for key := range s.holds {
		s.hub.release(s, key)
	}
}

// endSession ends a host's session, if it has one here.
func (h *Hub) endSession(id resource.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.sessions[id]; s != nil {
		s.end()
	}
}

// EndAll ends every session: the hosts connect again, to a controller that knows more than this one.
func (h *Hub) EndAll() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sessions {
		s.end()
	}
}

// Over is closed when the session has ended.
func (s *Session) Over() <-chan struct{} { return s.over }

// Connected reports whether a host has a session.
func (h *Hub) Connected(host resource.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sessions[host] != nil
}

// Sessions is how many hosts are connected.
func (h *Hub) Sessions() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.sessions)
}

// Pump marks what has to be derived anew since the last call. Only one goroutine may
// call Pump or Run.
func (h *Hub) Pump() error {
	for {
		events, err := h.watch.Poll()
		if errors.Is(err, state.ErrCompacted) {
			h.resync()
			continue
		}
		if err != nil || len(events) == 0 {
			return err
		}
		h.mark(events)
	}
}

// Run is Pump for ever.
func (h *Hub) Run(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := h.watch.Next(ctx)
		switch {
		case errors.Is(err, state.ErrCompacted):
			h.resync()
		case err == nil:
			h.mark(events)
		}
	}
}

func (h *Hub) resync() {
	h.watch = h.State.Watch(h.State.Latest().Revision())
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, s := range h.sessions {
		if away(h.State.Latest(), id) {
			s.end()
		}
		h.fresh[s] = struct{}{}
		s.mu.Lock()
		s.full = true
		s.mu.Unlock()
		s.poke()
	}
}

func (h *Hub) mark(events []state.Event) {
	tx := h.State.Latest()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range events {
		if e.Kind == hosts.Kind() && away(tx, e.ID) {
			if s := h.sessions[e.ID]; s != nil {
				s.end()
			}
			if e.After == nil {
				delete(h.heard, e.ID)
			}
		}
		if l, ok := e.After.(*Leftover); ok && h.sessions[l.HostID] != nil {
			h.sessions[l.HostID].mark(Key{l.Kind, l.ThingID}, e.Cause.RequestID)
		}
	}
	for n := range h.Sources {
		h.refer(&h.Sources[n], tx, events)
	}
}

// away reports whether a host was removed, or counts as lost: its session is over then, whichever controller has it. If it is there
// it says hello again.
func away(tx *state.Tx, id resource.ID) bool {
	h, ok := hosts.PeekOne(tx, id)
	return !ok || !h.Up()
}

func (s *Session) mark(key Key, request string) {
	s.mu.Lock()
	if s.later[key] { // it is marked when its time has come
		s.mu.Unlock()
		return
	}
	if request != "" {
		s.asked[key] = request
	}
	if !s.marked[key] {
		s.marked[key] = true
		s.dirty = append(s.dirty, key)
	}
	s.mu.Unlock()
	s.poke()
}

func (s *Session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Wake holds an element when Poll may have something.
func (s *Session) Wake() <-chan struct{} { return s.wake }

// Poll derives what is to be sent now; nil if nothing is.
func (s *Session) Poll() (*Delivery, error) {
	s.mu.Lock()
	full, dirty, asked := s.full, s.dirty, s.asked
	s.full, s.dirty = false, nil
	if len(asked) > 0 {
		s.asked = map[Key]string{}
	}
	clear(s.marked)
	s.mu.Unlock()
	if full {
		return s.pollFull(s.hub.State.Latest())
	}
	s.expect(dirty)
	tx := s.hub.State.Latest() // after that: what changes from now on marks it
	d := Delivery{Mark: MarkOf(tx)}
	// By kind in the sources' order, so that a host gets the network before the guest on it.
	for _, source := range s.hub.Sources {
		for _, key := range dirty {
			if key.Kind != source.Kind || source.Every > 0 && s.tooSoon(key, source.Every) {
				continue
			}
			body, err := source.body(tx, s.host, key.ID)
			if err != nil {
				return nil, err
			}
			if body == nil && source.Shared != nil {
				s.renounce(key)
			}
			was, known := s.sent[key]
			// An order to take something away is repeated: the host may have carried out one like it, and be given the thing again since.
			if body == nil && !known || known && body != nil && was == digestOf(body) && !bytes.Equal(body, takeAway) {
				continue
			}
			if body == nil {
				delete(s.sent, key)
				delete(s.when, key)
			} else {
				s.sent[key] = digestOf(body)
				if source.Every > 0 {
					s.when[key] = s.hub.now()
				}
			}
			d.Items = append(d.Items, s.lighten(Item{Key: key, Body: orNull(body), Request: asked[key]}))
		}
	}
	if d.Items == nil {
		return nil, nil
	}
	return &d, nil
}

// tooSoon puts a thing off that the host was told about less than a pace ago.
func (s *Session) tooSoon(key Key, every time.Duration) bool {
	last, known := s.when[key]
	wait := every - s.hub.now().Sub(last)
	if !known || wait <= 0 {
		return false
	}
	s.mu.Lock()
	first := !s.later[key]
	s.later[key] = true
	s.mu.Unlock()
	if first { // whatever touches it meanwhile rides along
		s.hub.after(wait, func() {
			s.mu.Lock()
			delete(s.later, key)
			s.mu.Unlock()
			s.mark(key, "")
		})
	}
	return true
}

func (h *Hub) now() time.Time {
	if h.Now == nil {
		return time.Now()
	}
	return h.Now()
}

func (h *Hub) after(d time.Duration, f func()) {
	if h.After == nil {
		time.AfterFunc(d, f)
		return
	}
	h.After(d, f)
}

func (s *Session) pollFull(tx *state.Tx) (*Delivery, error) {
	d := &Delivery{Full: true, Mark: MarkOf(tx)}
	if h, ok := hosts.PeekOne(tx, s.host); ok {
		d.Arrival = h.Arrivals
	}
	clear(s.sent)
	clear(s.when)
	clear(s.pieces)
	for _, source := range s.hub.Sources {
		for _, id := range slices.Concat(source.All(tx, s.host), orders(tx, s.host, source.Kind)) {
			if _, twice := s.sent[Key{source.Kind, id}]; twice {
				continue
			}
			body, err := source.body(tx, s.host, id)
			if err != nil {
				return nil, err
			}
			if body != nil {
				key := Key{source.Kind, id}
				s.sent[key] = digestOf(body)
				d.Items = append(d.Items, s.lighten(Item{Key: key, Body: orNull(body)}))
			}
		}
	}
	s.settleIn()
	return d, nil
}

// digest tells bodies apart without keeping them.
type digest [16]byte

func digestOf(body []byte) digest {
	sum := sha256.Sum256(body)
	return digest(sum[:16])
}

// takeAway is the body of a thing that is explicitly not to be.
var takeAway = []byte("null")

// orNull is how a body travels: none at all for what is to be taken away.
func orNull(body []byte) []byte {
	if bytes.Equal(body, takeAway) {
		return nil
	}
	return body
}

// body is what the host is to make real: nil if the thing is none of its, takeAway if it is
// to take it away.
func (source *Source) body(tx *state.Tx, host, id resource.ID) ([]byte, error) {
	want, ok := source.Want(tx, host, id)
	if !ok && !Owes(tx, host, source.Kind, id) {
		return nil, nil
	}
	if want == nil {
		return takeAway, nil
	}
	if text, spelled := want.(json.RawMessage); spelled {
		return text, nil
	}
	body, err := json.Marshal(want)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s for host %s: %w", source.Kind, id, host, err)
	}
	return body, nil
}

// Next is Poll that waits until there is something. io.EOF-like: the error of ctx, or
// ErrOver when it has ended.
func (s *Session) Next(ctx context.Context) (*Delivery, error) {
	for {
		select {
		case <-s.wake:
		case <-s.over:
			return nil, ErrOver
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if d, err := s.Poll(); d != nil || err != nil {
			return d, err
		}
	}
}

// ErrOver ends a session that another one of the same host has replaced, or whose host was removed.
var ErrOver = errors.New("another session of this host has begun, or the host was removed")

// maxSeen is how long a report of one thing may be, in bytes: what it says is kept, and shown.
const maxSeen = 64 << 10

// maxRefused is how many refusals are logged at a time: a host is not to fill the log either.
const maxRefused = 10

// Observe takes in what a host saw, all of it in one transaction. What a source refuses is
// logged and left out: one bad report does not hold up the others.
func (h *Hub) Observe(ctx context.Context, host resource.ID, seen []Observation) error {
	ctx = state.WithCause(ctx, state.Cause{Via: "host"})
	return h.State.Update(ctx, func(tx *state.Tx) error {
		if !hosts.Has(tx, host) {
			return fault.Missing("host", host)
		}
		refused := 0
		for _, o := range seen {
			n := slices.IndexFunc(h.Sources, func(s Source) bool { return s.Kind == o.Kind })
			if n < 0 {
				continue
			}
			all, err := noteLeftover(tx, host, o, func() bool {
				want, ok := h.Sources[n].Want(tx, host, o.ID)
				return ok && want != nil
			})
			if err != nil {
				return err
			}
			if all || h.Sources[n].Observe == nil {
				continue
			}
			if err = fmt.Errorf("it has %d bytes", len(o.Seen)); len(o.Seen) <= maxSeen {
				err = tx.Try(func() error { return h.Sources[n].Observe(tx, host, o.ID, o.Seen) })
			}
			if err != nil {
				if refused++; refused <= maxRefused {
					slog.WarnContext(ctx, "a host's report was refused", "host", host, "kind", o.Kind, "id", o.ID, "err", err)
				}
			}
		}
		if refused > maxRefused {
			slog.WarnContext(ctx, "more of a host's reports were refused", "host", host, "reports", refused-maxRefused)
		}
		return nil
	})
}

// Expect is how long a host may be silent before it counts as lost.
const Expect = 15 * time.Second
