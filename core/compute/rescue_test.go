package compute

import (
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// However many servers wait before it that find no room, each is looked at again and again, and the first each time.
func TestEachServerThatWaitsHasItsTurn(t *testing.T) {
	for _, n := range []int{0, 1, rescueLooks, rescueLooks + 1, 3*rescueLooks + 7, 10 * rescueLooks} {
		waiting := make([]*Server, n)
		for i := range waiting {
			waiting[i] = &Server{Meta: resource.Meta{ID: resource.NewID(time.Now(), nil)}}
		}
		looked := map[*Server]int{}
		steps := 2 * (n/rescueLooks + 1)
		now := time.Now()
		for range steps {
			chosen := turn(waiting, now)
			if len(chosen) > rescueLooks {
				t.Fatalf("of %d one step looks at %d", n, len(chosen))
			}
			for _, srv := range chosen {
				looked[srv]++
			}
			now = now.Add(rescueEvery)
		}
		if len(looked) != n {
			t.Errorf("of %d in %d steps %d were looked at", n, steps, len(looked))
		}
		if n > 0 && looked[waiting[0]] != steps {
			t.Errorf("of %d the first was looked at in %d of %d steps", n, looked[waiting[0]], steps)
		}
	}
}
