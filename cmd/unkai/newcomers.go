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

// A newcomer is a machine that has joined and was never heard.
type newcomer struct {
	ID           resource.ID
	Joined, Ends time.Time // Ends: then it is none of the cloud's any more
}

func newcomers(tx *state.Tx) (all []newcomer) {
	for n := range host.Newcomers().Peek(tx, "", state.Range{}) {
		all = append(all, newcomer{n.ID, n.CreatedAt, n.Ends()})
	}
	return all
}

func printNewcomers(w io.Writer, all []newcomer) {
	for i, n := range all {
		if i == 0 {
			fmt.Fprintln(w, "\nJOINED, NEVER HEARD\tSINCE\tGOES")
		}
		if i == 20 {
			fmt.Fprintf(w, "and %d more\n", len(all)-i)
			return
		}
		fmt.Fprintf(w, "%s\t%s\t%s, or by unkai controller remove\n", n.ID, n.Joined.Format(time.RFC3339), n.Ends.Format(time.RFC3339))
	}
}

// memberCalled is the host of this name, or a newcomer by its ID.
func (c *cloud) memberCalled(name string) (resource.ID, error) {
	tx := c.state.Latest()
	if id, err := resource.ParseID(name); err == nil && host.Newcomers().Has(tx, id) {
		return id, nil
	}
	if h, ok := host.ByName(tx, name); ok {
		return h.ID, nil
	}
	return resource.ID{}, fault.Errorf(fault.NotFound, "no host has this name, and no newcomer this ID")
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
