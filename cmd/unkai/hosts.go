package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A hostDetail is what `unkai host show` shows.
type hostDetail struct {
	hostHealth
	ID       resource.ID
	Joined   time.Time   `json:",omitzero"` // of a machine that is no host yet: little else is known of it
	Reason   string      `json:",omitempty"`
	Watchdog bool        // enforces its lease
	Fencing  string      `json:",omitempty"` // how it is switched off
	Trouble  string      `json:",omitempty"` // with that
	DeadBy   string      `json:",omitempty"` // how that is known
	Phase    string      `json:",omitempty"` // of its maintenance
	Ratios   host.Ratios `json:",omitzero"`  // how much more than it has it may promise, of processors, memory and disk
	Left     []hostLeft  `json:",omitempty"` // that could not be taken elsewhere
}

type hostLeft struct {
	ID        resource.ID
	Name, Why string
}

func healthOf(tx *state.Tx, m *host.Host) hostHealth {
	n, used := compute.Load(tx, m)
	routers, _ := network.Routers().Sum(tx, "host-load", state.KeyOf(m.ID))
	return hostHealth{Name: m.Name, Zone: m.Zone, Driver: m.Capacity.Driver, Version: m.Version, Speaks: m.Speaks.OrFirst(), Up: m.Up(), Disabled: m.Disabled, Maintenance: m.Maintenance, Dead: m.Dead(), Off: !m.Up() && !compute.Missed(tx, m),
		Lost: m.Lost, Mute: m.Mute, Away: m.Away, Disk: m.Disk, SharedDisk: m.SharedDisk, Clock: m.Clock, Routers: routers, Ahead: m.Ahead, Refused: m.Refused, Unfit: m.Unfit(tx), Isolating: m.Capacity.Isolating, Servers: n, UsedVCPUs: used[0], VCPUs: int64(m.Capacity.VCPUs),
		UsedMiB: used[1], MiB: int64(m.Capacity.MemoryMiB)}
}

func (c *cloud) detailOf(tx *state.Tx, m *host.Host) hostDetail {
	d := hostDetail{hostHealth: healthOf(tx, m), ID: m.ID, Reason: m.DisabledReason, Watchdog: m.Watchdog, Trouble: m.Fencing.Trouble, Ratios: c.compute.RatiosOf(tx, m)}
	switch m.Fencing.Driver {
	case "exec":
		d.Fencing = "exec " + m.Fencing.Program
	case "redfish":
		d.Fencing = "redfish " + m.Fencing.URL
	default:
		d.Fencing = m.Fencing.Driver
	}
	if m.Dead() {
		d.DeadBy = m.Fenced.How + " at " + m.Fenced.At.Format(time.RFC3339)
	}
	if m.Drain == nil {
		return d
	}
	d.Phase = "drained since " + m.Drain.Drained.Format(time.RFC3339)
	if !m.Drain.Over() {
		d.Phase = "draining"
		if op, err := operation.Get(tx, m.Drain.OperationID); err == nil {
			d.Phase = fmt.Sprintf("draining, %d %%; waiting for %s", op.Percent, op.WaitingFor)
		}
	}
	for _, l := range m.Drain.Left {
		left := hostLeft{ID: l.ID, Why: l.Why}
		if srv, ok := compute.Servers().PeekOne(tx, l.ID); ok {
			left.Name = srv.Name
		}
		d.Left = append(d.Left, left)
	}
	return d
}

// hostRoutes are the hosts' on the control socket.
func (c *cloud) hostRoutes(mux *http.ServeMux) {
	service := &host.Service{State: c.state}
	// on answers with what is to be shown of a host, after something was done to it.
	on := func(pattern string, do func(ctx context.Context, r *http.Request, h *host.Host) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			h, ok := host.ByName(c.state.Latest(), r.PathValue("name"))
			if !ok {
				http.Error(w, "no host has this name", http.StatusNotFound)
				return
			}
			answer, err := do(identity.Internal(r.Context()), r, h)
			if answer == nil && err == nil {
				tx := c.state.Latest()
				if h, ok = host.Find(tx, h.ID); ok {
					answer = c.detailOf(tx, h)
				}
			}
			answerControl(w, answer, err)
		})
	}
	mux.HandleFunc("GET /hosts", func(w http.ResponseWriter, r *http.Request) {
		tx, all := c.state.Latest(), []hostDetail{}
		for h := range host.Table().Peek(tx, "name", state.Range{}) {
			all = append(all, c.detailOf(tx, h))
		}
		for _, n := range newcomers(tx) {
			all = append(all, n.detail())
		}
		answerControl(w, all, nil)
	})
	mux.HandleFunc("GET /hosts/{name}", func(w http.ResponseWriter, r *http.Request) {
		tx := c.state.Latest()
		if h, ok := host.ByName(tx, r.PathValue("name")); ok {
			answerControl(w, c.detailOf(tx, h), nil)
		} else if n, ok := newcomerCalled(tx, r.PathValue("name")); ok {
			answerControl(w, n.detail(), nil)
		} else {
			http.Error(w, "no host has this name", http.StatusNotFound)
		}
	})
	on("POST /hosts/{name}/enable", func(ctx context.Context, _ *http.Request, h *host.Host) (any, error) {
		return nil, service.SetDisabled(ctx, h.ID, false, "")
	})
	on("POST /hosts/{name}/disable", func(ctx context.Context, r *http.Request, h *host.Host) (any, error) {
		return nil, service.SetDisabled(ctx, h.ID, true, r.FormValue("reason"))
	})
	on("POST /hosts/{name}/fenced", func(ctx context.Context, _ *http.Request, h *host.Host) (any, error) {
		_, err := service.Vouch(ctx, h.ID)
		return nil, err
	})
	on("POST /hosts/{name}/fencing", func(ctx context.Context, r *http.Request, h *host.Host) (any, error) {
		var f host.Fencing
		if err := json.NewDecoder(r.Body).Decode(&f); err != nil {
			return nil, err
		}
		_, err := service.SetFencing(ctx, h.ID, f)
		return nil, err
	})
	retirement := func(r *http.Request) (a compute.Retirement, err error) {
		err = json.NewDecoder(r.Body).Decode(&a)
		return a, err
	}
	on("POST /hosts/{name}/maintenance", func(ctx context.Context, r *http.Request, h *host.Host) (any, error) {
		a, err := retirement(r)
		if err == nil {
			_, err = c.compute.Retire(ctx, h.ID, a)
		}
		return nil, err
	})
	on("POST /hosts/{name}/maintenance/plan", func(ctx context.Context, r *http.Request, h *host.Host) (any, error) {
		a, err := retirement(r)
		if err != nil {
			return nil, err
		}
		return c.compute.ForecastRetirement(ctx, h.ID, a)
	})
	mux.HandleFunc("POST /keeping", func(w http.ResponseWriter, r *http.Request) {
		var said keepingSaid
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&said)
		k := host.KeepingOf(c.state.Latest())
		if err == nil && said != (keepingSaid{}) {
			var changed *host.Keeping
			if changed, err = service.SetKeeping(identity.Internal(r.Context()), said.apply); err == nil {
				k = *changed
			}
		}
		answerControl(w, k, err)
	})
}

type hostCommand struct {
	List        hostList        `cmd:"" help:"Show all hosts."`
	Show        hostShow        `cmd:"" help:"Show one host."`
	Maintenance hostMaintenance `cmd:"" help:"Take a host's guests elsewhere, and nothing new to it, until it is enabled again."`
	Enable      hostEnable      `cmd:"" help:"Let new servers on a host again; ends its maintenance."`
	Disable     hostDisable     `cmd:"" help:"Keep new servers off a host. Those on it run on."`
	Fencing     hostFencing     `cmd:"" help:"Say what makes sure that a lost host is off."`
	Fenced      hostFenced      `cmd:"" help:"Give your word that a lost host is off: its servers may then be started elsewhere."`
	Keeping     hostKeeping     `cmd:"" help:"Show, or change, how guests are kept alive in the whole cloud."`
}

type hostOption struct {
	dataOption
	Name string `arg:"" help:"The host's name."`
}

func (o *hostOption) path(verb string) string { return "/hosts/" + url.PathEscape(o.Name) + verb }

// say asks for something about the host, and shows what it is then.
func (o *hostOption) say(ctx context.Context, verb string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	var d hostDetail
	if err := askWith(ctx, o.Data, http.MethodPost, o.path(verb), text, &d); err != nil {
		return err
	}
	d.print()
	return nil
}

type hostList struct {
	dataOption
	JSON bool `help:"Print JSON."`
}

// Run lists the hosts.
func (l *hostList) Run(ctx context.Context) error {
	var all []hostDetail
	if err := ask(ctx, l.Data, http.MethodGet, "/hosts", &all); err != nil {
		return err
	}
	if l.JSON {
		return printJSON(all)
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOST\tZONE\tSTATE\tSERVERS\tVCPUS\tMEMORY MiB\tFENCED BY")
	for _, d := range all {
		if !d.Joined.IsZero() {
			fmt.Fprintf(t, "%s\t\t%s\n", strings.TrimSpace(d.ID.String()+" "+d.Name), d.how())
			continue
		}
		by := d.Fencing
		if d.Watchdog {
			by = strings.TrimPrefix(by+", lease", ", ")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d/%d\t%d/%d\t%s\n", d.Name, d.Zone, d.how(), d.Servers, d.UsedVCPUs, d.VCPUs, d.UsedMiB, d.MiB, by)
	}
	return t.Flush()
}

func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

type hostShow struct {
	hostOption
	JSON bool `help:"Print JSON."`
}

// Run shows a host.
func (s *hostShow) Run(ctx context.Context) error {
	var d hostDetail
	if err := ask(ctx, s.Data, http.MethodGet, s.path(""), &d); err != nil {
		return err
	}
	if s.JSON {
		return printJSON(d)
	}
	d.print()
	return nil
}

// how the host is, or why it is none yet, in words.
func (d *hostDetail) how() string {
	if d.Joined.IsZero() {
		return d.hostHealth.how()
	}
	n := newcomer{Refused: d.Refused}
	return "joined at " + d.Joined.Format(time.RFC3339) + ", " + n.why()
}

func (n *newcomer) detail() hostDetail {
	return hostDetail{hostHealth: hostHealth{Name: n.Name, Refused: n.Refused}, ID: n.ID, Joined: n.Joined}
}

func (d *hostDetail) print() {
	if !d.Joined.IsZero() {
		fmt.Printf("%s  %s  %s\n", d.Name, d.ID, d.how())
		return
	}
	fmt.Printf("%s  %s  zone %s  %s\n", d.Name, d.ID, d.Zone, d.how())
	for _, line := range [][2]string{{"reason", d.Reason}, {"dead", d.DeadBy}, {"fenced by", d.Fencing}, {"which fails", d.Trouble}, {"maintenance", d.Phase}} {
		if line[1] != "" {
			fmt.Printf("%-12s %s\n", line[0], line[1])
		}
	}
	if d.Watchdog {
		fmt.Printf("%-12s %s\n", "lease", "enforced by a watchdog")
	}
	fmt.Printf("%-12s %d, %d/%d processors, %d/%d MiB\n", "servers", d.Servers, d.UsedVCPUs, d.VCPUs, d.UsedMiB, d.MiB)
	if d.Ratios != (host.Ratios{}) {
		fmt.Printf("%-12s %s\n", "may promise", ratiosInWords(d.Ratios))
	}
	for _, l := range d.Left {
		fmt.Printf("stays        %s %s: %s\n", l.ID, l.Name, l.Why)
	}
}

type hostMaintenance struct {
	hostOption
	Plan   bool   `help:"Only tell what would become of each guest."`
	Stop   bool   `help:"Stop what cannot go elsewhere; it stays there, off."`
	Reason string `help:"Shown with the host." default:"maintenance"`
	AtOnce int    `help:"How many guests are on their way at any moment." default:"2"`
	Wait   bool   `help:"Return when the host is drained; fail if something runs on there."`
}

// Run begins a host's maintenance, or tells what it would do.
func (m *hostMaintenance) Run(ctx context.Context) error {
	asked := compute.Retirement{Reason: m.Reason, Stop: m.Stop, AtOnce: m.AtOnce}
	if m.Plan {
		return m.plan(ctx, asked)
	}
	if err := m.say(ctx, "/maintenance", asked); err != nil || !m.Wait {
		return err
	}
	for {
		var d hostDetail
		if err := ask(ctx, m.Data, http.MethodGet, m.path(""), &d); err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(d.Phase, "drained") && len(d.Left) > 0 && !m.Stop:
			d.print()
			return fmt.Errorf("%d servers could not be taken elsewhere", len(d.Left))
		case strings.HasPrefix(d.Phase, "drained"):
			d.print()
			return nil
		case d.Phase == "":
			return errors.New("its maintenance was ended by somebody else")
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (m *hostMaintenance) plan(ctx context.Context, asked compute.Retirement) error {
	text, err := json.Marshal(asked)
	if err != nil {
		return err
	}
	var all []compute.Leaving
	if err := askWith(ctx, m.Data, http.MethodPost, m.path("/maintenance/plan"), text, &all); err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVER\tNAME\tWAY\tTO\tTAKES\tPAUSE\tENDS BY ITSELF\tWHY NOT, OR HOW")
	alone := 0.0 // seconds, as far as an end is expected
	for _, l := range all {
		takes, pause, outcome := "", "", ""
		if f := l.Forecast; f != nil {
			takes, outcome = spanText(f.Seconds, 1, "s"), string(f.Outcome)
			alone += f.Seconds.Expected
			if f.Live {
				pause = spanText(f.PauseMs, 1000, "s")
			}
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", l.ServerID, l.Name, l.Way, l.To, takes, pause, outcome, l.Why+l.Note)
	}
	if err := t.Flush(); err != nil || alone == 0 {
		return err
	}
	fmt.Printf("one after the other: some %.0f s. Several at once share the wire. unkai move SERVER --plan says what a forecast rests on.\n", alone)
	return nil
}

type hostEnable struct{ hostOption }

// Run enables a host.
func (e *hostEnable) Run(ctx context.Context) error { return e.say(ctx, "/enable", nil) }

type hostDisable struct {
	hostOption
	Reason string `help:"Shown with the host."`
}

// Run disables a host.
func (d *hostDisable) Run(ctx context.Context) error {
	return d.say(ctx, "/disable?reason="+url.QueryEscape(d.Reason), nil)
}

type hostFenced struct {
	hostOption
	Sure bool `required:"" help:"Say that you have made sure. If the host runs on, so do its servers: twice."`
}

// Run takes an operator's word.
func (f *hostFenced) Run(ctx context.Context) error { return f.say(ctx, "/fenced", nil) }

type hostFencing struct {
	hostOption
	Exec         string `help:"A program in DIR/fence on each controller, which is called as PROGRAM off NAME and ends with code 0 once the host is surely off." xor:"by"`
	Redfish      string `help:"The system's address at its management controller, such as https://bmc/redfish/v1/Systems/1." xor:"by"`
	None         bool   `help:"Nothing does any more." xor:"by"`
	Username     string `help:"For Redfish."`
	PasswordFile string `help:"A file with the password." type:"existingfile"`
	Fingerprint  string `help:"SHA-256 of the certificate that it shows, in hex, if no known authority has signed it."`
}

// Run says how a host is fenced.
func (f *hostFencing) Run(ctx context.Context) error {
	said := host.Fencing{Program: f.Exec, URL: f.Redfish, Username: f.Username, Fingerprint: strings.ToLower(strings.ReplaceAll(f.Fingerprint, ":", ""))}
	switch {
	case f.Exec != "":
		said.Driver = "exec"
	case f.Redfish != "":
		said.Driver = "redfish"
	case !f.None:
		return errors.New("say what fences the host: --exec, --redfish or --none")
	}
	if f.PasswordFile != "" {
		text, err := os.ReadFile(f.PasswordFile)
		if err != nil {
			return err
		}
		said.Password = strings.TrimSpace(string(text))
	}
	return f.say(ctx, "/fencing", said)
}

// keepingSaid is what is to be otherwise.
type keepingSaid struct {
	Leases       *bool          `negatable:"" help:"Whether a lease that is over counts as a host's death, where a watchdog enforces it."`
	StormPercent *int           `help:"When more of the hosts than this are lost at once nothing is restarted by itself."`
	AtOnce       *int           `help:"How many servers are restarted elsewhere at once."`
	StayOff      *bool          `negatable:"" help:"Whether guests are left off when their host is back after a power failure."`
	StayCrashed  *bool          `negatable:"" help:"Whether crashed guests are left so."`
	Pack         *bool          `negatable:"" help:"Whether new servers fill one host after the other; otherwise they are spread. From 500 hosts on a sample is looked at, and those of the newest servers: a few may be filled at a time."`
	CPURatio     *float64       `name:"cpu-ratio" help:"How many processors the guests of a host may have for one that it has, such as 8; 0 for as by default. It moves nobody."`
	MemoryRatio  *float64       `help:"The same of memory: as much as there is is 1."`
	DiskRatio    *float64       `help:"The same of disk."`
	ShelvedStay  *time.Duration `help:"How long a shelved guest stays on its host, off, such as 1h: 0s for not at all, -1s for as long as nobody says otherwise."`
}

func (s *keepingSaid) apply(k *host.Keeping) {
	for _, b := range []struct{ to, said *bool }{{&k.Leases, s.Leases}, {&k.StayOff, s.StayOff}, {&k.StayCrashed, s.StayCrashed}, {&k.Pack, s.Pack}} {
		if b.said != nil {
			*b.to = *b.said
		}
	}
	for _, n := range []struct{ to, said *int }{{&k.StormPercent, s.StormPercent}, {&k.AtOnce, s.AtOnce}} {
		if n.said != nil {
			*n.to = *n.said
		}
	}
	for _, f := range []struct{ to, said *float64 }{{&k.CPURatio, s.CPURatio}, {&k.MemoryRatio, s.MemoryRatio}, {&k.DiskRatio, s.DiskRatio}} {
		if f.said != nil {
			*f.to = *f.said
		}
	}
	if s.ShelvedStay != nil {
		k.ShelvedStay = *s.ShelvedStay
	}
}

type hostKeeping struct {
	dataOption
	keepingSaid
}

// Run shows how guests are kept alive, and changes it before if something was said.
func (h *hostKeeping) Run(ctx context.Context) error {
	for of, said := range []struct {
		name  string
		ratio *float64
	}{{"cpu-ratio", h.CPURatio}, {"memory-ratio", h.MemoryRatio}, {"disk-ratio", h.DiskRatio}} {
		if said.ratio != nil && *said.ratio != 0 { // not a number, or one without an end, has no JSON
			if err := host.CheckRatio("--"+said.name, of, *said.ratio); err != nil {
				return err
			}
		}
	}
	text, err := json.Marshal(h.keepingSaid)
	if err != nil {
		return err
	}
	var k host.Keeping
	if err := askWith(ctx, h.Data, http.MethodPost, "/keeping", text, &k); err != nil {
		return err
	}
	fmt.Printf("leases count: %v\nstorm: above %d %% of the hosts\nrestarted elsewhere at once: %d\nleft off after their host's power failure: %v\nleft so when crashed: %v\nshelved guests stay on their hosts: %s\nservers fill one host after the other: %v\nhosts may promise, as long as no aggregate says otherwise: %s\n",
		k.Leases, k.StormPercent, k.AtOnce, k.StayOff, k.StayCrashed, stayOf(k.ShelvedStay), k.Pack, ratiosInWords(k.Ratios().Or(compute.DefaultRatios)))
	return nil
}

// ratiosInWords says how much more than it has a host may promise.
func ratiosInWords(r host.Ratios) string {
	return fmt.Sprintf("%v times its processors, %v times its memory, %v times its disk", r[0], r[1], r[2])
}

func stayOf(stay time.Duration) string {
	switch stay {
	case 0:
		return "not at all"
	case host.ShelvedForever:
		return "until somebody says otherwise"
	}
	return "for " + stay.String()
}
