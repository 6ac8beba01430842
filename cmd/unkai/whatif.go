package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/simulation"
)

// whatIfOptions ask about a cloud that is not there.
type whatIfOptions struct {
	Servers   int           `help:"What if: place so many servers, and answer instead of running seeds."`
	Seed      uint64        `default:"1" help:"What if: of its choices."`
	Racks     int           `default:"1" help:"What if: the hosts are in so many racks, which are zones."`
	HostSize  string        `default:"32,131072,4000" placeholder:"VCPUS,MiB,GiB" help:"What if: what each host has."`
	Flavor    string        `default:"1,512,10" placeholder:"VCPUS,MiB,GiB" help:"What if: what each server asks for."`
	Spread    bool          `xor:"place" help:"What if: spread servers over the hosts, as is done anyway."`
	Pack      bool          `xor:"place" help:"What if: fill one host after the other."`
	CPU       float64       `name:"cpu-ratio" placeholder:"8" help:"What if: how many processors guests may have for one that a host has."`
	Memory    float64       `name:"memory-ratio" placeholder:"1" help:"What if: the same of memory."`
	Disk      float64       `name:"disk-ratio" placeholder:"1" help:"What if: the same of disk."`
	Elsewhere bool          `name:"restart-elsewhere" help:"What if: each server is to be restarted elsewhere, leases count, and each host has a watchdog. By default a cloud restarts nothing elsewhere."`
	Fault     string        `name:"faults" aliases:"fault" placeholder:"rack:K|host:NAME" help:"What if: this dies. What does it cost?"`
	Drain     string        `placeholder:"rack:K|NAME" help:"What if: this is to be emptied. Where do its servers go?"`
	Fit       string        `placeholder:"VCPUS,MiB,GiB" help:"What if: how many more of these have room?"`
	AtOnce    int           `default:"10" help:"What if: how many servers are restarted elsewhere at once."`
	Boot      time.Duration `default:"10s" help:"What if: how long a guest takes to start."`
	JSON      bool          `help:"What if: print JSON."`
}

func sizeOf(text string) (s simulation.Size, err error) {
	var rest string
	n, _ := fmt.Sscanf(text, "%d,%d,%d%s", &s.VCPUs, &s.MemoryMiB, &s.DiskGiB, &rest)
	if n != 3 || s.VCPUs < 1 || s.MemoryMiB < 1 || s.DiskGiB < 1 {
		return s, fmt.Errorf("%s: want VCPUS,MiB,GiB, such as 1,512,10", text)
	}
	return s, nil
}

func (o *whatIfOptions) whatIf(ctx context.Context, hosts int, out io.Writer) error {
	q := simulation.Question{Seed: o.Seed, Hosts: hosts, Racks: o.Racks, Servers: o.Servers, Pack: o.Pack, Ratios: host.Ratios{o.CPU, o.Memory, o.Disk}, Elsewhere: o.Elsewhere, Fault: o.Fault, Drain: o.Drain,
		AtOnce: o.AtOnce, Boot: o.Boot, Now: time.Now}
	var err error
	if q.Host, err = sizeOf(o.HostSize); err != nil {
		return err
	}
	if q.Flavor, err = sizeOf(o.Flavor); err != nil {
		return err
	}
	if o.Fit != "" {
		fit, err := sizeOf(o.Fit)
		if err != nil {
			return err
		}
		q.Fit = &fit
	}
	a, err := simulation.Ask(ctx, q)
	if err != nil {
		return err
	}
	if o.JSON {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		return e.Encode(a)
	}
	return printAnswer(out, a)
}

func printAnswer(out io.Writer, a *simulation.Answer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "hosts\t%d, stand-ins: no agents, networks or ports\n", a.Hosts)
	fmt.Fprintf(w, "placed\t%d servers, %.0f/s\n", a.Placed, a.PerSecond)
	if a.NoRoom != "" {
		fmt.Fprintf(w, "no more\t%s\n", a.NoRoom)
	}
	fmt.Fprintf(w, "full\tleast %.0f %%, median %.0f %%, most %.0f %%; %d, %d, %d servers on a host\n", a.FullPercent[0], a.FullPercent[1], a.FullPercent[2],
		a.PerHost[0], a.PerHost[1], a.PerHost[2])
	if a.Fit != nil {
		var total compute.ZoneRoom
		ends := map[string]int{}
		for _, z := range a.Fit {
			total.Open, total.More = total.Open+z.Open, total.More+z.More
			for _, why := range z.Why {
				ends[why.Constraint] += why.Hosts
			}
		}
		fmt.Fprintf(w, "fit\t%d more on %d hosts, in %d racks\n", total.More, total.Open, len(a.Fit))
		for _, constraint := range simulation.Sorted(ends) {
			fmt.Fprintf(w, "\tends on %d hosts because none then %s\n", ends[constraint], constraint)
		}
	}
	if d := a.Drain; d != nil {
		fmt.Fprintf(w, "drain\t%d hosts, %d servers: %d to %d hosts in %d racks, %d stay\n", d.Hosts, d.Servers, d.Servers-d.Stays(), d.ToHosts, len(d.To), d.Stays())
		for _, why := range simulation.Sorted(d.Stay) {
			fmt.Fprintf(w, "\t%d stay: %s\n", d.Stay[why], why)
		}
	}
	if c := a.Fault; c != nil {
		known := "nobody knows that they are dead"
		if c.Dead > 0 {
			known = fmt.Sprintf("known to be dead after %v", c.Dead)
		}
		fmt.Fprintf(w, "fault\t%d hosts, %d servers; %s\n", c.Hosts, c.Affected, known)
		if c.Elsewhere {
			fmt.Fprintln(w, "\twith --restart-elsewhere: each flavor has unkai:restart_elsewhere, leases count, and each host has a watchdog")
		} else {
			fmt.Fprintln(w, "\tas a cloud is by default: nothing is restarted elsewhere (--restart-elsewhere asks otherwise)")
		}
		fmt.Fprintf(w, "\t%d restarted elsewhere, the last after %v\n", c.Restarted, c.Last)
		if c.Storm {
			fmt.Fprintln(w, "\ttoo many hosts at once: none is taken for dead, and nothing restarted, until an operator says so (unkai host fenced)")
		}
		for _, why := range simulation.Sorted(c.NoRoom) {
			fmt.Fprintf(w, "\t%d wait: %s\n", c.NoRoom[why], why)
		}
	}
	return w.Flush()
}

type capacityCommand struct {
	dataOption
	Flavor string `required:"" help:"The flavor's name or ID."`
	Zone   string `help:"Only this zone."`
	JSON   bool   `help:"Print JSON."`
}

// Run tells how much room there is.
func (c *capacityCommand) Run(ctx context.Context) error {
	var all []compute.ZoneRoom
	if err := ask(ctx, c.Data, http.MethodGet, "/capacity?"+url.Values{"flavor": {c.Flavor}, "zone": {c.Zone}}.Encode(), &all); err != nil {
		return err
	}
	if c.JSON {
		return printJSON(all)
	}
	return printRoom(os.Stdout, all)
}

func printRoom(out io.Writer, all []compute.ZoneRoom) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ZONE\tHOSTS\tOPEN\tMORE\tENDS, FOR NO HOST THEN")
	for _, z := range all {
		var ends []string
		for _, why := range z.Why {
			ends = append(ends, fmt.Sprintf("%s (%d)", why.Constraint, why.Hosts))
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", z.Zone, z.Hosts, z.Open, z.More, strings.Join(ends, ", "))
	}
	return w.Flush()
}
