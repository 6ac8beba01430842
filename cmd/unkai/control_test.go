package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

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
