package simulation

import (
	"bytes"
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// turns are what is written where a leader's end is most likely to leave something half done. What a run does there by itself is too rare.
var turns = []struct {
	what, kind string
	says       []byte // by what the record is known; nil: by being there
}{
	{"who leaves next", "host", []byte(`"Next":[`)},
	{"that a shelf is outdated", "server", []byte(`"Outdated":true`)},
	{"that a machine has joined", "joined-machine", nil},
	{"that a machine has joined as a host", "host", []byte(`"Machine":`)},
}

// An engine is one in memory that knows what is at a turn.
type engine struct {
	*state.Memory
	turned map[turn]bool // records of which it is said already
	now    string        // the turn that the commit under way takes; "" for none
}

type turn struct {
	what string
	id   resource.ID
}

func (e *engine) Commit(ctx context.Context, b state.Batch) error {
	e.now = ""
	for _, r := range slices.Concat(b.Earlier, b.Records) {
		for _, t := range turns {
			if r.Kind != t.kind {
				continue
			}
			at, says := turn{t.what, r.ID}, r.Value != nil && bytes.Contains(r.Value, t.says)
			if says && !e.turned[at] {
				e.now = t.what
			}
			if e.turned[at] = says; !says {
				delete(e.turned, at)
			}
		}
	}
	return e.Memory.Commit(ctx, b)
}

// Rare lists what only some seeds come to, as Result.Reached names it.
func Rare() []string {
	rare := []string{"the next to leave refused", "a start in maintenance refused", "a group parted", "a used token refused", "a newcomer came and went",
		"a machine joined as the host it was"}
	for _, t := range turns {
		for _, step := range []string{"before", "after"} {
			rare = append(rare, "the leader ended "+step+" it had written "+t.what)
		}
	}
	return rare
}
