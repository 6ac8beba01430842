package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

const (
	atRest     = 20 * time.Second // how long a cloud is watched that nobody asks for anything
	perSize    = 2000             // servers that are made at each size
	settleTime = 15 * time.Second // after a start, for the hosts' agents to have said what they are
)

// A size is what was seen with so many hosts.
type size struct {
	hosts, mib     int
	ready          time.Duration
	restPercent    float64 // of one processor
	perSecond      float64 // creates accepted
	p50, p99       time.Duration
	active         time.Duration // until all were
	spentPerServer time.Duration // of processors, agents and drivers included
}

// scale measures how the cost of a cloud grows with its hosts.
func (b *bench) scale() error {
	var seen []size
	for _, n := range b.sizes {
		s, err := b.sized(n)
		b.stop()
		if err != nil {
			return fmt.Errorf("%d hosts: %w", n, err)
		}
		seen = append(seen, s)
		b.note(fmt.Sprintf("%d hosts: ready, at rest", n), "", true, "%.1f s, %.1f %% of a processor, %d MiB", s.ready.Seconds(), s.restPercent, s.mib)
		b.note(fmt.Sprintf("  %d servers, 16 clients", perSize), "", true, "%.0f/s accepted, p50 %s, p99 %s, ACTIVE after %.1f s, %s of processors each",
			s.perSecond, ms(s.p50), ms(s.p99), s.active.Seconds(), ms(s.spentPerServer))
	}
	if len(seen) > 1 {
		least, most := seen[0], seen[len(seen)-1]
		times := most.spentPerServer.Seconds() / least.spentPerServer.Seconds()
		b.note(fmt.Sprintf("cost of a server among %d hosts, to that among %d", most.hosts, least.hosts), "< 2", times < 2, "%.1f", times)
	}
	decided, err := b.decisions()
	if err != nil {
		return err
	}
	if b.docs == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(b.docs, "scale.md"), []byte(scaleText(b.about, seen, decided)), 0o644)
}

func (b *bench) sized(hosts int) (s size, err error) {
	s.hosts = hosts
	c, err := b.fresh(hosts)
	if err != nil {
		return s, err
	}
	s.ready = c.ready
	l, err := c.prepare(true)
	if err != nil {
		return s, err
	}
	time.Sleep(settleTime)
	before, err := c.processorSeconds()
	if err != nil {
		return s, err
	}
	time.Sleep(atRest)
	after, err := c.processorSeconds()
	if err != nil {
		return s, err
	}
	s.restPercent = (after - before) / atRest.Seconds() * 100
	if s.mib, err = c.residentMiB(); err != nil {
		return s, err
	}
	began := time.Now()
	took, accepted, err := load(perSize, 16, func(n int) error { return c.create(l, fmt.Sprint("s", n), 1) })
	if err != nil {
		return s, err
	}
	if err := c.awaitActive(perSize, 5*time.Minute); err != nil {
		return s, err
	}
	s.active, s.perSecond = time.Since(began), perSize/accepted.Seconds()
	s.p50, s.p99 = took.at(0.5), took.at(0.99)
	spent, err := c.processorSeconds()
	s.spentPerServer = time.Duration((spent - after) / perSize * float64(time.Second))
	return s, err
}

// A decision is what Go's benchmark of placement says for so many hosts.
type decision struct {
	hosts   int
	ns, p99 float64
}

var benchmarkLine = regexp.MustCompile(`(?m)^BenchmarkPlace/(\d+)\S*\s+\d+\s+([\d.]+) ns/op\s+([\d.]+) p99-ns`)

// placement is the part that measures no more than decisions.
func (b *bench) placement() error {
	_, err := b.decisions()
	return err
}

// decisions measures placement alone: 20,000 servers are on the hosts, and each decision is explained.
func (b *bench) decisions() ([]decision, error) {
	out, err := exec.Command("go", "test", "./core/compute", "-run", "^$", "-bench", "^BenchmarkPlace$", "-cpu", "1").CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("measure placement: %w: %s", err, out)
	}
	var all []decision
	for _, m := range benchmarkLine.FindAllStringSubmatch(string(out), -1) {
		var d decision
		var err1, err2, err3 error
		d.hosts, err1 = strconv.Atoi(m[1])
		d.ns, err2 = strconv.ParseFloat(m[2], 64)
		d.p99, err3 = strconv.ParseFloat(m[3], 64)
		if err1 != nil || err2 != nil || err3 != nil {
			return nil, fmt.Errorf("not understood: %s", m[0])
		}
		all = append(all, d)
	}
	for _, d := range all {
		perSecond := 1e9 / d.ns
		b.note(fmt.Sprintf("decisions among %d hosts, one processor", d.hosts), ">= 5000/s, p99 < 5 ms", perSecond >= 5000 && d.p99 < 5e6,
			"%.0f/s, p99 %.2f ms", perSecond, d.p99/1e6)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("placement was not measured: %s", out)
	}
	return all, nil
}

// scaleText is docs/scale.md.
func scaleText(measured string, seen []size, decided []decision) string {
	var t strings.Builder
	t.WriteString("# How a cloud grows\n\nWritten by `go run ./bench -only scale -docs docs`, of " + measured + `.

The controller, the agents of all hosts and their simulated drivers are one process here, so that what a real
controller needs is less: the agents are most of it at rest. A host says that it lives every few seconds, whatever its guests do.

| hosts | ready | at rest, of one processor | memory | creates accepted, 16 clients | p50 | p99 | ` + strconv.Itoa(perSize) + ` ACTIVE after | processors per server |
|---|---|---|---|---|---|---|---|---|
`)
	for _, s := range seen {
		fmt.Fprintf(&t, "| %d | %.1f s | %.1f %% | %d MiB | %.0f/s | %s | %s | %.1f s | %s |\n",
			s.hosts, s.ready.Seconds(), s.restPercent, s.mib, s.perSecond, ms(s.p50), ms(s.p99), s.active.Seconds(), ms(s.spentPerServer))
	}
	t.WriteString("\n")
	plot(&t, "Memory, MiB", seen, func(s size) float64 { return float64(s.mib) })
	plot(&t, "At rest, % of one processor", seen, func(s size) float64 { return s.restPercent })
	plot(&t, "Creates accepted per second", seen, func(s size) float64 { return s.perSecond })
	t.WriteString(`Where a server goes is decided, and explained, by looking at every host as long as there are fewer than 500; of more, at least 250 are looked at, spread evenly from a
random one on, and all of them only when none of these fits. (Where hosts are filled one after the other also those of the newest 32 servers.) Placement alone, on one processor, with 20,000 servers on the hosts:

| hosts | decisions | p99 |
|---|---|---|
`)
	for _, d := range decided {
		fmt.Fprintf(&t, "| %d | %.0f/s | %.2f ms |\n", d.hosts, 1e9/d.ns, d.p99/1e6)
	}
	return t.String()
}

// plot draws one column against the hosts.
func plot(t *strings.Builder, title string, seen []size, of func(size) float64) {
	var x, y []string
	for _, s := range seen {
		x, y = append(x, strconv.Itoa(s.hosts)), append(y, strconv.FormatFloat(of(s), 'f', 1, 64))
	}
	fmt.Fprintf(t, "```mermaid\nxychart-beta\n    title %q\n    x-axis \"hosts\" [%s]\n    y-axis 0 --> %.0f\n    line [%s]\n```\n\n",
		title, strings.Join(x, ", "), highest(seen, of)*1.1+1, strings.Join(y, ", "))
}

func highest(seen []size, of func(size) float64) (most float64) {
	for _, s := range seen {
		most = max(most, of(s))
	}
	return most
}
