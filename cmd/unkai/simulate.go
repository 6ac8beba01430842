package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/simulation"
)

type simulateCommand struct {
	Seeds string `default:"1-100" help:"The seeds to run, A-B or one."`
	Rare  bool   `help:"Fail, too, if no seed came to something of what only some come to: what is never reached is not tested."`
	Hosts int    `default:"4" help:"Simulated hosts."`
	Steps int    `default:"1500" help:"Choices of a run before its faults stop."`
	Trace bool   `help:"Print each choice of each run."`

	whatIfOptions
}

// Run runs the seeds, says on standard error how far it is, and ends with one line, also of those that were run when it is interrupted; it fails when a promise was broken. With servers it tells what a cloud of them would do.
func (s *simulateCommand) Run(ctx context.Context) error {
	if s.Servers > 0 {
		return s.whatIf(ctx, s.Hosts, os.Stdout)
	}
	var first, last uint64
	if n, err := fmt.Sscanf(s.Seeds, "%d-%d", &first, &last); err != nil && n < 1 || n == 2 && last < first {
		return fmt.Errorf("--seeds %s: want A-B or one number", s.Seeds)
	} else if n == 1 {
		last = first
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the faults are meant
	began := time.Now()
	var mu sync.Mutex
	next, done, bad, asked, refused, faults := first, 0, 0, 0, 0, 0
	reached := map[string]int{}
	var latest []simulation.Result // to settle
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				mu.Lock()
				seed := next
				next++
				mu.Unlock()
				if seed > last || ctx.Err() != nil {
					return
				}
				var trace io.Writer
				if s.Trace {
					trace = os.Stdout
				}
				result, err := simulation.Run(ctx, simulation.Options{Seed: seed, Hosts: s.Hosts, Steps: s.Steps, Trace: trace})
				if ctx.Err() != nil {
					return // it did not come to its end
				}
				mu.Lock()
				done++
				asked += result.Asked
				refused += result.Refused
				latest = append(latest, result)
				slices.SortFunc(latest, func(a, b simulation.Result) int {
					return cmp.Or(cmp.Compare(b.Settled, a.Settled), cmp.Compare(a.Seed, b.Seed))
				})
				latest = latest[:min(len(latest), 3)]
				for what, n := range result.Reached {
					reached[what] += n
				}
				for _, n := range result.Faults {
					faults += n
				}
				if err != nil {
					bad++
					fmt.Println(err)
				}
				mu.Unlock()
			}
		})
	}
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }()
	for progress := time.NewTicker(15 * time.Second); ; {
		select {
		case <-progress.C:
			mu.Lock()
			fmt.Fprintf(os.Stderr, "simulation: %d of %d seeds, %d failed; %v\n", done, last-first+1, bad, time.Since(began).Round(time.Second))
			mu.Unlock()
			continue
		case <-ended:
			progress.Stop()
		}
		break
	}
	if done == 0 {
		return ctx.Err()
	}
	for _, r := range latest {
		fmt.Printf("seed %d settled %v after its last fault: %s\n", r.Seed, r.Settled.Round(time.Second), r.For)
	}
	for _, what := range slices.Sorted(maps.Keys(reached)) {
		fmt.Printf("%6d times: %s\n", reached[what], what)
	}
	settled := latest[0].Settled
	fmt.Printf("simulation: seeds %d-%d, %d failed; %d requests (%d refused), %d faults, settled within %v of the last; %v\n",
		first, last, bad, asked, refused, faults, settled.Round(time.Second), time.Since(began).Round(time.Second))
	if ctx.Err() != nil {
		return fmt.Errorf("ended after %d of %d seeds", done, last-first+1)
	}
	if s.Rare {
		for _, what := range simulation.Rare() {
			if reached[what] == 0 {
				return fmt.Errorf("no seed came to this: %s", what)
			}
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d seeds failed: run one with --seeds N --trace", bad)
	}
	return nil
}
