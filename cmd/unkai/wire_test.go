package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
)

func TestTheWireOfAnAddress(t *testing.T) {
	name, mtu, err := wireOf(netip.MustParseAddr("::ffff:127.0.0.1"))
	if err != nil || name != "lo" || mtu < 1500 {
		t.Errorf("loopback is %s with %d: %v", name, mtu, err)
	}
	if _, _, err := wireOf(netip.MustParseAddr("192.0.2.99")); err == nil {
		t.Error("an address that is nobody's has a link")
	}
}

func TestTheDoctorJudgesTheWire(t *testing.T) {
	for _, c := range []struct {
		mtu  int
		v6   bool
		well bool
		says string
	}{
		{1500, false, true, "at most 1450; an MTU of 1550"}, {1500, true, true, "at most 1430; an MTU of 1570"}, {1550, false, true, "at most 1500"},
		{1400, false, false, "at most 1350"}, {9000, true, true, "at most 8930"},
	} {
		f := judgeWire("eth0", c.mtu, c.v6)
		if f.well != c.well || !strings.Contains(f.say, c.says) {
			t.Errorf("of %d it says %v, %q", c.mtu, f.well, f.say)
		}
	}
	if f := (doctorCommand{Address: "127.0.0.1"}).wire(); f.well || !strings.Contains(f.say, "--address") {
		t.Errorf("of loopback it says %v, %q", f.well, f.say)
	}
}

// TestAMachineThatNobodyReachesDoesNotJoin: it is told before its token is used up, and before anything that it has is void.
func TestAMachineThatNobodyReachesDoesNotJoin(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, wantsDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"} {
		_, err := machineOptions{Name: "h", Address: address}.join(t.Context(), "https://127.0.0.1:1", "token", dir)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "--address") {
			t.Errorf("at %s: %v", address, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, wantsDir)); err != nil {
		t.Error(err)
	}
}
