package compute

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// explain says in words for the owner why no host was found: what was asked of one. Which of it ended the search is said only if that would have ended it
// whatever others have; how many hosts there are, and how much of them is free, is nowhere in it.
func explain(why *operation.Why) string {
	switch {
	case why.Looked == 0:
		return "No valid host was found. There are no hosts yet."
	case len(why.Alone) > 0:
		return "No valid host was found. There is none that " + strings.Join(why.Alone, ", and ") + "."
	}
	return "No valid host was found. There is none at present that " + strings.Join(why.Asked, ", ") + ", all of it."
}

// explainAll says it in words for operators, without names of hosts.
func explainAll(why *operation.Why) string {
	var parts []string
	for _, r := range why.Removed {
		parts = append(parts, fmt.Sprintf("%d of %d were left out because none of them %s", r.Count, why.Looked, r.Constraint))
	}
	text := "No valid host was found."
	if why.Nearest != "" {
		text += " " + why.Nearest
	}
	if len(parts) > 0 {
		text += " Of the hosts, " + strings.Join(parts, "; ") + "."
	}
	return text
}

// An unplaced is the error of a placement that found no host. As a fault it says to operators all there is to say, to others what is theirs to know.
type unplaced struct {
	fault *fault.Error
	why   *operation.Why
}

func (e *unplaced) Error() string { return e.fault.Message }
func (e *unplaced) Unwrap() error { return e.fault }

func noHost(ctx context.Context, why *operation.Why) error {
	text := explain(why)
	if identity.ActorOf(ctx).Admin() {
		text = explainAll(why)
	}
	return &unplaced{fault.Errorf(fault.Exhausted, "%s", text).WithCode("no-host"), why}
}

// forOwner is what of an error's message the owner of the thing may read, whoever it was made for.
func forOwner(err error) string {
	if e := (*unplaced)(nil); errors.As(err, &e) {
		return explain(e.why)
	}
	return fault.From(err).Message
}
