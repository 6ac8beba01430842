package etcd

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A wire is what lies between three members: each is reached through it, and comes from an address of its own, so that what
// one says to another can be held up.
type wire struct {
	t    *testing.T
	mu   sync.Mutex
	cut  map[[2]int]bool // from, to; guarded by mu
	done chan struct{}
	all  sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	w := &wire{t: t, cut: map[[2]int]bool{}, done: make(chan struct{})}
	t.Cleanup(func() { close(w.done); w.all.Wait() })
	return w
}

func at(n int) string { return fmt.Sprintf("127.0.0.%d", 10+n) }

// to lets the others reach a member that listens at an address; it answers where.
func (w *wire) to(n int, listens string) string {
	l, err := net.Listen("tcp", at(n)+":0")
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
			from := int(conn.RemoteAddr().(*net.TCPAddr).IP.To4()[3]) - 10
			w.all.Go(func() { w.join(conn, from, n, listens) })
		}
	})
	return l.Addr().String()
}

func (w *wire) join(a net.Conn, from, to int, listens string) {
	defer a.Close()
	if !w.pass(from, to) {
		return
	}
	b, err := net.Dial("tcp", listens)
	if err != nil {
		return
	}
	defer b.Close()
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
	for {
		w.mu.Lock()
		cut := w.cut[[2]int{from, to}]
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

func (w *wire) set(pairs ...[2]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
	for _, p := range pairs {
		w.cut[p] = true
	}
}

// threeMembers are three controllers with a wire between them.
func threeMembers(t *testing.T) (*crowd, *wire, func(n int)) {
	c, w := newCrowd(t), newWire(t)
	listens, urls, members := map[int]string{}, map[int]string{}, map[string]string{}
	for n := 1; n <= 3; n++ {
		listens[n] = freeAddress(t)
		urls[n] = w.to(n, listens[n])
	}
	start := func(n int) {
		m := c.member(n, urls[n], nil)
		m.Listen, m.from = listens[n], at(n)
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

type registerOp struct {
	register int
	write    bool
	value    int64
}

// TestLinearizableMembers has clients write and read through three members whose leader is killed, and that are cut off from
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
			for count := int64(1); time.Since(began) < lasts; count++ {
				one := c.of(1 + random.IntN(3))
				op := registerOp{write: random.IntN(2) == 0, value: int64(n)<<32 + count,
					register: 2*int(time.Since(began)/time.Second) + random.IntN(2)} // new ones all the time: an outcome that stays open is soon no matter
				if one == nil || op.write && !one.state.Leads() && random.IntN(10) > 0 {
					time.Sleep(time.Millisecond)
					continue
				}
				call := time.Since(began).Nanoseconds()
				got, err := op.do(t, one.state)
				if err != nil && (!op.write || fault.From(err) != nil && fault.From(err).Code == "not-leading") {
					time.Sleep(time.Millisecond)
					continue // it surely did nothing
				}
				back := time.Since(began).Nanoseconds()
				if err != nil {
					back = 1 << 60 // it may happen at any time, or never
				}
				mu.Lock()
				history = append(history, porcupine.Operation{ClientId: len(history), Input: op, Call: call, Output: got, Return: back})
				mu.Unlock()
				time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
			}
		})
	}
	faults := map[string]int{}
	random := rand.New(rand.NewPCG(seed, 99))
	for time.Since(began) < lasts {
		leader := 1 + random.IntN(3)
		for n := 1; n <= 3; n++ {
			if one := c.of(n); one != nil && one.state.Leads() {
				leader = n
			}
		}
		a, b := leader%3+1, (leader+1)%3+1
		length := time.Duration(300+random.IntN(2200)) * time.Millisecond
		switch kind := random.IntN(5); kind {
		case 0:
			faults["the leader is killed"]++
			c.crash(leader)
			time.Sleep(length)
			start(leader)
		case 1:
			faults["the leader is cut off"]++
			w.set([2]int{leader, a}, [2]int{leader, b}, [2]int{a, leader}, [2]int{b, leader})
		case 2:
			faults["the leader hears nothing"]++
			w.set([2]int{a, leader}, [2]int{b, leader})
		case 3:
			faults["the leader is not heard"]++
			w.set([2]int{leader, a}, [2]int{leader, b})
		case 4:
			faults["one follower is cut off from the leader"]++
			w.set([2]int{leader, a}, [2]int{a, leader})
		}
		time.Sleep(length)
		w.set()
		time.Sleep(length / 2)
	}
	clients.Wait()
	writes, open := 0, 0
	for _, op := range history {
		if op.Input.(registerOp).write {
			writes++
		}
		if op.Return == 1<<60 {
			open++
		}
	}
	t.Logf("%d operations, %d of them writes, of which %d have an open outcome; %v", len(history), writes, open, faults)
	if len(history) < 200 {
		t.Fatalf("only %d operations", len(history))
	}
	if got := porcupine.CheckOperationsTimeout(registers, history, 25*time.Second); got == porcupine.Illegal {
		t.Errorf("seed %d: the history is none of registers", seed)
	} else if got == porcupine.Unknown {
		t.Logf("seed %d: the history was not checked to its end", seed)
	}
	c.put("after all") // and it goes on
}

// do is one operation, through one controller.
func (op registerOp) do(t *testing.T, s *state.State) (got int64, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	id := resource.ID{14: byte(op.register >> 8), 15: byte(op.register)}
	if op.write {
		return 0, s.Update(ctx, func(tx *state.Tx) error {
			return notes.Put(tx, &note{Meta: resource.Meta{ID: id}, Text: fmt.Sprint(op.value)})
		})
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
		if op := input.(registerOp); op.write {
			return true, op.value
		}
		return state.(int64) == output.(int64), state
	},
}
