package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime"
	"slices"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/metrics"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/resource"
)

type agentCommand struct {
	machineOptions
	metricsOption
	Data  string `default:"/var/lib/unkai-agent" help:"The agent's data directory." type:"path"`
	Join  string `help:"The controller's address for hosts, such as https://controller:8702." required:""`
	Token string `help:"A one-time token from the controller; needed the first time."`
}

// Help is what `unkai agent --help` says beside the options.
func (agentCommand) Help() string {
	return `It goes on in the foreground until it is told to stop; guests go on after it. When it has begun its work it prints

  ready HOST-ID

on standard output. "unkai up" and "unkai controller" print "ready URL" there, the address at which clients reach them. An agent has none: it serves no
clients. The ID is its host's, as "unkai host show" and /v1/hosts show it. That its controller hears it is in "unkai status --data DIR".`
}

// Run is this machine's agent until it is told to stop. Guests go on.
func (a *agentCommand) Run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("a host needs root (see `unkai doctor`)")
	}
	join, err := url.Parse(a.Join)
	if err != nil || join.Scheme != "https" || join.Host == "" {
		return fmt.Errorf("--join %s: want an address such as https://controller:8702", a.Join)
	}
	if a.Address == "" {
		if a.Address, err = addressTowards(ctx, join); err != nil {
			return err
		}
	}
	if a.Address == "" {
		slog.WarnContext(ctx, "this host has no address at which others reach it, for its controller is on this machine: it is to be the only one, or to be given --address")
	}
	var kept sockets
	kept.inherit()
	lock, err := lockDir(a.Data)
	if err != nil {
		return err
	}
	defer lock.Close()
	id, err := agent.LoadIdentity(a.Data)
	if errors.Is(err, os.ErrNotExist) {
		if a.Token == "" {
			return errors.New("this machine has not joined yet: --token is needed (unkai controller token makes one)")
		}
		id, err = a.join(ctx, a.Join, a.Token, a.Data)
	}
	if err != nil {
		return err
	}
	m, err := openMachine(a.machineOptions, a.Data)
	if err != nil {
		return err
	}
	control, err := openControl(a.Data)
	if err != nil {
		return errors.Join(err, m.close())
	}
	untold, err := tracing(ctx, "unkai-agent")
	if err != nil {
		return errors.Join(err, control.Close(), m.close())
	}
	defer untold()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	seat := &seat{dir: a.Data, sockets: &kept, leave: stop, mayBe: m.mayBe, standing: m.standing}
	parts := newParts(ctx, stop)
	parts.answer("this host", func(ctx context.Context) error { return m.run(ctx, a.Join, id) })
	parts.answer("serve the control socket", func(ctx context.Context) error { return serve(ctx, control, m.control(seat)) })
	parts.answer("serve metrics", func(ctx context.Context) error {
		return a.metricsOption.serve(ctx, kept.listen, metrics.Handler(version, runtime.Version()))
	})
	fmt.Println("ready " + id.Host.String())
	<-ctx.Done()
	parts.end()
	took, slow := parts.took()
	slog.InfoContext(ctx, "the work has ended", "took", took, "waited for", slow)
	if err = context.Cause(ctx); errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, m.close())
}

// An agentHealth is how an agent is.
type agentHealth struct {
	Controller string // where its session is, or was
	Told       bool   // a controller has told it everything that is wanted, in a session that goes on
	Guests     int    // that run
	// At which levels it works, as it has told the controllers in that session; see speaks. The release before does not say.
	Says release.Span `json:",omitzero"`

	Running, Lacking []resource.ID `json:",omitempty"` // guests that run; and that are to run, and do not
}

func (m *machine) health(ctx context.Context) (*agentHealth, error) {
	running, err := m.qemu.Running(ctx)
	h := &agentHealth{Told: m.agent.Told(), Guests: len(running), Running: running}
	for _, id := range m.agent.ToRun() {
		if !slices.Contains(running, id) {
			h.Lacking = append(h.Lacking, id)
		}
	}
	if link := m.link.Load(); link != nil {
		h.Controller, h.Says = link.At(), link.Says()
	}
	return h, err
}

func (h *agentHealth) print(w io.Writer, version string) error {
	fmt.Fprintf(w, "unkai %s, an agent with %d guests\n", version, h.Guests)
	if !h.Told {
		return fmt.Errorf("it has no session with a controller; the last one was at %s", h.Controller)
	}
	fmt.Fprintf(w, "in session with %s\n", h.Controller)
	return nil
}

// control answers operators on this machine.
func (m *machine) control(s *seat) http.Handler {
	mux := http.NewServeMux()
	s.routes(mux)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		a, err := m.health(r.Context())
		answerControl(w, health{Version: version, Data: s.dir, Speaks: release.Own, Level: release.Own.Newest, Agent: a}, err)
	})
	return mux
}

// mayBe reports why a release may not go on as this agent: its controllers' would not speak with it.
func (m *machine) mayBe(is release.Span) error {
	if link := m.link.Load(); link != nil {
		if speaks := link.Speaks(); !speaks.IsZero() {
			return is.OrFirst().Meets(speaks)
		}
	}
	return nil
}

func (m *machine) standing(ctx context.Context) (standing, error) {
	h, err := m.health(ctx)
	if err != nil {
		return standing{}, err
	}
	return standing{Connected: h.Told, Running: h.Running}, nil
}

// addressTowards is this machine's address on the way to a controller: other hosts can most likely reach it
// there too. "" when the controller is on this machine.
func addressTowards(ctx context.Context, controller *url.URL) (string, error) {
	port := controller.Port()
	if port == "" {
		port = "443"
	}
	// UDP: nothing is sent.
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(controller.Hostname(), port))
	if err != nil {
		return "", fmt.Errorf("find this machine's address towards %s: %w", controller.Host, err)
	}
	defer conn.Close()
	at, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil || at.Addr().IsLoopback() {
		return "", err
	}
	return at.Addr().WithZone("").Unmap().String(), nil
}
