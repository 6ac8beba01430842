package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
)

func TestWhatIfTable(t *testing.T) {
	asked := whatIfOptions{Servers: 75, Seed: 1, Racks: 5, HostSize: "4,8192,200", Flavor: "1,512,10", Fault: "rack:1", Elsewhere: true, Drain: "host-0002", Fit: "1,1024,10",
		AtOnce: 10, Boot: 10 * time.Second}
	var out bytes.Buffer
	if err := asked.whatIf(t.Context(), 5, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"75 servers", "least 94 %, median 94 %, most 94 %; 15, 15, 15 servers", "0 more on 0 hosts", "15 servers: 4 to 4 hosts in 4 racks, 11 stay", "11 stay: No valid host",
		"4 restarted elsewhere", "11 wait: No valid host"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, out.String())
		}
	}
	asked.Elsewhere = false
	out.Reset()
	if err := asked.whatIf(t.Context(), 5, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"nobody knows that they are dead", "by default: nothing is restarted", "0 restarted elsewhere", "15 wait: It is not restarted by itself."} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("by default it does not say %q:\n%s", want, out.String())
		}
	}
	asked.Memory = 2
	out.Reset()
	if err := asked.whatIf(t.Context(), 5, &out); err != nil {
		t.Fatal(err)
	}
	if want := "least 75 %, median 75 %, most 75 %; 15, 15, 15 servers"; !strings.Contains(out.String(), want) {
		t.Errorf("with twice the memory promised it does not say %q:\n%s", want, out.String())
	}
	for _, bad := range []string{"", "1", "1,2", "0,1,1", "1,2,3,4", "1,2,3x", "a,b,c"} {
		if s, err := sizeOf(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, s)
		}
	}
}

func TestCapacityTable(t *testing.T) {
	var out bytes.Buffer
	if err := printRoom(&out, []compute.ZoneRoom{{Zone: "nova", Hosts: 3, Open: 2, More: 17, Why: []compute.RoomEnds{{Constraint: "has the memory", Hosts: 2}, {Constraint: "can be heard", Hosts: 1}}}}); err != nil {
		t.Fatal(err)
	}
	if want := "nova  3      2     17    has the memory (2), can be heard (1)\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("it says %q", out.String())
	}
}

func TestCapacityOfARunningCloud(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud")
	r := start(t, dir, "--listen", "127.0.0.1:0")
	ask := []string{"capacity", "--data", dir, "--zone", "nova", "--flavor", "m1.small"}
	var out []byte
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline) && !strings.Contains(string(out), "128"); time.Sleep(50 * time.Millisecond) {
		out, _ = unkai(t, ask...).CombinedOutput() // until both hosts are there
	}
	if want := "nova  2      2     128   has the memory (2)\n"; !strings.HasSuffix(string(out), want) {
		t.Errorf("it says %s", out)
	}
	keeping := []string{"host", "keeping", "--data", dir}
	for _, bad := range []string{"NaN", "-1", "10.5", "Inf"} {
		refused(t, "memory-ratio must be a number above 0 and at most 10", append(keeping, "--memory-ratio="+bad)...)
	}
	if out, err := unkai(t, append(keeping, "--memory-ratio", "0.5")...).CombinedOutput(); err != nil || !strings.Contains(string(out), "8 times its processors, 0.5 times its memory, 1 times its disk") {
		t.Errorf("the policy is %s (%v)", out, err)
	}
	if out, _ = unkai(t, ask...).CombinedOutput(); !strings.HasSuffix(string(out), "nova  2      2     64    has the memory (2)\n") {
		t.Errorf("by half of the memory it says %s", out)
	}
	if out, err := unkai(t, "host", "show", "--data", dir, "sim-0001").CombinedOutput(); err != nil || !strings.Contains(string(out), "0.5 times its memory") {
		t.Errorf("the host shows as %s (%v)", out, err)
	}
	refused(t, "could not be found", "capacity", "--data", dir, "--flavor", "nothing")
	refused(t, "zone is not available", "capacity", "--data", dir, "--flavor", "m1.small", "--zone", "nowhere")
	r.stop(t)
}
