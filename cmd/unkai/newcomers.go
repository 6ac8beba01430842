package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A newcomer is a machine that has joined and is no host yet: it was never heard, or not let in.
type newcomer struct {
	ID           resource.ID
	Name         string       `json:",omitempty"` // as it calls itself; an agent of the release before says that no sooner than when it comes
	Joined, Ends time.Time    // Ends: then it is none of the cloud's any more
	Refused      host.Refusal `json:",omitzero"`
}

func newcomers(tx *state.Tx) (all []newcomer) {
	for n := range host.Newcomers().Peek(tx, "", state.Range{}) {
		all = append(all, newcomer{n.ID, n.Name, n.CreatedAt, n.Ends(), n.Refused})
	}
	return all
}

func printNewcomers(w io.Writer, all []newcomer) {
	for i, n := range all {
		if i == 0 {
			fmt.Fprintln(w, "\nJOINED, NO HOST YET\tNAME\tSINCE\tGOES\tWHY")
		}
		if i == 20 {
			fmt.Fprintf(w, "and %d more\n", len(all)-i)
			return
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s, or by unkai controller remove\t%s\n", n.ID, n.Name, n.Joined.Format(time.RFC3339), n.Ends.Format(time.RFC3339), n.why())
	}
}

// why it is no host, in words.
func (n *newcomer) why() string {
	if n.Refused == (host.Refusal{}) {
		return "never heard"
	}
	return refusedText(n.Refused)
}

func refusedText(r host.Refusal) string {
	return "refused since " + r.Since.Format(time.RFC3339) + ": " + r.Why
}

// newcomerCalled finds one by its ID, or by the name that it gives itself, if no other does.
func newcomerCalled(tx *state.Tx, name string) (found newcomer, ok bool) {
	many := 0
	for _, n := range newcomers(tx) {
		if n.ID.String() == name {
			return n, true
		}
		if n.Name == name && name != "" {
			found = n
			many++
		}
	}
	return found, many == 1
}

// memberCalled is the host of this name, or a newcomer by its ID or the name that it gives itself.
func (c *cloud) memberCalled(name string) (resource.ID, error) {
	tx := c.state.Latest()
	if id, err := resource.ParseID(name); err == nil && host.Newcomers().Has(tx, id) {
		return id, nil
	}
	if h, ok := host.ByName(tx, name); ok {
		return h.ID, nil
	}
	if n, ok := newcomerCalled(tx, name); ok {
		return n.ID, nil
	}
	return resource.ID{}, fault.Errorf(fault.NotFound, "no host has this name, and no newcomer this ID, or this name alone")
}

// joinToken makes a token with which a machine joins; as the host of a name, if one is given.
func (c *cloud) joinToken(ctx context.Context, valid time.Duration, only, as string) (string, error) {
	if as == "" {
		return c.authority.Token(ctx, valid, only)
	}
	h, ok := host.ByName(c.state.Latest(), as)
	switch {
	case !ok:
		return "", fault.Errorf(fault.NotFound, "no host is named %s", as)
	case only == host.ForControllers:
		return "", fault.Errorf(fault.Invalid, "A controller does not join as a host.")
	}
	return c.authority.TokenAs(identity.Internal(ctx), valid, h.ID)
}
