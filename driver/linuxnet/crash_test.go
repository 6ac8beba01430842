package linuxnet

import (
	"bufio"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/core/network"
)

// A crashPlan is what a process that is going to be killed does over and over.
type crashPlan struct {
	Options  Options
	Segments []network.Segment
	Filter   network.Filter
	Ports    []network.Attachment
	Gateway  network.Gateway
}

func (p crashPlan) ensure(ctx context.Context, d *Driver) error {
	if err := d.EnsureGateway(ctx, p.Gateway); err != nil {
		return err
	}
	for _, segment := range p.Segments {
		if err := d.EnsureSegment(ctx, segment); err != nil {
			return err
		}
	}
	for _, port := range p.Ports {
		if _, err := d.EnsureAttachment(ctx, port); err != nil {
			return err
		}
	}
	return d.EnsureFilter(ctx, p.Filter)
}

func removePresent(ctx context.Context, d *Driver) error {
	things, err := d.Present(ctx)
	if err != nil {
		return err
	}
	for _, thing := range things {
		if err := d.Remove(ctx, thing); err != nil {
			return err
		}
	}
	return nil
}

const crashVariable = "UNKAI_LINUXNET_CRASH"

// TestMain is also the process that TestKill kills.
func TestMain(m *testing.M) {
	text := os.Getenv(crashVariable)
	if text == "" {
		os.Exit(m.Run())
	}
	var plan crashPlan
	if err := json.Unmarshal([]byte(text), &plan); err != nil {
		panic(err)
	}
	d, err := New(plan.Options)
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("begun\n")
	for {
		if err := plan.ensure(context.Background(), d); err != nil {
			panic(err)
		}
		if err := removePresent(context.Background(), d); err != nil {
			panic(err)
		}
	}
}

// TestKill kills a driver at any instant; the next one makes everything right
// and can take everything away.
func TestKill(t *testing.T) {
	i := newInternet(t)
	ctx := context.Background()
	first, other := newTenant(100), second(101)
	open := outgoing(rule(true, false), rule(true, true))
	plan := crashPlan{
		Options: i.options, Segments: []network.Segment{i.external, first.segment, other.segment}, Filter: open,
		Ports:   []network.Attachment{first.port(open.ID), move(other.port(open.ID))},
		Gateway: i.router("172.24.4.10/24", "fa:16:3e:11:00:01", first, other),
	}
	plan.Options.Log = nil
	plan.Gateway.Floating = []network.Floating{floating("172.24.4.20", "10.5.0.11")}
	text, err := json.Marshal(plan)
	ok(t, err)
	for round := range 12 {
		ok(t, i.Close())
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), crashVariable+"="+string(text))
		cmd.Stderr = os.Stderr
		out := must(cmd.StdoutPipe())(t)
		ok(t, cmd.Start())
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("the process to be killed did not begin: %v", err)
		}
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		ok(t, cmd.Process.Kill())
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("the process ended by itself: %v", err)
		}
		i.open()
		if round%2 == 0 {
			ok(t, plan.ensure(ctx, i.Driver))
			if round%4 == 0 {
				works(t, i, plan)
			}
		}
		ok(t, removePresent(ctx, i.Driver))
		left := must(i.Present(ctx))(t)
		names := must(namespaces(i.options.Prefix + "-"))(t)
		if len(left) != 0 || len(names) != 1 {
			t.Fatalf("round %d left %v and %v", round, left, names)
		}
	}
}

// works checks that guests reach each other and the world.
func works(t *testing.T, i *internet, plan crashPlan) {
	t.Helper()
	a, b := i.plug(plan.Ports[0], static(plan.Ports[0])...), i.plug(plan.Ports[1], static(plan.Ports[1])...)
	a.routeVia("10.5.0.1")
	b.routeVia("10.6.0.1")
	echo(t, a.namespace, 80)
	if have := reaches(b.namespace, "10.5.0.11:80"); have != "10.6.0.11" {
		t.Errorf("between networks: taken for %q", have)
	}
	if have := reaches(i.hostNS, "172.24.4.20:80"); have != "172.24.4.1" {
		t.Errorf("to the floating address: taken for %q", have)
	}
	if have := reaches(b.namespace, worldServer+":80"); have != "198.51.100.9" {
		t.Errorf("to the world: taken for %q", have)
	}
}
