package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// A said is what a host said of its wire in its sessions, one after the other.
type said struct {
	sync.Mutex
	mtus []int
	now  int
	away bool
}

func (s *said) SaysMTU() (int, bool) {
	s.Lock()
	defer s.Unlock()
	if len(s.mtus) == 0 {
		return 0, false
	}
	return s.mtus[len(s.mtus)-1], true
}

func (s *said) Again() {
	s.Lock()
	defer s.Unlock()
	s.mtus = append(s.mtus, s.now)
}

func (s *said) look() (int, error) {
	s.Lock()
	defer s.Unlock()
	if s.away {
		return 0, errors.New("no link of this machine has the address")
	}
	return s.now, nil
}

// TestAWireThatChangesIsTold in the midst of a session, once, and not for an address that is away for a moment.
func TestAWireThatChangesIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &said{now: 1500}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			sayWire(ctx, s, s.look)
		}()
		is := func(mtu int, away bool, want ...int) {
			t.Helper()
			s.Lock()
			s.now, s.away = mtu, away
			s.Unlock()
			time.Sleep(3 * lookAtWire)
			s.Lock()
			defer s.Unlock()
			if !slices.Equal(s.mtus, want) {
				t.Errorf("it has said %v, not %v", s.mtus, want)
			}
		}
		is(1500, false) // before there was a session
		s.Again()
		is(1500, false, 1500)
		is(1400, false, 1500, 1400)
		is(0, true, 1500, 1400)
		is(1500, false, 1500, 1400, 1500)
		cancel()
		<-done
	})
}
