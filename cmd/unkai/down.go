package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

type downCommand struct {
	dataOption
	machineOptions
	Purge bool `help:"Remove the data directory too: state, images, disks, credentials. There is no way back."`
}

// Run removes what a cloud, or an agent, left in this machine's kernel and processes. The state stays, so
// that the next start brings everything back, unless it is purged.
func (d *downCommand) Run(ctx context.Context) error {
	if _, err := os.Stat(d.Data); err != nil {
		return fmt.Errorf("there is nothing to take down: %w", err)
	}
	whose := slices.IndexFunc([]string{secretsFile, agent.IdentityFile}, func(name string) bool {
		_, err := os.Stat(filepath.Join(d.Data, name))
		return err == nil
	})
	if whose < 0 {
		return fmt.Errorf("%s is no data directory of unkai", d.Data)
	}
	lock, err := lockDir(d.Data)
	if err != nil {
		return err
	}
	defer lock.Close()
	dir := d.Data // an agent's own
	if whose == 0 {
		dir = filepath.Join(d.Data, "host")
	}
	if _, err := os.Stat(dir); err == nil {
		if err := d.clear(ctx, dir); err != nil {
			return err
		}
	} else {
		fmt.Println("this machine was no host of it")
	}
	if !d.Purge {
		fmt.Printf("the state is kept in %s\n", d.Data)
		return nil
	}
	return os.RemoveAll(d.Data)
}

// clear ends the guests, and removes the networks.
func (d *downCommand) clear(ctx context.Context, dir string) error {
	d.AllowLooseJails = true // nothing is started
	d.SharedDisks = ""       // nor is anything of it this machine's alone
	guests, err := openQEMU(d.machineOptions, dir)
	if err != nil {
		return err
	}
	ids, err := guests.Present(ctx)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := guests.Remove(ctx, id); err != nil {
			return fmt.Errorf("remove guest %s: %w", id, err)
		}
	}
	networks, err := openNetwork(d.machineOptions, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(networks.RemoveAll(ctx), networks.Close(), guests.Close()); err != nil {
		return err
	}
	fmt.Printf("removed %d guests and the networks named %s-*\n", len(ids), d.Prefix)
	return nil
}

type controllerCommand struct {
	Run    controllerRun    `cmd:"" default:"withargs" help:"Run a controller in the foreground. It prints ready URL when it serves clients there."`
	Token  controllerToken  `cmd:"" help:"Print a one-time token with which one machine joins, as a host or as a controller."`
	Remove controllerRemove `cmd:"" help:"Take a host out of the cloud. It is refused from then on, and can only join anew."`

	Dismiss controllerDismiss `cmd:"" help:"Take a controller out that will not come back, so that it has no vote any more."`

	Restored controllerRestored `cmd:"" help:"Say that the state was restored from a backup. Hosts, which have seen newer ones, heed it then; what it does not know they keep for a week."`
	Discard  controllerDiscard  `cmd:"" help:"Have a host take away what it keeps though nobody wants it (see unkai status). Its disks are lost."`
}

type controllerRun struct {
	dataOption
	listenOptions
	clusterOptions
	metricsOption
	Hosts string `default:"0.0.0.0:8702" help:"Address for hosts' agents (mutual TLS)."`
	Pool  string `default:"172.24.4.0/24" help:"The external network that a new cloud begins with."`
	Sim   int    `hidden:"" help:"Simulate so many hosts, while this controller leads."`
}

// Run is a controller without a host, until it is told to stop.
func (r *controllerRun) Run(ctx context.Context) error {
	u := &upCommand{dataOption: r.dataOption, listenOptions: r.listenOptions, metricsOption: r.metricsOption,
		machineOptions: machineOptions{Pool: r.Pool}, hosts: r.Hosts, cluster: r.clusterOptions, Sim: r.Sim}
	return u.Run(ctx)
}

type controllerToken struct {
	dataOption
	Valid time.Duration `default:"1h" help:"For how long it can be used."`
	For   string        `enum:",host,controller" default:"" help:"What it is for alone: host or controller. Whoever joins as a controller holds the whole state."`
	As    string        `placeholder:"HOST" help:"The name of a host that is there and cannot be heard: the machine that joins is that host, which was set up anew with its guests' disks, or has been off for too long."`
}

// Run prints the token, alone on the last line.
func (t *controllerToken) Run(ctx context.Context) error {
	var token string
	if err := ask(ctx, t.Data, "POST", "/token?for="+t.For+"&valid="+url.QueryEscape(t.Valid.String())+"&as="+url.QueryEscape(t.As), &token); err != nil {
		return err
	}
	fmt.Println(token)
	return nil
}

type controllerRemove struct {
	dataOption
	Name string `arg:"" help:"The host's name; or the ID of a machine that has joined and was never heard."`
}

// Run removes a host.
func (c *controllerRemove) Run(ctx context.Context) error {
	var id resource.ID
	if err := ask(ctx, c.Data, "DELETE", "/hosts/"+url.PathEscape(c.Name), &id); err != nil {
		return err
	}
	fmt.Printf("removed host %s (%s)\n", c.Name, id)
	return nil
}

type controllerDismiss struct {
	dataOption
	Name string `arg:"" help:"The controller's name."`
}

// Run dismisses a controller.
func (c *controllerDismiss) Run(ctx context.Context) error {
	var name string
	if err := ask(ctx, c.Data, "DELETE", "/controllers/"+url.PathEscape(c.Name), &name); err != nil {
		return err
	}
	fmt.Printf("dismissed controller %s\n", c.Name)
	return nil
}

type controllerRestored struct{ dataOption }

// Run begins a new era.
func (t *controllerRestored) Run(ctx context.Context) error {
	var mark host.Mark
	if err := ask(ctx, t.Data, "POST", "/restored", &mark); err != nil {
		return err
	}
	fmt.Printf("hosts heed this state now (%v)\n", mark)
	return nil
}

type controllerDiscard struct {
	dataOption
	Host string `arg:"" help:"The host's name."`
	ID   string `arg:"" help:"What it is to take away."`
}

// Run orders it.
func (t *controllerDiscard) Run(ctx context.Context) error {
	var answer string
	return ask(ctx, t.Data, "POST", "/discard/"+url.PathEscape(t.Host)+"/"+url.PathEscape(t.ID), &answer)
}
