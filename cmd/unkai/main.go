// Command unkai is the whole of Unkai: the controller, the host's agent, and what an
// operator needs beside them. It joins the parts; it has no rules of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/unkai-cloud/unkai/base/fault"
)

// version is stamped by the build.
var version = "0.0.0-dev"

// began is when this program did.
var began = time.Now()

type commands struct {
	Debug bool `help:"Log every request and step."`

	Up         upCommand         `cmd:"" help:"Run a whole cloud on this machine: controller and agent in one process, in the foreground. It prints ready URL when it serves."`
	Down       downCommand       `cmd:"" help:"Remove the guests, networks and mounts that a cloud left on this machine."`
	Controller controllerCommand `cmd:"" help:"Run a controller, or make a token with which a host joins it."`
	Agent      agentCommand      `cmd:"" help:"Run this machine's agent: join a cloud and make its part of it real. It prints ready HOST-ID, for it has no URL."`
	Host       hostCommand       `cmd:"" help:"Look after hosts: maintenance, fencing, and how guests are kept alive."`
	Move       moveCommand       `cmd:"" help:"Take a server to another host, or tell what that would take."`
	Upgrade    upgradeCommand    `cmd:"" help:"Replace the binary of a running controller or agent, and finalise the upgrade of a cloud."`
	Status     statusCommand     `cmd:"" help:"Show what runs and how it is."`
	Capacity   capacityCommand   `cmd:"" help:"Tell how many more servers of a flavor have room, and what there is not enough of."`
	Backup     backupCommand     `cmd:"" help:"Write a running cloud, as of one moment, to a file."`
	Restore    restoreCommand    `cmd:"" help:"Make a cloud again from a backup, in an empty data directory."`
	Alert      alertCommand      `cmd:"" help:"Say who is told when something needs an operator."`
	Support    supportCommand    `cmd:"" help:"Make a bundle, without secrets, for whoever is to find out what is wrong."`
	Simulate   simulateCommand   `cmd:"" help:"Run the real code on simulated hosts: with faults drawn from seeds, checking every promise; or, with --servers, to tell what a cloud would do."`
	Audit      auditCommand      `cmd:"" help:"Check that the state contradicts itself nowhere."`
	Doctor     doctorCommand     `cmd:"" help:"Tell what this machine can and cannot do, and what would mend it."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
}

func main() {
	var c commands
	k := kong.Parse(&c, kong.Name("unkai"), kong.UsageOnError(), kong.Vars{"data": defaultDir()}, kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Description("Unkai turns a Linux machine, or many, into a cloud that OpenStack and AWS clients use unmodified."))
	level := slog.LevelInfo
	if c.Debug {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(withRequests{slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	err := k.Run()
	if next := (*successor)(nil); errors.As(err, &next) {
		err = next.begin()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		text := err.Error()
		if f := fault.From(err); f != nil {
			text = f.Message
		}
		fmt.Fprintln(os.Stderr, "unkai: "+text)
		os.Exit(1)
	}
}

type versionCommand struct {
	JSON bool `help:"Print JSON, with the levels that this release works at."`
}

// Run prints the version.
func (v versionCommand) Run() error {
	if v.JSON {
		return json.NewEncoder(os.Stdout).Encode(introduce())
	}
	fmt.Println("unkai " + version)
	return nil
}
