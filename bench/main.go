// Command bench measures a whole cloud on simulated hosts: real HTTP on loopback, real etcd on
// disk. It builds what is here, starts it itself, bounds every load in count and time, and prints each figure
// beside the one that was asked for.
//
//	go run ./bench [-unkai another/unkai] [-only name,…] [-large 100000] [-guest /var/cache/unkai/guest] [-docs docs] [-hosts 100,5000]
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A measure is one line of the table.
type measure struct {
	name  string
	asked string
	seen  string
	met   bool
}

// A bench is one run: a cloud in a directory of its own, and the lines so far.
type bench struct {
	ctx     context.Context
	unkai   string
	version string // of what is measured
	about   string // what the figures are of, and where they are from
	dir     string
	large   int
	guest   string // the directory of the demo guest
	docs    string // where the table of the part "scale" is written; "" for nowhere
	sizes   []int  // hosts of that part's clouds
	cloud   *cloud
	lines   []measure
	only    map[string]bool
}

// parts in the order they run. The later ones fill the cloud.
var parts = []struct {
	name string
	run  func(*bench) error
}{
	{"start", (*bench).start},
	{"tokens", (*bench).tokens},
	{"images", (*bench).images},
	{"guests", (*bench).guests},
	{"overlay", (*bench).overlay},
	{"networks", (*bench).networks},
	{"creates", (*bench).creates},
	{"details", (*bench).details},
	{"thousand", (*bench).tenThousand},
	{"large", (*bench).hundredThousand},
	{"scale", (*bench).scale},
	{"decisions", (*bench).placement},
}

func main() {
	unkai := flag.String("unkai", "", "a binary to measure instead of what is built from what is here")
	only := flag.String("only", "", "parts to run, by commas: start, tokens, images, guests, overlay, networks, creates, details, thousand, large, scale, decisions")
	large := flag.Int("large", 100_000, "servers of the large cloud")
	guest := flag.String("guest", "/var/cache/unkai/guest", "where the demo guest is (make guest)")
	docs := flag.String("docs", "", "the directory in which the part scale writes scale.md")
	sizes := flag.String("hosts", "100,500,1000,2500,5000", "how many hosts each cloud of the part scale has")
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Minute)
	defer cancel()
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM) // what was made is taken away again
	defer stop()
	b := &bench{ctx: ctx, unkai: *unkai, large: *large, guest: *guest, docs: *docs, only: map[string]bool{}}
	for text := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "bench: -hosts %s: want numbers, by commas\n", *sizes)
			os.Exit(2)
		}
		b.sizes = append(b.sizes, n)
	}
	for name := range strings.SplitSeq(*only, ",") {
		if name != "" {
			b.only[name] = true
		}
	}
	if err := b.build(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if err := b.all(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// build makes what is measured, and asks it for its version: figures of a binary that was left here would be taken for those of
// the source beside it.
func (b *bench) build() error {
	if b.unkai == "" {
		b.unkai = "bin/unkai"
		cmd := exec.Command("make", "--no-print-directory", "build")
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("build %s: %w", b.unkai, err)
		}
	}
	text, err := exec.Command(b.unkai, "version").Output()
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", b.unkai, err)
	}
	b.version = strings.TrimSpace(string(text))
	return nil
}

func (b *bench) all() error {
	b.about = b.measured()
	fmt.Println(b.about)
	for _, p := range parts {
		if len(b.only) > 0 && !b.only[p.name] || len(b.only) == 0 && p.name == "decisions" { // scale measures them, too
			continue
		}
		err := p.run(b)
		b.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.print()
	return nil
}

// measured says what the figures are of, and where they are from.
func (b *bench) measured() string {
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(text), "\n") {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, "\t :"))
				break
			}
		}
	}
	kernel, err := exec.Command("uname", "-r").Output()
	if err != nil {
		kernel = []byte("unknown")
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		load = []byte("unknown")
	}
	return fmt.Sprintf("%s, on %d processors (%s), Linux %s, %s, load before %s", b.version, runtime.NumCPU(), model,
		strings.TrimSpace(string(kernel)), runtime.Version(), strings.TrimSpace(string(load)))
}

func (b *bench) note(name, asked string, met bool, format string, args ...any) {
	m := measure{name: name, asked: asked, met: met, seen: fmt.Sprintf(format, args...)}
	b.lines = append(b.lines, m)
	fmt.Println(m)
}

func (m measure) String() string {
	mark := "  "
	if !m.met {
		mark = "! "
	}
	return fmt.Sprintf("%s%-52s asked %-22s seen %s", mark, m.name, m.asked, m.seen)
}

func (b *bench) print() {
	missed := 0
	for _, m := range b.lines {
		if !m.met {
			missed++
		}
	}
	fmt.Printf("bench: %d figures, %d missed\n", len(b.lines), missed)
}
