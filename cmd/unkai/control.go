package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/operation"
)

// The control socket is how an operator on the controller's own machine speaks to it. Whoever
// may open the socket owns the data directory, so nothing more is asked.
const controlSocket = "control.sock"

// A clientsAt is where clients reach a running cloud.
type clientsAt struct{ URL, HostsURL string }

// A health is what `unkai status` shows.
type health struct {
	Version  string
	Data     string
	At       clientsAt
	Revision int64
	Leads    bool
	Broken   string       `json:",omitempty"`
	Level    int          // of the cloud; see package release
	Speaks   release.Span // this controller's release
	Agent    *agentHealth `json:",omitempty"` // instead of all below, of an agent
	// In a cluster: every controller that is known, and which leads.
	Controllers []controllerHealth `json:",omitempty"`
	Store       state.Room
	Ahead       time.Duration `json:",omitempty"` // of the machine's clock, that the state's own is
	Hosts       []hostHealth
	Newcomers   []newcomer     `json:",omitempty"` // have joined, and were never heard, or not let in
	Servers     map[string]int // by stage
	Counts      map[string]int
	Running     []runningOperation // those that run for longest
	Held        []heldThing        // on hosts, and wanted by nobody
	Seconds     float64            // since the start
	Alerts      []openAlert
}

type hostHealth struct {
	Name, Zone, Driver string
	Version            string
	Speaks             release.Span
	Up, Disabled       bool
	Maintenance, Dead  bool          `json:",omitempty"`
	Off                bool          `json:",omitempty"` // it was emptied for its maintenance, and is not missed
	Lost               time.Time     `json:",omitzero"`
	Mute               time.Time     `json:",omitzero"`  // its machine answers nothing, and it is not lost yet
	Routers            int64         `json:",omitempty"` // that go out through it
	Away               host.Away     `json:",omitzero"`  // its shared storage
	Disk, SharedDisk   host.Shortage `json:",omitzero"`
	Clock              host.ClockOff `json:",omitzero"`
	Ahead              host.Mark     `json:",omitzero"`  // of a newer state, which it insists on
	Refused            host.Refusal  `json:",omitzero"`  // when it came last
	Unfit              string        `json:",omitempty"` // why it gets no new servers: its address or its wire does not do
	Isolating          bool
	Servers            int64
	UsedVCPUs, VCPUs   int64
	UsedMiB, MiB       int64
}

type controllerHealth struct {
	Name, Link, URL, Version string
	Speaks                   release.Span
	Leads                    bool
	Answers                  bool  // to the controller that was asked
	Behind                   int64 // changes, of the newest that any has
	Hosts                    int   // that have their sessions with it
	Joining                  bool  // it was let in, and is not here yet; the name is where it would be
}

type heldThing struct {
	Host, Kind string
	ID         resource.ID
	Ordered    bool      // away
	Until      time.Time `json:",omitzero"`
}

type runningOperation struct {
	Verb, Target, WaitingFor string
	Since                    time.Time
}

// openControl opens the control socket.
func openControl(dir string) (net.Listener, error) {
	path := filepath.Join(dir, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// serveControl answers on the control socket until ctx ends.
func (c *cloud) serveControl(ctx context.Context, l net.Listener, at clientsAt, s *seat) error {
	var h http.Handler = c.control(at)
	if c.cluster != nil {
		h = &relay.Front{Here: h, State: c.state, Leader: c.cluster.leader, Transport: c.cluster.transport, Operators: true,
			Reads: func(r *http.Request) bool { return r.Method == http.MethodGet }}
	}
	mux := http.NewServeMux()
	s.routes(mux)
	mux.Handle("/", h)
	return serve(ctx, l, mux)
}

// control answers operators.
func (c *cloud) control(at clientsAt) http.Handler {
	began := time.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		h := c.health()
		if c.cluster != nil {
			h.Controllers = c.cluster.controllers(r.Context())
		}
		h.At, h.Seconds = at, time.Since(began).Seconds()
		wire.WriteJSON(w, http.StatusOK, h)
	})
	mux.HandleFunc("GET /audit", func(w http.ResponseWriter, r *http.Request) {
		found, err := c.audit(r.Context())
		answerControl(w, found, err)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		valid, err := time.ParseDuration(r.FormValue("valid"))
		if err != nil || valid <= 0 {
			http.Error(w, "a token is valid for some time, such as 1h", http.StatusBadRequest)
			return
		}
		token, err := c.joinToken(r.Context(), valid, r.FormValue("for"), r.FormValue("as"))
		answerControl(w, token, err)
	})
	mux.HandleFunc("DELETE /hosts/{name}", func(w http.ResponseWriter, r *http.Request) {
		id, err := c.memberCalled(r.PathValue("name"))
		if err == nil {
			err = c.compute.DismissHost(identity.Internal(r.Context()), id)
		}
		answerControl(w, id, err)
	})
	mux.HandleFunc("DELETE /controllers/{name}", func(w http.ResponseWriter, r *http.Request) {
		answerControl(w, r.PathValue("name"), c.dismiss(identity.Internal(r.Context()), r.PathValue("name")))
	})
	mux.HandleFunc("POST /finalise", func(w http.ResponseWriter, r *http.Request) {
		f, err := c.finalise(r.Context())
		answerControl(w, f, err)
	})
	mux.HandleFunc("POST /restored", func(w http.ResponseWriter, r *http.Request) {
		if err := host.Restored(identity.Internal(r.Context()), c.state); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		wire.WriteJSON(w, http.StatusOK, host.MarkOf(c.state.Latest()))
	})
	mux.HandleFunc("POST /discard/{host}/{id}", func(w http.ResponseWriter, r *http.Request) {
		if err := c.discard(identity.Internal(r.Context()), r.PathValue("host"), r.PathValue("id")); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		wire.WriteJSON(w, http.StatusOK, "ordered")
	})
	c.hostRoutes(mux)
	c.moveRoutes(mux)
	mux.HandleFunc("GET /capacity", func(w http.ResponseWriter, r *http.Request) {
		found, err := c.compute.Room(identity.Internal(r.Context()), r.FormValue("flavor"), r.FormValue("zone"))
		answerControl(w, found, err)
	})
	c.alertRoutes(mux, at.URL)
	mux.HandleFunc("GET /backup", c.answerBackup)
	mux.HandleFunc("GET /support", func(w http.ResponseWriter, r *http.Request) { answerControl(w, c.support(r.Context()), nil) })
	mux.Handle("GET /metrics", c.metrics())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

// audit is everything that an auditor can find: in the state, and on this controller's disk.
func (c *cloud) audit(ctx context.Context) ([]audit.Finding, error) {
	found := append([]audit.Finding{}, audit.State(c.state.Latest())...)
	bytes, err := c.image.Audit(ctx)
	if len(bytes) > 0 {
		// What came or went while it looked is none: only what is still so a moment later.
		var again []string
		time.Sleep(500 * time.Millisecond)
		again, err = c.image.Audit(ctx)
		bytes = slices.DeleteFunc(bytes, func(what string) bool { return !slices.Contains(again, what) })
	}
	for _, what := range bytes {
		found = append(found, audit.Finding{Kind: "image-bytes", What: what})
	}
	return found, err
}

func answerControl(w http.ResponseWriter, v any, err error) {
	if err != nil {
		text := err.Error()
		if f := fault.From(err); f != nil {
			text = f.Message
		}
		http.Error(w, text, http.StatusInternalServerError)
		return
	}
	wire.WriteJSON(w, http.StatusOK, v)
}

// discard orders a host, by its name, to take away what it holds though nobody wants it.
func (c *cloud) discard(ctx context.Context, name, text string) error {
	h, ok := host.ByName(c.state.Latest(), name)
	if !ok {
		return fmt.Errorf("there is no host %s", name)
	}
	id, err := resource.ParseID(text)
	if err != nil {
		return err
	}
	return (&host.Service{State: c.state}).Discard(ctx, h.ID, id)
}

func (c *cloud) health() health {
	tx := c.state.Latest()
	h := health{Version: version, Level: state.LevelOf(tx), Speaks: release.Own, Data: c.dir, Revision: tx.Revision(), Store: c.state.Room(),
		Ahead: time.Until(c.state.Now()).Truncate(time.Second), Servers: map[string]int{}, Counts: map[string]int{}, Alerts: c.openAlerts(tx)}
	if err := c.state.Broken(); err != nil {
		h.Broken = err.Error()
	}
	h.Leads = c.state.Leads()
	for m := range host.Table().Peek(tx, "name", state.Range{}) {
		h.Hosts = append(h.Hosts, healthOf(tx, m))
	}
	h.Newcomers = newcomers(tx)
	for l := range host.Leftovers().Peek(tx, "thing", state.Range{}) {
		if m, ok := host.Table().PeekOne(tx, l.HostID); ok {
			h.Held = append(h.Held, heldThing{m.Name, l.Kind, l.ThingID, l.Ordered, l.Until})
		}
	}
	for s := range compute.Servers().Peek(tx, "", state.Range{}) {
		h.Servers[string(s.Stage())]++
	}
	h.Counts["images"] = image.Table().Len(tx)
	h.Counts["networks"] = network.Networks().Len(tx)
	h.Counts["ports"] = network.Ports().Len(tx)
	for o := range operation.Table().Peek(tx, "deadline", state.Range{}) {
		if len(h.Running) == 20 {
			break
		}
		h.Running = append(h.Running, runningOperation{o.Verb, o.TargetKind + " " + o.TargetID.String(), o.WaitingFor, o.CreatedAt})
	}
	return h
}

// ask speaks to the controller of a data directory.
func ask(ctx context.Context, dir, method, path string, answer any) error {
	return askWith(ctx, dir, method, path, nil, answer)
}

// askWith is ask with a body.
func askWith(ctx context.Context, dir, method, path string, body []byte, answer any) error {
	client := controlClient(dir, time.Minute)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://unkai"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		if opErr := (*net.OpError)(nil); errors.As(err, &opErr) {
			return fmt.Errorf("no controller answers for %s: is it running?", dir)
		}
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(text)))
	}
	return json.Unmarshal(text, answer)
}

type dataOption struct {
	Data string `default:"${data}" help:"The data directory." type:"path"`
}

type statusCommand struct {
	dataOption
	JSON bool `help:"Print JSON."`
}

// Run shows how a running cloud is; it fails when something needs an operator.
func (s statusCommand) Run(ctx context.Context) error {
	var h health
	if err := ask(ctx, s.Data, http.MethodGet, "/status", &h); err != nil {
		return err
	}
	if s.JSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(h)
	}
	return h.print(os.Stdout)
}

func (h *health) print(w io.Writer) error {
	if h.Agent != nil {
		return h.Agent.print(w, h.Version)
	}
	up, down, mute, off := 0, 0, 0, 0
	for _, m := range h.Hosts {
		switch {
		case m.Off:
			off++
		case !m.Up:
			down++
		case !m.Mute.IsZero():
			mute++
			fallthrough
		default:
			up++
		}
	}
	fmt.Fprintf(w, "unkai %s  %s  up %v  revision %d\n", h.Version, h.At.URL, time.Duration(h.Seconds*float64(time.Second)).Round(time.Second), h.Revision)
	if h.Store.Quota > 0 {
		full := ""
		if h.Store.Used >= h.Store.Quota {
			full = ": full, users can make nothing new until something is deleted"
		}
		fmt.Fprintf(w, "store   %d of %d MiB%s\n", h.Store.Used>>20, h.Store.Quota>>20, full)
	}
	if h.Level < h.Speaks.Newest {
		fmt.Fprintf(w, "upgrade not finalised: the cloud is at level %d, and this release brings level %d (unkai upgrade finalise)\n", h.Level, h.Speaks.Newest)
	}
	if h.Ahead > time.Minute {
		fmt.Fprintf(w, "clock   this machine's was set back by about %v; the cloud's goes on a tenth slower until it has caught up\n", h.Ahead)
	}
	if len(h.Controllers) > 0 {
		for _, k := range h.Controllers {
			role := "follows"
			switch {
			case k.Joining:
				fmt.Fprintf(w, "controller at %s was let in and is not here yet; unkai controller dismiss %s takes it out\n", k.Name, k.Name)
				continue
			case k.Leads:
				role = "leads"
			}
			switch {
			case !k.Answers:
				role += ", DOES NOT ANSWER"
			case k.Behind > 0:
				role += fmt.Sprintf(", %d changes behind", k.Behind)
			}
			fmt.Fprintf(w, "controller %s %s, %d hosts  %s  %s\n", k.Name, role, k.Hosts, k.URL, k.Version)
		}
		if !h.led() {
			fmt.Fprintln(w, "NO CONTROLLER LEADS: most of them cannot be reached from here; nothing can be changed, and what is shown may be old")
		}
	}
	if h.At.HostsURL != "" {
		fmt.Fprintf(w, "agents join at %s\n", h.At.HostsURL)
	}
	fmt.Fprintf(w, "hosts   %d up", up)
	if mute > 0 {
		fmt.Fprintf(w, " (%d mute)", mute)
	}
	fmt.Fprintf(w, ", %d lost", down)
	if off > 0 {
		fmt.Fprintf(w, ", %d off for maintenance", off)
	}
	fmt.Fprint(w, "\nservers")
	total := 0
	for stage, n := range h.Servers {
		fmt.Fprintf(w, " %d %s", n, stage)
		total += n
	}
	if total == 0 {
		fmt.Fprint(w, " none")
	}
	fmt.Fprintf(w, "\nnetworks %d, ports %d, images %d\n", h.Counts["networks"], h.Counts["ports"], h.Counts["images"])
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i, m := range h.Hosts {
		if i == 0 {
			fmt.Fprintln(t, "\nHOST\tZONE\tDRIVER\tSTATE\tSERVERS\tVCPUS\tMEMORY MiB")
		}
		if i == 20 {
			fmt.Fprintf(t, "and %d more\n", len(h.Hosts)-i)
			break
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d/%d\t%d/%d\n", m.Name, m.Zone, m.Driver, m.how(), m.Servers, m.UsedVCPUs, m.VCPUs, m.UsedMiB, m.MiB)
	}
	printNewcomers(t, h.Newcomers)
	printAlerts(t, h.Alerts)
	for i, l := range h.Held {
		if i == 0 {
			fmt.Fprintln(t, "\nWANTED BY NOBODY\tID\tHOST\tGOES")
		}
		if i == 20 {
			fmt.Fprintf(t, "and %d more (--json); of one host up to %d are kept account of\n", len(h.Held)-i, host.MaxHeld)
			break
		}
		goes := l.Until.Format(time.RFC3339) + ", or by unkai controller discard"
		if l.Ordered {
			goes = "as soon as its host can be heard"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.Kind, l.ID, l.Host, goes)
	}
	for i, o := range h.Running {
		if i == 0 {
			fmt.Fprintln(t, "\nUNDER WAY\tTARGET\tSINCE\tWAITING FOR")
		}
		fmt.Fprintf(t, "%s\t%s\t%v\t%s\n", o.Verb, o.Target, time.Since(o.Since).Round(time.Second), o.WaitingFor)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	return h.wrong(down)
}

// wrong is the first thing that needs an operator; nil if nothing does.
func (h *health) wrong(down int) error {
	if h.Broken != "" {
		return errors.New("the controller accepts no changes: " + h.Broken)
	}
	if !h.led() {
		return errors.New("no controller leads")
	}
	for _, k := range h.Controllers {
		if !k.Answers && !k.Joining {
			return fmt.Errorf("the controller %s does not answer", k.Name)
		}
	}
	if down > 0 {
		return fmt.Errorf("%d hosts cannot be heard", down)
	}
	for _, a := range h.Alerts {
		if a.Severity == string(alert.Critical) {
			return fmt.Errorf("critical: %s %s", a.Rule, a.Subject)
		}
	}
	return nil
}

// led reports whether a controller leads; one that is alone does.
func (h *health) led() bool {
	return len(h.Controllers) == 0 || slices.ContainsFunc(h.Controllers, func(k controllerHealth) bool { return k.Leads })
}

// how a host is, in words.
func (m *hostHealth) how() string {
	how := "up"
	if m.Off {
		how = "off, or not heard, since " + m.Lost.Format(time.RFC3339)
	} else if !m.Up {
		how = "lost since " + m.Lost.Format(time.RFC3339)
	}
	if !m.Mute.IsZero() {
		how += ", mute since " + m.Mute.Format(time.RFC3339) + ": its machine answers nothing, so routers go out through others"
		if m.Routers > 0 {
			how += fmt.Sprintf(" (%d cannot)", m.Routers)
		}
	}
	if !m.Away.Since.IsZero() {
		how += ", cannot reach its shared storage since " + m.Away.Since.Format(time.RFC3339) + ": " + m.Away.Why
	}
	for _, about := range [][2]string{{"one of its disks", m.Disk.Words()}, {"the storage that it shares", m.SharedDisk.Words()}, {"its clock", m.Clock.Words()}} {
		if about[1] != "" {
			how += ", " + about[0] + " " + about[1]
		}
	}
	if m.Refused != (host.Refusal{}) {
		how += ", " + refusedText(m.Refused)
	}
	if m.Unfit != "" {
		how += ", gets no new servers: " + m.Unfit
	}
	if m.Dead {
		how += ", known to be dead"
	}
	if m.Ahead != (host.Mark{}) {
		how += ", insists on a newer state (" + m.Ahead.String() + "): after a restore, run unkai controller restored"
	}
	switch {
	case m.Maintenance:
		how += ", in maintenance"
	case m.Disabled:
		how += ", disabled"
	}
	if !m.Isolating && m.Driver != "sim" {
		how += ", not isolating (emulated)"
	}
	return how
}

type auditCommand struct{ dataOption }

// Run prints what contradicts; it fails when something does.
func (a auditCommand) Run(ctx context.Context) error {
	var found []audit.Finding
	if err := ask(ctx, a.Data, http.MethodGet, "/audit", &found); err != nil {
		return err
	}
	for _, f := range found {
		fmt.Println(f)
	}
	if len(found) > 0 {
		return fmt.Errorf("%d contradictions", len(found))
	}
	fmt.Println("the audit is clean")
	return nil
}
