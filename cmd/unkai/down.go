package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/unkai-cloud/unkai/agent"
)

type downCommand struct {
	dataOption
	machineOptions
	Purge bool `help:"Remove the data directory too: state, images, disks, credentials. There is no way back."`
}

// Run removes what a cloud left in this machine's kernel and processes. The state stays, so that the
// next start brings everything back, unless it is purged.
func (d *downCommand) Run(ctx context.Context) error {
	var h health
	if err := ask(ctx, d.Data, "GET", "/status", &h); err == nil {
		return fmt.Errorf("a controller still runs for %s: end it first", d.Data)
	}
	dir := filepath.Join(d.Data, "host")
	if _, err := os.Stat(dir); err != nil && !d.Purge {
		return fmt.Errorf("%s holds no host: %w", d.Data, err)
	}
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
	networks, err := openNetwork(d.machineOptions, dir, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(networks.RemoveAll(ctx), networks.Close(), guests.Close()); err != nil {
		return err
	}
	fmt.Printf("removed %d guests and the networks named %s-*\n", len(ids), d.Prefix)
	if !d.Purge {
		fmt.Printf("the state is kept in %s\n", d.Data)
		return nil
	}
	if _, err := os.Stat(filepath.Join(d.Data, secretsFile)); err != nil {
		return fmt.Errorf("%s is no data directory of unkai: not purged", d.Data)
	}
	return os.RemoveAll(d.Data)
}

type controllerCommand struct {
	Run   controllerRun   `cmd:"" default:"withargs" help:"Run a controller in the foreground."`
	Token controllerToken `cmd:"" help:"Print a one-time token with which one machine joins as a host, valid for an hour."`
}

type controllerRun struct {
	dataOption
	listenOptions
	Hosts string `default:"0.0.0.0:8702" help:"Address for hosts' agents (mutual TLS)."`
	Pool  string `default:"172.24.4.0/24" help:"The external network that a new cloud begins with."`
}

// Run is a controller without a host, until it is told to stop.
func (r *controllerRun) Run(ctx context.Context) error {
	u := &upCommand{dataOption: r.dataOption, listenOptions: r.listenOptions, machineOptions: machineOptions{Pool: r.Pool}, hosts: r.Hosts}
	return u.Run(ctx)
}

type controllerToken struct{ dataOption }

// Run prints the token, alone on the last line.
func (t *controllerToken) Run(ctx context.Context) error {
	var token string
	if err := ask(ctx, t.Data, "POST", "/token", &token); err != nil {
		return err
	}
	fmt.Println(token)
	return nil
}

type agentCommand struct {
	machineOptions
	Data  string `default:"/var/lib/unkai-agent" help:"The agent's data directory." type:"path"`
	Join  string `help:"The controller's address for hosts, such as https://controller:8702." required:""`
	Token string `help:"A one-time token from the controller; needed the first time."`
}

// Run is this machine's agent until it is told to stop. Guests go on.
func (a *agentCommand) Run(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("a host needs root (see `unkai doctor`)")
	}
	id, err := agent.LoadIdentity(a.Data)
	if errors.Is(err, os.ErrNotExist) {
		if a.Token == "" {
			return errors.New("this machine has not joined yet: --token is needed (unkai controller token makes one)")
		}
		id, err = agent.Join(ctx, a.Join, a.Token, a.Data)
	}
	if err != nil {
		return err
	}
	m, err := openMachine(a.machineOptions, a.Data)
	if err != nil {
		return err
	}
	fmt.Println("ready " + id.Host.String())
	return errors.Join(m.run(ctx, a.Join, id), m.close())
}
