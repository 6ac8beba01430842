package main

import "testing"

func TestGrowth(t *testing.T) {
	tests := map[string]struct {
		liveMiB uint64
		want    int
	}{
		"nothing is known yet":            {0, 100},
		"a small heap doubles":            {60, 100},
		"a heap as large as the headroom": {384, 100},
		"a large one grows by that":       {768, 50},
		"a very large one by a quarter":   {8192, 25},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			if got := growth(c.liveMiB << 20); got != c.want {
				t.Fatalf("%d MiB live: %d %%, want %d", c.liveMiB, got, c.want)
			}
		})
	}
}
