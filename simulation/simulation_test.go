package simulation

import (
	"bytes"
	"io"
	"log/slog"
	"testing"
)

// TestSeedsReachWhatIsRare is that what only some seeds come to is come to by chance: what is never reached is not tested. Those before the first
// that has reached all of it often enough are run, of 300.
func TestSeedsReachWhatIsRare(t *testing.T) {
	if testing.Short() {
		t.Skip("it runs up to 300 seeds")
	}
	rare := []string{"the next to leave refused", "a start in maintenance refused", "a group parted", "a used token refused", "a newcomer came and went",
		"a machine joined as the host it was"}
	for _, t := range turns {
		for _, step := range []string{"before", "after"} {
			rare = append(rare, "the leader ended "+step+" it had written "+t.what)
		}
	}
	counts := map[string]int{}
	logger := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil))) // the faults are meant
	defer slog.SetDefault(logger)
	const often, most = 1, 300
	missing := func() (what []string) {
		for _, r := range rare {
			if counts[r] < often {
				what = append(what, r)
			}
		}
		return what
	}
	seeds := uint64(0)
	for ; seeds < most && len(missing()) > 0; seeds++ {
		result, err := Run(t.Context(), Options{Seed: 1000 + seeds, Steps: 600})
		if err != nil {
			t.Error(err)
		}
		for what, n := range result.Reached {
			counts[what] += n
		}
	}
	t.Logf("%d seeds reached %v", seeds, counts)
	if what := missing(); len(what) > 0 {
		t.Errorf("%d seeds have not reached this %d times: %q", seeds, often, what)
	}
}

func TestSeeds(t *testing.T) {
	for seed := range uint64(20) {
		if _, err := Run(t.Context(), Options{Seed: seed, Steps: 600}); err != nil {
			t.Error(err)
		}
	}
}

func TestSeedReproducesARun(t *testing.T) {
	var first, second bytes.Buffer
	a, err := Run(t.Context(), Options{Seed: 7, Steps: 1500, Trace: &first})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Run(t.Context(), Options{Seed: 7, Steps: 1500, Trace: &second})
	if err != nil {
		t.Fatal(err)
	}
	if a.Print != b.Print || first.String() != second.String() {
		t.Errorf("the same seed gave %s and %s", a.Print, b.Print)
	}
	if len(a.Faults) < 5 || a.Asked < 50 || a.Refused == a.Asked {
		t.Errorf("the run proves little: %+v", a)
	}
	if c, err := Run(t.Context(), Options{Seed: 8, Steps: 1500}); err == nil && c.Print == a.Print {
		t.Error("another seed gave the same run")
	}
}
