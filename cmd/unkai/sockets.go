package main

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sockets are the addresses that a process listens at, which it leaves to the one that goes on in its place: whoever connects
// meanwhile waits in the kernel and is not refused.
type sockets struct {
	mu        sync.Mutex
	inherited map[string]net.Listener // by the address as it was asked for; guarded by mu
	kept      map[string]*os.File     // our own way to each; guarded by mu
}

// socketsVariable names them in the environment: "address=descriptor", separated by commas.
const socketsVariable = "UNKAI_SOCKETS"

// inherit takes over what the process before left. Call it before anything is started that would inherit it, too.
func (s *sockets) inherit() {
	text := os.Getenv(socketsVariable)
	os.Unsetenv(socketsVariable)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inherited, s.kept = map[string]net.Listener{}, map[string]*os.File{}
	for entry := range strings.SplitSeq(text, ",") {
		address, number, ok := strings.Cut(entry, "=")
		fd, err := strconv.Atoi(number)
		if !ok || err != nil || fd < 3 {
			continue
		}
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), address)
		if l, err := net.FileListener(f); err == nil {
			s.inherited[address] = l
		}
		f.Close()
	}
}

// listen opens an address, or goes on at it.
func (s *sockets) listen(address string) (net.Listener, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.inherited[address]
	delete(s.inherited, address)
	if !ok {
		var err error
		if l, err = net.Listen("tcp", address); err != nil {
			return nil, err
		}
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("keep the socket at %s: %w", address, err)
	}
	if s.kept == nil {
		s.kept = map[string]*os.File{}
	}
	s.kept[address] = f
	return l, nil
}

// settled closes what the process before left and nobody took up: at another address, say.
func (s *sockets) settled() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for address, l := range s.inherited {
		l.Close()
		delete(s.inherited, address)
	}
}

// pass has the next program inherit the sockets, and gives what to say of them in its environment.
func (s *sockets) pass() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var entries []string
	for address, f := range s.kept {
		fd := int(f.Fd())
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return "", fmt.Errorf("pass the socket at %s on: %w", address, err)
		}
		entries = append(entries, address+"="+strconv.Itoa(fd))
	}
	return socketsVariable + "=" + strings.Join(entries, ","), nil
}
