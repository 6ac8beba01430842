package computetest

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/compute"
)

func (s *suite) consoleLog() {
	consoler, ok := s.driver.(compute.Consoler)
	if !ok {
		s.Skip("not a Consoler")
	}
	want := s.Guest(s)
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if log, err := consoler.ConsoleLog(s.Context(), want.ID, 1000); err != nil || len(log) != 0 {
		s.Errorf("of a guest that never ran: %q, %v", log, err)
	}
	want.Power = compute.On
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	whole, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000)
	if err != nil || len(whole) == 0 {
		s.Fatalf("of a guest that booted: %q, %v", whole, err)
	}
	part, err := consoler.ConsoleLog(s.Context(), want.ID, 3)
	if err != nil || len(part) > 3 || !bytes.HasSuffix(whole, part) {
		s.Errorf("the last 3 bytes of %q: %q, %v", whole, part, err)
	}
	want.HardBoots++
	s.reachAs(want, compute.On)
	s.booted(want.ID)
	more, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000)
	if err != nil || !bytes.HasPrefix(more, whole) || len(more) <= len(whole) {
		s.Errorf("after a power-cycle: %q, %v; before: %q", more, err, whole)
	}
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if log, err := consoler.ConsoleLog(s.Context(), want.ID, 100_000); err != nil || !bytes.HasPrefix(log, more) {
		s.Errorf("off: %q, %v", log, err)
	}
}

func (s *suite) consoles() {
	consoler, ok := s.driver.(compute.Consoler)
	if !ok {
		s.Skip("not a Consoler")
	}
	want, _ := s.on()
	conn, err := consoler.Console(s.Context(), want.ID, "vnc")
	if err != nil {
		s.Fatalf("vnc: %v", err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(s.Patience))
	greeting := make([]byte, 12)
	if n, err := conn.Read(greeting); err != nil || !bytes.HasPrefix(greeting[:n], []byte("RFB 003.")) {
		s.Errorf("vnc: greeted with %q, %v", greeting[:n], err)
	}
	for range 2 { // a second one takes over from the first
		conn, err := consoler.Console(s.Context(), want.ID, "serial")
		if err != nil {
			s.Fatalf("serial: %v", err)
		}
		defer conn.Close()
	}
	if _, err := consoler.Console(s.Context(), want.ID, "telepathy"); !fault.Is(err, fault.Unsupported) {
		s.Errorf("of an unknown kind: %v", err)
	}
	want.Power = compute.Off
	s.reachAs(want, compute.Off)
	if _, err := consoler.Console(s.Context(), want.ID, "vnc"); !fault.Is(err, fault.Conflict) {
		s.Errorf("of a guest that is off: %v", err)
	}
	want, _ = s.on()
	open := map[string]net.Conn{}
	for _, kind := range []string{"vnc", "serial"} {
		if open[kind], err = consoler.Console(s.Context(), want.ID, kind); err != nil {
			s.Fatalf("%s: %v", kind, err)
		}
		defer open[kind].Close()
	}
	if err := s.driver.Remove(s.Context(), want.ID); err != nil {
		s.Fatal(err)
	}
	for kind, conn := range open {
		conn.SetReadDeadline(time.Now().Add(s.Patience))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			s.Errorf("%s: it is open still when its guest was taken away", kind)
		}
	}
}
