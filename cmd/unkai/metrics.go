package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/metrics"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/trace"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// What is read off a cloud when somebody asks.
var (
	revision   = metrics.From("unkai_state_revision", "The revision of the newest change.")
	waiting    = metrics.From("unkai_state_waiting", "Transactions that wait for their turn.")
	records    = metrics.From("unkai_state_records", "Objects that are stored, by kind.", "kind")
	storeUsed  = metrics.From("unkai_state_store_used_bytes", "How much of its quota the store uses. Not told of an etcd elsewhere.")
	storeQuota = metrics.From("unkai_state_store_quota_bytes", "Above this, users can make nothing new.")
	broken     = metrics.From("unkai_state_broken", "1 when no more changes are accepted.")
	leads      = metrics.From("unkai_state_leads", "1 when this controller is the one that writes.")
	leaderless = metrics.From("unkai_state_leaderless_seconds", "For how long this controller, one of several, has seen none that leads; 0 while one does.")
	ahead      = metrics.From("unkai_state_clock_ahead_seconds", "How far the cloud's clock is ahead of this machine's, which was set back.")
	hosts      = metrics.From("unkai_hosts", "Hosts, by whether they can be heard: up or lost.", "state")
	disabled   = metrics.From("unkai_hosts_disabled", "Hosts on which nothing new is placed.")
	dead       = metrics.From("unkai_hosts_dead", "Lost hosts that are known to run nothing any more.")
	upkeep     = metrics.From("unkai_hosts_maintenance", "Hosts in maintenance, by whether they are draining or drained.", "phase")
	unfenced   = metrics.From("unkai_hosts_fencing_failed", "Lost hosts that could not be fenced.")
	storm      = metrics.From("unkai_hosts_storm", "1 when so many hosts are lost at once that nothing is fenced, and nothing restarted elsewhere, by itself.")
	away       = metrics.From("unkai_hosts_storage_away", "Hosts that can be heard and cannot reach the storage that they share with others.")
	short      = metrics.From("unkai_hosts_disk_short", "Hosts with little room left on a disk, by how little (low or critical) and which: with what is their own (own), or the storage that they share (shared).", "room", "disk")
	clockOff   = metrics.From("unkai_hosts_clock_off", "Hosts whose clock is off from that of the controller that has their session.")
	stranded   = metrics.From("unkai_servers_stranded", "Servers of dead hosts that are to be restarted elsewhere, and wait.")
	streams    = metrics.From("unkai_host_streams", "Hosts that are connected to this controller.")
	servers    = metrics.From("unkai_servers", "Servers, by stage.", "stage")
	queue      = metrics.From("unkai_reconcile_waiting", "Things that a reconciler's task is to look at, now or at some time.", "task")
	underWay   = metrics.From("unkai_operations_running", "Operations under way, by verb and by kind of target.", "verb", "target")
	oldest     = metrics.From("unkai_operation_oldest_seconds", "The age of the operation that has been under way for longest.")
	overdue    = metrics.From("unkai_operations_overdue", "Operations that run though their deadline is past by a minute. There should be none.")

	operations = metrics.Histogram("unkai_operation_seconds", "Operations that ended, by verb, kind of target and outcome: how long they took.",
		metrics.Slow, "verb", "target", "outcome")
)

// metrics serves what is measured in this process and of this cloud.
func (c *cloud) metrics() http.Handler {
	return metrics.Handler(version, runtime.Version(), c.read)
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (c *cloud) read(tell func(*metrics.Reading, float64, ...string)) {
	tx, now := c.state.Latest(), c.state.Now()
	tell(revision, float64(tx.Revision()))
	tell(waiting, float64(c.state.Waiting()))
	for kind, n := range state.Kinds(tx) {
		tell(records, float64(n), kind)
	}
	if room := c.state.Room(); room.Quota > 0 {
		tell(storeUsed, float64(room.Used))
		tell(storeQuota, float64(room.Quota))
	}
	tell(broken, one(c.state.Broken() != nil))
	tell(leads, one(c.state.Leads()))
	if c.cluster != nil {
		tell(leaderless, c.cluster.lookout.Leaderless().Seconds())
	}
	tell(ahead, max(0, time.Until(now).Seconds()))
	up, lost, off := 0, 0, 0
	buried, failed, draining, drained, hang, wrong := 0, 0, 0, 0, 0, 0
	ownRoom, sharedRoom := map[host.Room]int{}, map[host.Room]int{} // of how many hosts
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		if h.Up() {
			up++
		} else {
			lost++
		}
		if h.Disabled {
			off++
		}
		if !h.Away.Since.IsZero() {
			hang++
		}
		if h.Clock.By != 0 {
			wrong++
		}
		ownRoom[h.Disk.Room]++
		sharedRoom[h.SharedDisk.Room]++
		if h.Dead() {
			buried++
		} else if !h.Up() && h.Fencing.Trouble != "" {
			failed++
		}
		if d := h.Drain; d != nil && d.Over() {
			drained++
		} else if d != nil {
			draining++
		}
	}
	_, _, stormy := compute.Storm(tx)
	tell(dead, float64(buried))
	tell(away, float64(hang))
	for _, room := range []host.Room{host.Low, host.Critical} {
		tell(short, float64(ownRoom[room]), string(room), "own")
		tell(short, float64(sharedRoom[room]), string(room), "shared")
	}
	tell(clockOff, float64(wrong))
	tell(unfenced, float64(failed))
	tell(upkeep, float64(draining), "draining")
	tell(upkeep, float64(drained), "drained")
	tell(storm, one(stormy))
	tell(stranded, float64(len(compute.StrandedServers(tx))))
	tell(hosts, float64(up), "up")
	tell(hosts, float64(lost), "lost")
	tell(disabled, float64(off))
	tell(streams, float64(c.hub.Sessions()))
	stages := map[compute.Stage]int{}
	for s := range compute.Servers().Peek(tx, "", state.Range{}) {
		stages[s.Stage()]++
	}
	for _, stage := range compute.Stages() {
		tell(servers, float64(stages[stage]), string(stage))
	}
	if work := c.work.Load(); work != nil {
		for task, n := range work.Waiting() {
			tell(queue, float64(n), task)
		}
	}
	c.readOperations(tx, now, tell)
}

func (c *cloud) readOperations(tx *state.Tx, now time.Time, tell func(*metrics.Reading, float64, ...string)) {
	type what struct{ verb, target string }
	under, age, late := map[what]int{}, time.Duration(0), 0
	for o := range operation.Table().Peek(tx, "deadline", state.Range{}) {
		under[what{o.Verb, o.TargetKind}]++
		age = max(age, now.Sub(o.CreatedAt))
		if now.Sub(o.Deadline) > time.Minute {
			late++
		}
	}
	for w, n := range under {
		tell(underWay, float64(n), w.verb, w.target)
	}
	tell(oldest, age.Seconds())
	tell(overdue, float64(late))
}

// countOperations measures operations as they end, until ctx does.
func (c *cloud) countOperations(ctx context.Context) {
	watch := c.state.Watch(c.state.Latest().Revision())
	for ctx.Err() == nil {
		events, err := watch.Next(ctx)
		if errors.Is(err, state.ErrCompacted) {
			slog.Warn("some operations that ended were not measured: too many changes came at once")
			watch = c.state.Watch(c.state.Latest().Revision())
		}
		for _, e := range events {
			o, ok := e.After.(*operation.Operation)
			if !ok || o.Outcome == operation.Running {
				continue
			}
			if was, ok := e.Before.(*operation.Operation); ok && was.Outcome != operation.Running {
				continue
			}
			operations.WithLabelValues(o.Verb, o.TargetKind, string(o.Outcome)).Observe(o.EndedAt.Sub(o.CreatedAt).Seconds())
			if trace.On() {
				tellOperation(ctx, o)
			}
		}
	}
}

// serve answers Prometheus at the address that was asked for, if one was, until ctx ends.
func (o metricsOption) serve(ctx context.Context, listen func(address string) (net.Listener, error), h http.Handler) error {
	if o.Metrics == "" {
		return nil
	}
	address := o.Metrics
	if strings.HasPrefix(address, ":") {
		address = "127.0.0.1" + address
	}
	l, err := listen(address)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", o.Metrics, err)
	}
	slog.InfoContext(ctx, "metrics are served", "at", "http://"+l.Addr().String()+"/metrics")
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", h)
	return serve(ctx, l, mux)
}
