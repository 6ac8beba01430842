package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
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
