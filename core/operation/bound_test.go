package operation

import (
	"fmt"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// The past of a target is bounded, and what is under way is never forgotten.
func TestPastOfATargetIsBounded(t *testing.T) {
	s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	target := &resource.Meta{ID: resource.ID{1}, ProjectID: resource.ID{2}}
	var running resource.ID
	for i := range keepOfTarget * 2 {
		err := s.Update(t.Context(), func(tx *state.Tx) error {
			o, err := Begin(tx, fmt.Sprint("verb", i), "thing", target, &identity.Actor{}, time.Minute)
			if err != nil || i == 0 {
				running = o.ID
				return err
			}
			return End(tx, o, Succeeded, "")
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	tx := s.Latest()
	all := Of(tx, target.ID)
	if len(all) != keepOfTarget {
		t.Errorf("%d operations are kept", len(all))
	}
	if o := Active(tx, target.ID); o == nil || o.ID != running {
		t.Errorf("what is under way: %+v", o)
	}
	if past, _ := operations.Sum(tx, "past-count", state.KeyOf(target.ProjectID)); past != keepOfTarget-1 {
		t.Errorf("%d are counted as past", past)
	}
}
