package hostlink

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// lookEvery is how often is looked whether a host's machine answers.
const lookEvery = 250 * time.Millisecond

// listen takes note, until the function that it gives is called, of whether the machine answers that a session is with.
func (s *Server) listen(ctx context.Context, r *http.Request, id resource.ID) (end func()) {
	l := lineOf(r)
	if l == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(lookEvery)
		defer tick.Stop()
		for mute := false; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if l.mute() == mute {
				continue
			}
			if err := s.observe(ctx, id, host.MuteReport(id, !mute)); err != nil {
				if ctx.Err() != nil {
					return
				}
				slog.WarnContext(ctx, "whether a host answers was not written down", "host", id, "mute", !mute, "err", err)
				tick.Reset(host.MuteAfter)
				continue
			}
			tick.Reset(lookEvery)
			mute = !mute
			slog.InfoContext(ctx, "a host's machine fell mute, or answers again", "host", id, "mute", mute)
		}
	}()
	return func() { cancel(); <-done }
}

// A line is the connection under a session. Whether the machine at its other end answers, the kernels find out between
// themselves: ours asks when there is nothing else to acknowledge, and theirs answers also while the agent there is busy, or gone.
type line struct{ raw syscall.RawConn }

type connKey struct{}

// KeepConn is an http.Server's ConnContext: sessions find their connections.
func KeepConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// lineOf is the line under a request; nil where there is none that can be asked.
func lineOf(r *http.Request) *line {
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	// The kernel is to go on asking: that a line is dead is concluded here, and in the end from host.Expect.
	if tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: int(host.Expect / time.Second)}) != nil {
		return nil
	}
	return &line{raw}
}

// mute reports whether the other machine owes an answer for longer than host.MuteAfter.
func (l *line) mute() bool {
	var info *unix.TCPInfo
	var err error
	if l.raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil || err != nil {
		return false // it was closed: by someone, so that there is somebody
	}
	return owes(info)
}

// owes reports whether a connection's other end should have answered. While nothing is under way and something is to be sent, the agent
// there has no room for more: its machine is asked ever less often, and owes nothing.
func owes(info *unix.TCPInfo) bool {
	full := info.Unacked == 0 && info.Notsent_bytes > 0
	return !full && time.Duration(info.Last_ack_recv)*time.Millisecond > host.MuteAfter
}
