package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestStatusShowsMuteHosts(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	h := health{Hosts: []hostHealth{{Name: "a", Up: true}, {Name: "b", Up: true, Mute: at, Routers: 2}, {Name: "c", Up: true, Mute: at}, {Name: "d", Lost: at}}}
	var out bytes.Buffer
	_ = h.print(&out) // that a host is lost is an error of its own
	for _, want := range []string{
		"hosts   3 up (2 mute), 1 lost\n",
		"up, mute since 2030-01-02T03:04:05Z: its machine answers nothing, so routers go out through others (2 cannot)",
		"up, mute since 2030-01-02T03:04:05Z: its machine answers nothing, so routers go out through others, not isolating",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
}

func TestStatusShowsHostsWhoseDisksFillOrWhoseClocksAreOff(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for want, m := range map[string]hostHealth{
		"up": {},
		"up, one of its disks has little room left, 15 % or less, since 2030-01-02T03:04:05Z":                                                            {Disk: host.Shortage{Room: host.Low, Since: at}},
		"up, the storage that it shares is nearly full, 5 % free or less, since 2030-01-02T03:04:05Z":                                                    {SharedDisk: host.Shortage{Room: host.Critical, Since: at}},
		"up, its clock is off: 5 min or more behind at 2030-01-02T03:04:05Z":                                                                             {Clock: host.ClockOff{By: -5 * time.Minute, Since: at}},
		"up, one of its disks is nearly full, 5 % free or less, since 2030-01-02T03:04:05Z, its clock is off: 1 h or more ahead at 2030-01-02T03:04:05Z": {Disk: host.Shortage{Room: host.Critical, Since: at}, Clock: host.ClockOff{By: time.Hour, Since: at}},
	} {
		m.Up, m.Isolating = true, true
		if got := m.how(); got != want {
			t.Errorf("it is %q, want %q", got, want)
		}
	}
}

// Its exit code is what a watchdog looks at.
func TestStatusFailsWhenSomethingNeedsSomebody(t *testing.T) {
	three := func(leads, answers bool) []controllerHealth {
		return []controllerHealth{{Name: "c1", Answers: true}, {Name: "c2", Leads: leads, Answers: true}, {Name: "c3", Answers: answers}, {Name: "https://c4:8703", Joining: true}}
	}
	for name, c := range map[string]struct {
		is   health
		want string
	}{
		"all is well, alone":        {health{Hosts: []hostHealth{{Name: "a", Up: true}}}, ""},
		"all is well, of three":     {health{Controllers: three(true, true)}, ""},
		"a warning":                 {health{Alerts: []openAlert{{Rule: "disk-filling", Severity: "warning"}}}, ""},
		"a critical alert":          {health{Alerts: []openAlert{{Rule: "disk-filling", Severity: "warning"}, {Rule: "store-full", Severity: "critical"}}}, "store-full"},
		"all answer and none leads": {health{Controllers: three(false, true)}, "no controller leads"},
		"one does not answer":       {health{Controllers: three(true, false)}, "c3"},
		"a host is lost":            {health{Hosts: []hostHealth{{Name: "a"}}}, "1 hosts"},
		"one is off on purpose":     {health{Hosts: []hostHealth{{Name: "a", Off: true, Maintenance: true}}}, ""},
		"nothing can be stored":     {health{Broken: "the disk is gone"}, "the disk is gone"},
	} {
		err := c.is.print(io.Discard)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestClocksOff(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(int64(ms)) }
	for _, c := range []struct{ before, other, after, off int }{{1000, 1500, 2000, 0}, {1000, 900, 2000, -100}, {1000, 2300, 2000, 300}} {
		if off := clocksOff(at(c.before), at(c.other), at(c.after)); off != time.Duration(c.off)*time.Millisecond {
			t.Errorf("%+v: %v", c, off)
		}
	}
}

// TestStatusShowsWhyAHostIsNotUsed: why a machine that has joined is no host, and why one that is up gets no new servers.
func TestStatusShowsWhyAHostIsNotUsed(t *testing.T) {
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	ids := []resource.ID{resource.NewID(at, nil), resource.NewID(at, nil)}
	h := health{Hosts: []hostHealth{{Name: "a", Driver: "sim", Up: true, Unfit: "Its wire is too small."}, {Name: "b", Driver: "sim", Lost: at, Refused: host.Refusal{Since: at, Why: "Its release is too far."}}},
		Newcomers: []newcomer{{ID: ids[0], Name: "c", Joined: at, Ends: at, Refused: host.Refusal{Since: at, Why: "Its address is taken."}}, {ID: ids[1], Joined: at, Ends: at}}}
	var out bytes.Buffer
	_ = h.print(&out) // that a host is lost is an error of its own
	for _, want := range []string{
		"up, gets no new servers: Its wire is too small.",
		"lost since 2030-01-02T03:04:05Z, refused since 2030-01-02T03:04:05Z: Its release is too far.",
		"or by unkai controller remove  refused since 2030-01-02T03:04:05Z: Its address is taken.\n",
		"or by unkai controller remove  never heard\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, &out)
		}
	}
	d := h.Newcomers[0].detail()
	if how := d.how(); how != "joined at 2030-01-02T03:04:05Z, refused since 2030-01-02T03:04:05Z: Its address is taken." {
		t.Errorf("a list says %q", how)
	}
}

// TestAnOperatorFindsWhoWasRefused by the name that it gives itself, as long as it is the only one.
func TestAnOperatorFindsWhoWasRefused(t *testing.T) {
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]resource.ID{}
	join := func(key, name, why string) {
		t.Helper()
		ids[key] = resource.NewID(time.Now(), nil)
		if err := st.Update(t.Context(), func(tx *state.Tx) error {
			n := &host.Newcomer{Meta: resource.Meta{ID: ids[key], Name: name}}
			if why != "" {
				n.Refused = host.Refusal{Since: tx.Now(), Why: why}
			}
			return host.Newcomers().Put(tx, n)
		}); err != nil {
			t.Fatal(err)
		}
	}
	join("one", "one", "Its address is taken.")
	join("two", "two", "")
	join("two again", "two", "")
	join("silent", "", "")
	if err := host.Arrive(t.Context(), st, resource.NewID(time.Now(), nil), host.Hello{Name: "up"}); err != nil {
		t.Fatal(err)
	}
	c := &cloud{state: st, compute: compute.New(st, compute.Config{})}
	mux := http.NewServeMux()
	c.hostRoutes(mux)
	for name, want := range map[string]string{"one": "Its address is taken.", ids["one"].String(): "Its address is taken.", ids["silent"].String(): ids["silent"].String(), "up": `"Up":true`,
		"two": "no host", "nobody": "no host"} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/hosts/"+name, nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %s", name, w.Body)
		}
	}
	for name, want := range map[string]resource.ID{"one": ids["one"], ids["two"].String(): ids["two"], "two": {}, "": {}} {
		if id, err := c.memberCalled(name); id != want || (err == nil) == want.IsZero() {
			t.Errorf("%q is %v, %v", name, id, err)
		}
	}
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/hosts", nil))
	if !strings.Contains(w.Body.String(), "Its address is taken.") {
		t.Errorf("the list is %s", w.Body)
	}
}
