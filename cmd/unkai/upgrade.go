package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

type upgradeCommand struct {
	Run      upgradeRun      `cmd:"" default:"withargs" help:"Replace the binary of the controller or agent that works on a data directory, in its process; it goes back by itself when something is worse than before."`
	Back     upgradeBack     `cmd:"" help:"Go back to the binary that was there before the last upgrade."`
	Plan     upgradePlan     `cmd:"" help:"Tell what is to be upgraded, in which order, and what stands against it."`
	Finalise upgradeFinalise `cmd:"" help:"End the upgrade of a cloud: what its new release brought may be used, and the release before cannot take back over."`
	Watch    upgradeWatch    `cmd:"" hidden:""`
}

type upgradeRun struct {
	dataOption
	To     string        `help:"The new binary." required:"" type:"existingfile"`
	Within time.Duration `default:"90s" help:"How long it has until everything is as well as before; and then again, until the cloud knows what it is."`
	Check  bool          `help:"Only tell what it would do, and what stands against it."`
}

// Run upgrades one process.
func (u *upgradeRun) Run(ctx context.Context) error {
	form := url.Values{"to": {u.To}, "within": {u.Within.String()}}
	if u.Check {
		form.Set("check", "1")
	}
	var t trial
	if err := ask(ctx, u.Data, http.MethodPost, "/upgrade?"+form.Encode(), &t); err != nil {
		return err
	}
	if u.Check {
		fmt.Printf("%s (levels %s) would go on as %s (levels %s) in process %d, and if all was well then replace %s\n",
			t.From.Version, t.From.Speaks, t.To.Version, t.To.Speaks, t.PID, t.Stable)
		return nil
	}
	fmt.Printf("%s goes on as %s\n", t.From.Version, t.To.Version)
	return awaitTrial(ctx, u.Data, t.Began)
}

// awaitTrial waits for the watcher's judgement.
func awaitTrial(ctx context.Context, dir string, began time.Time) error {
	for {
		t, err := loadTrial(dir)
		if err != nil {
			return err
		}
		switch {
		case !t.Began.Equal(began):
			return errors.New("another upgrade has begun")
		case t.Outcome == "kept":
			fmt.Printf("%s it is; %s was replaced\n", t.To.Version, t.Stable)
			return awaitKnown(ctx, dir, t)
		case t.Outcome != "":
			return fmt.Errorf("%s goes on again: %s", t.From.Version, t.Why)
		case time.Since(began) > 3*t.Within+time.Minute:
			return errors.New("the watcher of the upgrade was lost; see unkai status")
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// awaitKnown waits until the cloud's state says what this machine has become. While it was tried it counted as what it would have had to make
// way for, and it does until it has told the controllers that it stays: who finalises, or upgrades the next one, may rely on our end.
func awaitKnown(ctx context.Context, dir string, t *trial) error {
	said := ""
	for end := time.Now().Add(t.Within); ; {
		missing := unknownYet(ctx, dir, t)
		switch {
		case missing == "":
			return nil
		case time.Now().After(end):
			return fmt.Errorf("%s it is and stays, but after %v the cloud does not know it: %s. It tells the controllers as soon as it can; see unkai status, and finalise no earlier",
				t.To.Version, t.Within, missing)
		case missing != said:
			said = missing
			fmt.Println("waits for the cloud to know it: " + missing)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// unknownYet is what the cloud does not know yet of the process that was replaced, in words; "" if nothing. It asks for what every release
// answers, for the one that goes on may be the one before.
func unknownYet(ctx context.Context, dir string, t *trial) string {
	if !t.To.Sockets {
		return "" // the first release's agents cannot be asked, and what it is no cloud of later ones mistakes
	}
	name, err := memberName(dir)
	if err != nil {
		return err.Error()
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var h health
	if err := ask(ctx, dir, http.MethodGet, "/status", &h); err != nil {
		return err.Error()
	}
	is := t.To.Speaks.OrFirst()
	if h.Agent != nil {
		switch {
		case t.Before.Connected && !h.Agent.Told:
			return "the agent has no session with a controller"
		case !h.Agent.Told, h.Agent.Says.IsZero(), h.Agent.Says == is: // it was cut off before; or of a release that says nothing else than what it is
			return ""
		}
		return fmt.Sprintf("the agent has told the controllers that it works at levels %s, and not yet that it does at %s", h.Agent.Says, is)
	}
	if name == "" {
		return "" // it is the cloud
	}
	for _, k := range h.Controllers {
		switch {
		case k.Name != name:
		case k.Version == t.To.Version && k.Speaks.OrFirst() == is:
			return ""
		default:
			return fmt.Sprintf("the controllers' state says that %s is %s at levels %s, and not yet that it is %s at %s", name, k.Version, k.Speaks.OrFirst(), t.To.Version, is)
		}
	}
	return fmt.Sprintf("the controllers' state has no controller %s", name)
}

type upgradeBack struct {
	dataOption
	Within time.Duration `default:"90s" help:"How long it has until everything is as well as before."`
}

// Run goes back.
func (u *upgradeBack) Run(ctx context.Context) error {
	previous := filepath.Join(u.Data, releaseDir, "previous")
	if _, err := os.Stat(previous); err != nil {
		return fmt.Errorf("there is nothing to go back to: %w", err)
	}
	return (&upgradeRun{dataOption: u.dataOption, To: previous, Within: u.Within}).Run(ctx)
}

type upgradeWatch struct {
	dataOption
	Fork bool
}

// Run is the watcher.
func (u *upgradeWatch) Run(ctx context.Context) error {
	if u.Fork {
		return detach("upgrade", "watch", "--data", u.Data)
	}
	return watchTrial(ctx, u.Data)
}

type upgradeFinalise struct{ dataOption }

// A finalised is the answer to it.
type finalised struct{ From, To int }

// Run finalises.
func (u *upgradeFinalise) Run(ctx context.Context) error {
	var f finalised
	if err := ask(ctx, u.Data, http.MethodPost, "/finalise", &f); err != nil {
		return err
	}
	if f.From == f.To {
		fmt.Printf("the cloud is at level %d already\n", f.To)
		return nil
	}
	fmt.Printf("the cloud is at level %d now; releases that know only level %d cannot take back over\n", f.To, f.From)
	return nil
}

// finalise raises the cloud's level to this release's.
func (c *cloud) finalise(ctx context.Context) (f finalised, err error) {
	t, err := undecided(c.dir)
	switch {
	case err != nil:
		return f, err
	case t != nil:
		return f, fault.Errorf(fault.Conflict, "This controller is being tried since %s, and may yet make way for %s. Finalise when unkai upgrade says that it is kept. "+
			"If nothing decides any more, its watcher was lost: start the controller again, or upgrade it again.", t.Began.Format(time.RFC3339), t.From.Version)
	}
	f.From, f.To, err = state.Finalise(identity.Internal(ctx), c.state, version, mayFinalise)
	return f, err
}

// mayFinalise refuses it while somebody is there who could not read what is written then. A host that cannot be heard is no
// hindrance: if it comes back it is spoken with as long as its release is not too far away.
func mayFinalise(tx *state.Tx, level int) error {
	var older []string
	for k := range host.Controllers().Peek(tx, "name", state.Range{}) {
		if k.Speaks.OrFirst().Newest < level {
			older = append(older, fmt.Sprintf("controller %s (%s)", k.Name, k.Version))
		}
	}
	for h := range host.Table().Peek(tx, "name", state.Range{}) {
		if h.Up() && h.Capacity.Driver != "sim" && h.Speaks.OrFirst().Newest < level {
			older = append(older, fmt.Sprintf("host %s (%s)", h.Name, h.Version))
		}
	}
	if older != nil {
		return fault.Errorf(fault.Conflict, "Of an older release, or tried and not decided on yet, are still: %s. Upgrade them first.", strings.Join(older, ", "))
	}
	return nil
}

// mayBe reports why a release may not go on as this controller: it could not read the state, or would not be understood.
func (c *cloud) mayBe(is release.Span) error {
	tx := c.state.Latest()
	if err := is.OrFirst().At(state.LevelOf(tx)); err != nil {
		return err
	}
	for k := range host.Controllers().Peek(tx, "name", state.Range{}) {
		if err := is.OrFirst().Meets(k.Speaks); err != nil {
			return fmt.Errorf("controller %s: %w", k.Name, err)
		}
	}
	for h := range host.Table().Peek(tx, "name", state.Range{}) {
		if h.Up() && h.Capacity.Driver != "sim" {
			if err := is.OrFirst().Meets(h.Speaks); err != nil {
				return fmt.Errorf("host %s: %w", h.Name, err)
			}
		}
	}
	return nil
}

// standing is by what a successor of this controller is judged.
func (c *cloud) standing(ctx context.Context) (s standing, err error) {
	if err := c.state.Confirm(ctx); err != nil {
		return s, fmt.Errorf("most controllers cannot be reached: %w", err)
	}
	tx := c.state.Latest()
	s.Revision = tx.Revision()
	for h := range host.Table().Peek(tx, "name", state.Range{}) {
		if h.Up() {
			s.HostsUp = append(s.HostsUp, h.Name)
		}
	}
	found, err := c.audit(ctx)
	for _, f := range found {
		s.Findings = append(s.Findings, fmt.Sprint(f))
	}
	return s, err
}

type upgradePlan struct{ dataOption }

// Run prints the plan.
func (u *upgradePlan) Run(ctx context.Context) error {
	var h health
	if err := ask(ctx, u.Data, http.MethodGet, "/status", &h); err != nil {
		return err
	}
	return h.plan(os.Stdout)
}

// plan prints the order in which a cloud is upgraded: controllers that follow, the one that leads, then hosts zone by zone.
func (h *health) plan(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	step := 0
	say := func(what, name, version string, speaks release.Span, note string) {
		step++
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\tlevels %s\t%s\n", step, what, name, version, speaks.OrFirst(), note)
	}
	controllers := slices.Clone(h.Controllers)
	if len(controllers) == 0 {
		controllers = []controllerHealth{{Name: h.Data, Version: h.Version, Speaks: h.Speaks, Leads: true}}
	}
	slices.SortStableFunc(controllers, func(a, b controllerHealth) int {
		switch {
		case a.Leads == b.Leads:
			return strings.Compare(a.Name, b.Name)
		case a.Leads:
			return 1
		}
		return -1
	})
	for _, k := range controllers {
		if k.Joining {
			continue // it begins with what it is started as
		}
		note := ""
		if k.Leads && len(controllers) > 1 {
			note = "hands the lead over first"
		}
		say("controller", k.Name, k.Version, k.Speaks, note)
	}
	hosts := slices.Clone(h.Hosts)
	slices.SortStableFunc(hosts, func(a, b hostHealth) int { return strings.Compare(a.Zone+"\x00"+a.Name, b.Zone+"\x00"+b.Name) })
	for _, m := range hosts {
		note := "zone " + m.Zone
		if !m.Up {
			note += ", cannot be heard"
		}
		if m.Driver == "sim" {
			continue // with its controller
		}
		say("host", m.Name, m.Version, m.Speaks, note)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nOne at a time, on its own machine: unkai upgrade --data DIR --to NEW-BINARY. Then, once, on a controller: unkai upgrade finalise")
	if h.Level < h.Speaks.Newest {
		fmt.Fprintf(w, "The cloud is at level %d, and this controller's release brings level %d.\n", h.Level, h.Speaks.Newest)
	}
	return nil
}
