package host

import (
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

// What follows travels between a host and a controller, as JSON.

// A JoinRequest asks to become a host.
type JoinRequest struct {
	Token   string
	Request []byte       // certificate request, DER
	Speaks  release.Span `json:",omitzero"`
	// What the machine is about to say of itself, as far as it knows that before it is a host: so it is told before the token is used up if it
	// would be refused. An agent of the release before does not say it.
	Says *Hello `json:",omitempty"`
}

// Compatible refuses whoever is of a release too far from this one.
func Compatible(speaks release.Span) error {
	if err := release.Own.Meets(speaks); err != nil {
		return fault.Errorf(fault.Conflict, "The controller's release and the machine's do not work together: the one works at levels %s, the other at %s. "+
			"Upgrade one release at a time.", release.Own, speaks.OrFirst()).WithCode("release-too-far")
	}
	return nil
}

// A JoinAnswer lets a machine be a host.
type JoinAnswer struct {
	Host        resource.ID
	Certificate []byte // DER
	Authority   []byte // PEM
}

// A Message is one line of a session. An empty one says only that the controller lives.
type Message struct {
	Delivery *Delivery `json:",omitempty"`
	Call     *Call     `json:",omitempty"`
	// Where the cloud's controllers are, in a session's first line and whenever that changes.
	Controllers []string `json:",omitempty"`
	// What this controller's release speaks, in a session's first line.
	Speaks release.Span `json:",omitzero"`
}

// A Call asks the host to connect, for something that is a stream of bytes.
type Call struct {
	ID    string
	Kind  string // one of those below, or a kind of console
	Guest resource.ID
	Max   int    // bytes of a log
	At    string `json:",omitempty"` // where the controller is that waits for it, when it is not the session's
	Where string `json:",omitempty"` // another host takes guests in
}

// Kinds of calls that are answered once.
const (
	ConsoleLogCall = "console-log"
	WeighCall      = "weigh" // since level 2
)
