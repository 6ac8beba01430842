package agent

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// machine is a fake of everything below an agent.
type machine struct {
	has    map[resource.ID]string
	halted map[resource.ID]bool
	log    []string
	fail   error
}

// guests are things that are somebody's.
func (m *machine) guests() Handler {
	h := m.handler("guest")
	h.Halt = func(_ context.Context, id resource.ID) (time.Duration, error) {
		m.log = append(m.log, "halt")
		if m.halted == nil {
			m.halted = map[resource.ID]bool{}
		}
		m.halted[id] = true
		return 0, m.fail
	}
	return h
}

func (m *machine) handler(kind string) Handler {
	return Handler{
		Kind: kind,
		Ensure: func(_ context.Context, id resource.ID, body json.RawMessage) (any, time.Duration, error) {
			m.log = append(m.log, kind)
			if m.fail != nil {
				return nil, 0, m.fail
			}
			m.has[id] = string(body)
			delete(m.halted, id)
			return map[string]string{"is": string(body)}, 0, nil
		},
		Remove: func(_ context.Context, id resource.ID) error {
			m.log = append(m.log, "-"+kind)
			if m.fail != nil {
				return m.fail
			}
			delete(m.has, id)
			return nil
		},
		Present: func(context.Context) ([]resource.ID, error) {
			var ids []resource.ID
			for id, body := range m.has {
				if body[1:2] == kind[:1] {
					ids = append(ids, id)
				}
			}
			return ids, nil
		},
	}
}

type rig struct {
	*Agent
	m     *machine
	now   time.Time
	store *FileStore
}

func newRig(t *testing.T, m *machine, dir string) *rig {
	t.Helper()
	r := &rig{m: m, now: time.Unix(1e9, 0)}
	r.open(t, dir)
	t.Cleanup(func() { r.store.Close() })
	return r
}

func (r *rig) open(t *testing.T, dir string) {
	t.Helper()
	var err error
	if r.store, err = OpenStore(dir); err != nil {
		t.Fatal(err)
	}
	if r.Agent, err = New(r.store, r.now, r.m.handler("net"), r.m.guests()); err != nil {
		t.Fatal(err)
	}
}

// restart is another agent on the same machine.
func (r *rig) restart(t *testing.T, dir string) {
	t.Helper()
	if err := r.store.Close(); err != nil {
		t.Fatal(err)
	}
	r.open(t, dir)
}

func (r *rig) deliver(t *testing.T, d host.Delivery) {
	t.Helper()
	if err := r.Deliver(d, r.now); err != nil {
		t.Fatal(err)
	}
	r.run(t)
}

func (r *rig) run(t *testing.T) {
	t.Helper()
	for n := 0; r.Step(t.Context(), func() time.Time { return r.now }); n++ {
		if n > 100 {
			t.Fatal("the agent does not come to rest")
		}
	}
}

func item(kind string, id resource.ID, body string) host.Item {
	i := host.Item{Key: host.Key{Kind: kind, ID: id}}
	if body != "" {
		i.Body = json.RawMessage(`"` + body + `"`)
	}
	return i
}

var netID, guestID, otherID = resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)

func TestAgentMakesWhatIsWanted(t *testing.T) {
	m := &machine{has: map[resource.ID]string{}}
	r := newRig(t, m, t.TempDir())
	r.Deliver(host.Delivery{Full: true, Items: []host.Item{item("guest", guestID, "guest"), item("net", netID, "net")}}, r.now)
	r.run(t)
	if !slices.Equal(m.log, []string{"net", "guest"}) {
		t.Errorf("it did %v: the network comes first", m.log)
	}
	reports := r.Reports(10)
	if len(reports) != 2 {
		t.Fatalf("reports: %+v", reports)
	}
	r.Sent(reports)
	r.Resync(t.Context(), r.now)
	r.run(t)
	if again := r.Reports(10); len(again) != 0 {
		t.Errorf("no news, but reports: %+v", again)
	}
	r.Deliver(host.Delivery{Items: []host.Item{item("guest", guestID, "")}}, r.now)
	r.run(t)
	if _, there := m.has[guestID]; there {
		t.Error("the guest was not taken away")
	}
	if gone := r.Reports(10); len(gone) != 1 || string(gone[0].Seen) != string(host.Gone) {
		t.Errorf("reports: %+v", gone)
	}
}

func TestAgentTakesAwayWhatItNeverHad(t *testing.T) {
	r := newRig(t, &machine{has: map[resource.ID]string{}}, t.TempDir())
	r.Deliver(host.Delivery{Full: true, Items: []host.Item{item("guest", guestID, "")}}, r.now)
	r.run(t)
	if gone := r.Reports(10); len(gone) != 1 || string(gone[0].Seen) != string(host.Gone) {
		t.Errorf("reports: %+v", gone)
	}
}

func TestAgentGoesOnAfterRestartWithoutController(t *testing.T) {
	m := &machine{has: map[resource.ID]string{}}
	dir := t.TempDir()
	r := newRig(t, m, dir)
	r.Deliver(host.Delivery{Full: true, Items: []host.Item{item("net", netID, "net")}}, r.now)
	// It dies before its first step; the next one makes the network, from its own disk.
	r.restart(t, dir)
	r.run(t)
	if m.has[netID] != `"net"` {
		t.Error("the network was not made")
	}
}

func TestAgentSparesStrangersUntilConfirmed(t *testing.T) {
	m := &machine{has: map[resource.ID]string{otherID: `"guest"`, netID: `"net"`}}
	r := newRig(t, m, t.TempDir())
	r.Resync(t.Context(), r.now)
	r.run(t)
	if len(m.has) != 2 || len(m.halted) != 0 {
		t.Fatal("a guest was ended although no controller has said what is wanted")
	}
	r.deliver(t, host.Delivery{Full: true})
	r.Resync(t.Context(), r.now)
	r.run(t)
	if _, there := m.has[netID]; there {
		t.Error("a network that nobody wants is still there")
	}
	if _, there := m.has[otherID]; !there || !m.halted[otherID] {
		t.Errorf("a guest that nobody wants: there %v, halted %v; want both", there, m.halted[otherID])
	}
}

// held gives what the agent reports as held.
func (r *rig) held(t *testing.T) map[resource.ID]*host.Holding {
	t.Helper()
	all := map[resource.ID]*host.Holding{}
	reports := r.Reports(100)
	for _, o := range reports {
		var report host.HeldReport
		if err := json.Unmarshal(o.Seen, &report); err != nil {
			t.Fatal(err)
		}
		if report.Held != nil {
			all[o.ID] = report.Held
		}
	}
	r.Sent(reports)
	return all
}

// A controller that was restored from a backup does not know what was made since.
func TestAgentKeepsWhatAControllerHasForgotten(t *testing.T) {
	m := &machine{has: map[resource.ID]string{}}
	dir := t.TempDir()
	r := newRig(t, m, dir)
	all := []host.Item{item("guest", guestID, "guest"), item("net", netID, "net"), item("guest", otherID, "guest")}
	r.deliver(t, host.Delivery{Full: true, Mark: host.Mark{Revision: 7}, Items: all})
	r.deliver(t, host.Delivery{Mark: host.Mark{Revision: 9}, Items: all[:1]})
	r.held(t)

	// Of an older state it hears nothing, not even after a restart.
	r.restart(t, dir)
	forgot := host.Delivery{Full: true, Mark: host.Mark{Revision: 8}, Items: all[1:2]}
	if err := r.Deliver(forgot, r.now); err == nil {
		t.Fatal("an older state was taken in")
	}
	r.run(t)
	if len(m.has) != 3 || len(m.halted) != 0 {
		t.Fatalf("the refused delivery did something: %v, %v", m.has, m.halted)
	}

	// Once an operator has said that it is meant, guests are halted, kept and reported.
	forgot.Mark = host.Mark{Era: 1, Revision: 2}
	r.deliver(t, forgot)
	for range 2 {
		if len(m.has) != 3 || len(m.halted) != 2 {
			t.Fatalf("there are %v, halted %v", m.has, m.halted)
		}
		held := r.held(t)
		if len(held) != 2 || !held[guestID].Since.Equal(r.now) || !held[guestID].Until.Equal(r.now.Add(KeepHeld)) {
			t.Fatalf("reported as held: %v", held)
		}
		r.restart(t, dir)
		m.halted = nil
		r.deliver(t, forgot)
	}

	// Somebody knows one of them after all; the other is ordered away.
	forgot.Items = append(forgot.Items, all[0], item("guest", otherID, ""))
	r.deliver(t, forgot)
	if _, there := m.has[otherID]; there || m.has[guestID] == "" || m.halted[guestID] {
		t.Errorf("there are %v, halted %v", m.has, m.halted)
	}
	reports := r.Reports(10)
	gone := slices.ContainsFunc(reports, func(o host.Observation) bool { return o.ID == otherID && string(o.Seen) == string(host.Gone) })
	if !gone {
		t.Errorf("reports: %+v", reports)
	}
	if kept, err := r.store.Load(); err != nil || len(kept.Held) != 0 {
		t.Errorf("still held: %v, %v", kept.Held, err)
	}
}

func TestWhatIsHeldGoesInTheEnd(t *testing.T) {
	m := &machine{has: map[resource.ID]string{}}
	r := newRig(t, m, t.TempDir())
	r.deliver(t, host.Delivery{Full: true, Items: []host.Item{item("guest", guestID, "guest")}})
	r.deliver(t, host.Delivery{Full: true})
	r.now = r.now.Add(KeepHeld - time.Second)
	r.run(t)
	if len(m.has) != 1 {
		t.Fatal("it went too soon")
	}
	r.now = r.now.Add(time.Second)
	r.run(t)
	if reports := r.Reports(10); len(m.has) != 0 || len(reports) != 1 || string(reports[0].Seen) != string(host.Gone) {
		t.Errorf("there are %v, reports %+v", m.has, reports)
	}
}

func TestAgentTriesAgain(t *testing.T) {
	m := &machine{has: map[resource.ID]string{}, fail: errors.New("not now")}
	r := newRig(t, m, t.TempDir())
	r.Deliver(host.Delivery{Full: true, Items: []host.Item{item("net", netID, "net")}}, r.now)
	r.run(t)
	m.fail = nil
	r.run(t)
	if len(m.has) != 0 {
		t.Error("it tried again at once")
	}
	r.now = r.now.Add(time.Second)
	r.run(t)
	if len(m.has) != 1 {
		t.Error("it did not try again")
	}
}

func TestReportsThatDidNotArriveComeAgain(t *testing.T) {
	r := newRig(t, &machine{has: map[resource.ID]string{}}, t.TempDir())
	r.Deliver(host.Delivery{Full: true, Items: []host.Item{item("net", netID, "n1")}}, r.now)
	r.run(t)
	lost := r.Reports(10)
	r.Deliver(host.Delivery{Items: []host.Item{item("net", netID, "n2")}}, r.now)
	r.run(t)
	r.Unsent(lost)
	reports := r.Reports(10)
	if len(reports) != 1 || string(reports[0].Seen) != `{"is":"\"n2\""}` {
		t.Errorf("reports: %+v", reports)
	}
}
