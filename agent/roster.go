package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// A roster is what was last told of the cloud's hosts, as it was read.
type roster struct {
	text  json.RawMessage
	hosts host.Roster
}

// Admits refuses a host that the cloud does not have any more, or one of its machines in whose place another has joined, as far as this host was told.
// Whoever is to send a guest here, or to be sent one, is the cloud's: that can be told sooner than the roster. So no controller orders
// anything with a host that is removed. One of the release before tells no roster; whoever has a certificate is admitted then.
func (a *Agent) Admits(id resource.ID, machine int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, told := a.wants[host.RosterKey]
	if !told {
		return nil
	}
	if !bytes.Equal(a.roster.text, text) {
		r := roster{text: text}
		if err := json.Unmarshal(text, &r.hosts); err != nil {
			return fmt.Errorf("read which hosts there are: %w", err)
		}
		a.roster = r
	}
	present, known := a.roster.hosts[id]
	switch {
	case known && machine < present:
		return fmt.Errorf("another machine has joined as host %s since", id)
	case !known && !a.concerns(id):
		return fmt.Errorf("host %s is none of the cloud's, or no more", id)
	}
	return nil
}

// concerns reports whether a guest is to come from another host, or to go there. The caller holds mu.
func (a *Agent) concerns(id resource.ID) bool {
	name := id.String()
	for key, body := range a.wants {
		if key.Kind != "guest" || !bytes.Contains(body, []byte(name)) {
			continue
		}
		var want compute.Guest
		if json.Unmarshal(body, &want) != nil {
			continue
		}
		if want.Arrive != nil && want.Arrive.From == id || want.Leave != nil && strings.HasSuffix(want.Leave.Where, "/"+name) {
			return true
		}
	}
	return false
}

// RosterHandler calls a function when this host has been told which hosts there are.
func RosterHandler(told func()) Handler {
	return Handler{
		Kind: host.RosterKey.Kind,
		Ensure: func(context.Context, resource.ID, json.RawMessage) (any, time.Duration, error) {
			told()
			return nil, 0, nil
		},
		Remove:  func(context.Context, resource.ID) error { return nil },
		Present: func(context.Context) ([]resource.ID, error) { return nil, nil },
	}
}
