package agent

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// readOnly is a driver that cannot erase anything as long as err is there.
type readOnly struct {
	compute.Driver
	err error
}

func (d *readOnly) Erase(context.Context, compute.Erasure) error { return d.err }

// A host that tries in vain to erase something says so after a while, and goes on.
func TestAHostSaysThatItCannotErase(t *testing.T) {
	d := &readOnly{err: errors.New("read-only file system")}
	h := (&Guests{Driver: d}).Handlers()[1]
	id := resource.NewID(time.Now(), nil)
	body, err := json.Marshal(compute.Erasure{GuestID: id, Storage: "nas", Era: 7, Epoch: 3})
	if err != nil {
		t.Fatal(err)
	}
	rounds := func() {
		t.Helper()
		for n := 1; n <= inVain+1; n++ {
			seen, again, err := h.Ensure(t.Context(), id, body)
			says, _ := seen.(compute.Erased)
			if err == nil || again == 0 || (says == compute.Erased{Era: 7, Epoch: 3, Trouble: d.err.Error()}) != (n >= inVain) {
				t.Errorf("try %d: it says %+v, %v, and comes again in %v", n, seen, err, again)
			}
		}
	}
	rounds()
	if err := h.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	rounds() // when it is its turn again
	d.err = nil
	if seen, _, err := h.Ensure(t.Context(), id, body); err != nil || seen != (compute.Erased{Era: 7, Epoch: 3}) {
		t.Errorf("it says %+v, %v", seen, err)
	}
}
