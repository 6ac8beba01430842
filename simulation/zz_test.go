package simulation

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

func TestZZ(t *testing.T) {
	from, _ := strconv.Atoi(os.Getenv("FROM"))
	to, _ := strconv.Atoi(os.Getenv("TO"))
	if to == 0 {
		t.Skip()
	}
	sum := map[string]int{}
	bad := 0
	for s := from; s < to; s++ {
		r, err := Run(t.Context(), Options{Seed: uint64(s), Steps: 1500})
		if err != nil {
			bad++
			fmt.Println(err)
		}
		for k, n := range r.Faults {
			sum[k] += n
		}
	}
	fmt.Println(bad, sum)
}
