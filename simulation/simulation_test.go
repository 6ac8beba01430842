package simulation

import (
	"bytes"
	"testing"
)

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
