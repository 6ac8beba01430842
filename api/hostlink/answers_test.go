package hostlink

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/host"
)

func TestWhoOwesAnAnswer(t *testing.T) {
	late := uint32((host.MuteAfter + time.Second) / time.Millisecond)
	for name, c := range map[string]struct {
		info unix.TCPInfo
		want bool
	}{
		"it answered a moment ago":                       {unix.TCPInfo{Last_ack_recv: 900}, false},
		"it was asked and does not answer":               {unix.TCPInfo{Last_ack_recv: late}, true},
		"something was sent and it does not say it came": {unix.TCPInfo{Last_ack_recv: late, Unacked: 1, Notsent_bytes: 100}, true},
		"its agent reads nothing now":                    {unix.TCPInfo{Last_ack_recv: late, Notsent_bytes: 100}, false},
	} {
		if got := owes(&c.info); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
