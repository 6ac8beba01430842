package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/freeport"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A wire is what lies between three members: each is reached through it, and says in the first thing it sends who it is, so that what
// one says to another can be held up.
type wire struct {
	t    *testing.T
	mu   sync.Mutex
	cut  map[[2]int]bool // from, to; guarded by mu
	held int             // what was held up at a cut; guarded by mu
	done chan struct{}
	all  sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	w := &wire{t: t, cut: map[[2]int]bool{}, done: make(chan struct{})}
	t.Cleanup(func() { close(w.done); w.all.Wait() })
	return w
}

// to lets the others reach a member that listens at an address; it answers where.
func (w *wire) to(n int, listens string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	w.all.Go(func() {
		<-w.done
		l.Close()
	})
	w.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			w.all.Go(func() { w.join(conn, n, listens) })
		}
	})
	return l.Addr().String()
}

// A hello is a connection that is read to know who calls: what is read is kept, and nothing is answered.
type hello struct {
	net.Conn
	read bytes.Buffer
}

func (h *hello) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.read.Write(p[:n])
	return n, err
}

func (h *hello) Write(p []byte) (int, error) { return len(p), nil }

// caller is who calls, by the name that it asks for in its first message, and what was read of it.
func caller(conn net.Conn) (from int, read []byte, err error) {
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	h := &hello{Conn: conn}
	var name string
	_ = tls.Server(h, &tls.Config{GetConfigForClient: func(c *tls.ClientHelloInfo) (*tls.Config, error) {
		name = c.ServerName
		return nil, errors.New("that is all we want to know")
	}}).Handshake()
	if _, err := fmt.Sscanf(name, "c%d", &from); err != nil {
		return 0, nil, fmt.Errorf("somebody calls and does not say who it is: %q", name)
	}
	return from, h.read.Bytes(), conn.SetReadDeadline(time.Time{})
}

func (w *wire) join(a net.Conn, to int, listens string) {
	defer a.Close()
	from, read, err := caller(a)
	if err != nil || !w.pass(from, to) {
		return
	}
	b, err := net.Dial("tcp", listens)
	if err != nil {
		return
	}
	defer b.Close()
	if _, err := b.Write(read); err != nil {
		return
	}
	over := make(chan struct{}, 2)
	w.all.Go(func() { w.copy(b, a, from, to); over <- struct{}{} })
	w.all.Go(func() { w.copy(a, b, to, from); over <- struct{}{} })
	select {
	case <-over:
	case <-w.done:
	}
}

// pass waits until something may go from one to the other: it is held up, not refused, as by a cable that was pulled.
func (w *wire) pass(from, to int) bool {
	for first := true; ; first = false {
		w.mu.Lock()
		cut := w.cut[[2]int{from, to}]
		if cut && first {
			w.held++
		}
		w.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-w.done:
			return false
		}
	}
}

func (w *wire) copy(to io.Writer, from io.Reader, a, b int) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil || !w.pass(a, b) {
			return
		}
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// set makes the wire be cut there, and nowhere else. It answers what was held up where it was cut until now.
func (w *wire) set(pairs ...[2]int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	held := w.held
	w.held = 0
	clear(w.cut)
	for _, p := range pairs {
		w.cut[p] = true
	}
	return held
}

// threeMembers are three controllers with a wire between them.
func threeMembers(t *testing.T) (*crowd, *wire, func(n int)) {
	c, w := newCrowd(t), newWire(t)
	listens, urls, members := map[int]string{}, map[int]string{}, map[string]string{}
	for n := 1; n <= 3; n++ {
		listens[n] = freeport.Address(t)
		urls[n] = w.to(n, listens[n])
	}
	start := func(n int) {
		m := c.member(n, urls[n], nil)
		m.Listen, m.from = listens[n], fmt.Sprint("c", n)
		if n > 1 {
			m.Existing = members
		}
		c.start(n, m)
	}
	for n := 1; n <= 3; n++ {
		members[fmt.Sprint("c", n)] = "https://" + urls[n]
		if n > 1 {
			if _, err := c.of(1).engine.AddMember(t.Context(), "https://"+urls[n]); err != nil {
				t.Fatal(err)
			}
		}
		start(n)
		c.vote(c.of(1).engine, n)
	}
	return c, w, start
}

// vote waits until all of n members have a vote.
func (c *crowd) vote(e *Engine, n int) {
	c.t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := e.Promote(c.t.Context(), func(uint64) bool { return true })
		votes := 0
		for _, m := range e.Known() {
			if !m.Learner && m.Name != "" {
				votes++
			}
		}
		if votes == n {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("there are not %d votes: %+v, %v", n, e.Known(), err)
		}
	}
}

type registerVerb int

const (
	read  registerVerb = iota
	write              // whatever was there
	add                // to what was there, which it answers
)

type registerOp struct {
	register int
	verb     registerVerb
	value    int64
}

type registerAnswer struct {
	value int64 // of a read, and what an addition found
	open  bool  // nobody was told it
}

// never is when an operation returns whose outcome nobody was told: it may happen at any time, or not at all.
const never = 1 << 60

const killed = "the leader is killed"

// A registerFault is something that happened to a leader, and when that was.
type registerFault struct {
	kind     string
	from, to int64
	did      bool // it killed one that led, or held something up
}

// during reports whether an operation was under way.
func (f registerFault) during(history []porcupine.Operation) bool {
	return slices.ContainsFunc(history, func(op porcupine.Operation) bool { return op.Call < f.to && op.Return > f.from })
}

// TestLinearizableMembers has clients write, add and read through three members whose leader is killed, and that are cut off from
// each other, in one direction or in both. Whatever the clients saw must be what registers would show. UNKAI_LINEAR=5m makes it longer.
func TestLinearizableMembers(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 15 s")
	}
	lasts := 12 * time.Second
	if text := os.Getenv("UNKAI_LINEAR"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c, w, start := threeMembers(t)
	began := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var clients sync.WaitGroup
	for n := range 6 {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(n)))
			open := map[int]bool{}
			for count := int64(1); time.Since(began) < lasts; count++ {
				one := c.of(1 + random.IntN(3))
				op := registerOp{verb: []registerVerb{read, read, write, add}[random.IntN(4)], value: int64(n)<<32 + count,
					register: 2*int(time.Since(began)/time.Second) + random.IntN(2)} // new ones all the time: an outcome that stays open is soon no matter
				if open[op.register] {
					op.verb = read // what it did last may happen yet; with few of those to each register all orders can be tried
				}
				if one == nil || op.verb != read && !one.state.Leads() && random.IntN(10) > 0 {
					time.Sleep(time.Millisecond)
					continue
				}
				call := time.Since(began).Nanoseconds()
				got, err := op.do(t, one.state)
				if err != nil && (op.verb == read || fault.From(err) != nil && fault.From(err).Code == "not-leading") {
					time.Sleep(time.Millisecond)
					continue // it surely did nothing
				}
				back := time.Since(began).Nanoseconds()
				if err != nil {
					back = never
					open[op.register] = true
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: len(history), Input: op, Call: call, Output: registerAnswer{got, err != nil}, Return: back})
				mu.Unlock()
				time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
			}
		})
	}
	var faults []registerFault
	random := rand.New(rand.NewPCG(seed, 99))
	// The first two are a kill and a cut of whoever leads.
	kinds := []int{0, 1 + random.IntN(3)}
	random.Shuffle(2, func(a, b int) { kinds[a], kinds[b] = kinds[b], kinds[a] })
	for time.Since(began) < lasts {
		leader := c.leader()
		a, b := leader%3+1, (leader+1)%3+1
		length := time.Duration(300+random.IntN(2200)) * time.Millisecond
		kind := random.IntN(5)
		if len(faults) < len(kinds) {
			kind = kinds[len(faults)]
		}
		f := registerFault{from: time.Since(began).Nanoseconds()}
		switch kind {
		case 0:
			f.kind = killed
			f.did = c.of(leader).state.Leads()
			c.crash(leader)
			f.to = time.Since(began).Nanoseconds()
			time.Sleep(length)
			start(leader)
		case 1:
			f.kind = "the leader is cut off"
			w.set([2]int{leader, a}, [2]int{leader, b}, [2]int{a, leader}, [2]int{b, leader})
		case 2:
			f.kind = "the leader hears nothing"
			w.set([2]int{a, leader}, [2]int{b, leader})
		case 3:
			f.kind = "the leader is not heard"
			w.set([2]int{leader, a}, [2]int{leader, b})
		case 4:
			f.kind = "one follower is cut off from the leader"
			w.set([2]int{leader, a}, [2]int{a, leader})
		}
		time.Sleep(length)
		if held := w.set(); kind != 0 {
			f.did, f.to = held > 0, time.Since(began).Nanoseconds()
		}
		faults = append(faults, f)
		time.Sleep(length / 2)
	}
	clients.Wait()
	verbs, open, counts := map[registerVerb]int{}, 0, map[string]int{}
	for _, op := range history {
		if op.Return == never {
			open++
		} else {
			verbs[op.Input.(registerOp).verb]++
		}
	}
	kills, cuts := 0, 0
	for _, f := range faults {
		counts[f.kind]++
		switch {
		case !f.did || !f.during(history):
		case f.kind == killed:
			kills++
		default:
			cuts++
		}
	}
	t.Logf("%d operations: %d reads, %d writes and %d additions answered, %d with an open outcome; %v; with operations under way %d kills and %d cuts",
		len(history), verbs[read], verbs[write], verbs[add], open, counts, kills, cuts)
	if len(history) < 200 || verbs[read] == 0 || verbs[write] == 0 || verbs[add] == 0 {
		t.Fatal("those are too few operations")
	}
	if kills == 0 || cuts == 0 {
		t.Errorf("seed %d: there was not both a leader's kill and a cut while operations were under way: %+v", seed, faults)
	}
	switch got := porcupine.CheckOperationsTimeout(registers, history, 25*time.Second+lasts); got {
	case porcupine.Illegal:
		t.Errorf("seed %d: the history is none of registers", seed)
	case porcupine.Unknown:
		t.Errorf("seed %d: the history was not checked to its end", seed)
	}
	c.put("after all") // and it goes on
}

// leader waits for one that leads.
func (c *crowd) leader() int {
	c.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		for n := 1; n <= 3; n++ {
			if one := c.of(n); one != nil && one.state.Leads() {
				return n
			}
		}
		if time.Now().After(end) {
			c.t.Fatal("nobody leads")
		}
	}
}

// do is one operation, through one controller.
func (op registerOp) do(t *testing.T, s *state.State) (got int64, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	id := resource.ID{14: byte(op.register >> 8), 15: byte(op.register)}
	if op.verb != read {
		err = s.Update(ctx, func(tx *state.Tx) error {
			value := op.value
			if got = 0; op.verb == add {
				if n, ok := notes.Find(tx, id); ok {
					if _, err := fmt.Sscan(n.Text, &got); err != nil {
						return err
					}
				}
				value += got
			}
			return notes.Put(tx, &note{Meta: resource.Meta{ID: id}, Text: fmt.Sprint(value)})
		})
		return got, err
	}
	if err := s.Confirm(ctx); err != nil {
		return 0, err
	}
	if n, ok := notes.Find(s.Latest(), id); ok {
		_, err = fmt.Sscan(n.Text, &got)
	}
	return got, err
}

// registers is what the history must look like: each by itself, and 0 at first.
var registers = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[int][]porcupine.Operation{}
		for _, op := range history {
			r := op.Input.(registerOp).register
			by[r] = append(by[r], op)
		}
		var parts [][]porcupine.Operation
		for _, part := range by {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return int64(0) },
	Step: func(state, input, output any) (bool, any) {
		was, op, got := state.(int64), input.(registerOp), output.(registerAnswer)
		switch op.verb {
		case write:
			return true, op.value
		case add:
			return got.open || got.value == was, was + op.value
		}
		return got.value == was, was
	},
}

// What the model is to find it finds: an update that was lost, one that happened twice, and a read of what is no more.
func TestRegistersModel(t *testing.T) {
	t.Parallel()
	op := func(verb registerVerb, value, got int64, call, back int64) porcupine.Operation {
		return porcupine.Operation{Input: registerOp{verb: verb, value: value}, Output: registerAnswer{got, back == never}, Call: call, Return: back}
	}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		want    bool
	}{
		"one after the other":               {[]porcupine.Operation{op(add, 1, 0, 0, 1), op(add, 2, 1, 2, 3), op(read, 0, 3, 4, 5)}, true},
		"at once":                           {[]porcupine.Operation{op(add, 1, 2, 0, 9), op(add, 2, 0, 0, 9), op(read, 0, 3, 10, 11)}, true},
		"an addition that was lost":         {[]porcupine.Operation{op(add, 1, 0, 0, 9), op(add, 2, 0, 0, 9)}, false},
		"an addition that happened twice":   {[]porcupine.Operation{op(add, 1, 0, 0, 1), op(read, 0, 2, 2, 3)}, false},
		"a read of what is no more":         {[]porcupine.Operation{op(write, 5, 0, 0, 1), op(write, 6, 0, 2, 3), op(read, 0, 5, 4, 5)}, false},
		"an open addition that happened":    {[]porcupine.Operation{op(add, 1, 0, 0, never), op(read, 0, 1, 4, 5)}, true},
		"an open addition that did not yet": {[]porcupine.Operation{op(add, 1, 0, 0, never), op(read, 0, 0, 4, 5)}, true},
		"an open addition that was undone":  {[]porcupine.Operation{op(add, 1, 0, 0, never), op(read, 0, 1, 4, 5), op(read, 0, 0, 6, 7)}, false},
	} {
		if got := porcupine.CheckOperations(registers, c.history); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
