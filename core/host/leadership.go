package host

import (
	"context"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A leadership is that a controller began to lead, at its creation. Those of a day are kept, for whoever wants to know how
// often the lead changes.
type leadership struct {
	resource.Meta // its name is the controller's
}

var leaderships = state.NewTable("leadership",
	state.Since[leadership](2),
	state.Index("began", func(l *leadership) state.Key { return state.KeyOf(l.CreatedAt) }))

const (
	keepLeaderships = 24 * time.Hour
	mostLeaderships = 500
)

// Led records that a controller leads from now on.
func Led(ctx context.Context, s *state.State, controller string) error {
	return s.Update(ctx, func(tx *state.Tx) error {
		ids := leaderships.IDs(tx, "began", "")
		for n, id := range ids {
			l, ok := leaderships.PeekOne(tx, id)
			if ok && tx.Now().Sub(l.CreatedAt) <= keepLeaderships && len(ids)-n < mostLeaderships {
				break
			}
			if err := leaderships.Delete(tx, id); err != nil {
				return err
			}
		}
		return leaderships.Put(tx, &leadership{resource.Meta{ID: tx.NewID(), Name: controller}})
	})
}

// Leads is how often a controller has begun to lead since a time, and which did last.
func Leads(tx *state.Tx, since time.Time) (n int, last string) {
	for l := range leaderships.Peek(tx, "began", state.Range{Reverse: true}) {
		if l.CreatedAt.Before(since) {
			break
		}
		if n++; n == 1 {
			last = l.Name
		}
	}
	return n, last
}
