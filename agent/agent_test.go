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
	has  map[resource.ID]string
	log  []string
	fail error
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
	m   *machine
	now time.Time
	dir string
}

func newRig(t *testing.T, m *machine, dir string) *rig {
	t.Helper()
	store, err := NewDirStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{m: m, now: time.Unix(1e9, 0), dir: dir}
	if r.Agent, err = New(store, r.now, m.handler("net"), m.handler("guest")); err != nil {
		t.Fatal(err)
	}
	return r
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
	r = newRig(t, m, dir)
	r.run(t)
	if m.has[netID] != `"net"` {
		t.Error("the network was not made")
	}
}

func TestAgentSparesStrangersUntilConfirmed(t *testing.T) {
	m := &machine{has: map[resource.ID]string{otherID: `"guest"`}}
	r := newRig(t, m, t.TempDir())
	r.Resync(t.Context(), r.now)
	r.run(t)
	if len(m.has) != 1 {
		t.Fatal("a guest was ended although no controller has said what is wanted")
	}
	r.Deliver(host.Delivery{Full: true}, r.now)
	r.Resync(t.Context(), r.now)
	r.run(t)
	if len(m.has) != 0 {
		t.Error("a guest that nobody wants is still there")
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
