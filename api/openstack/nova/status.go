package nova

import (
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/core/compute"
)

// vmStates are Nova's words for how a server stands, whatever is under way.
var vmStates = map[compute.Stage]string{
	compute.Building: "building", compute.Running: "active", compute.Stopped: "stopped", compute.Frozen: "paused",
	compute.Asleep: "suspended", compute.Failed: "error", compute.Unsettled: "resized",
	compute.Shelved: "shelved", compute.Offloaded: "shelved_offloaded",
}

// taskStates are Nova's words for what is under way.
var taskStates = map[compute.Task]string{
	compute.Creating: "spawning", compute.Starting: "powering-on", compute.Stopping: "powering-off", compute.SoftRebooting: "rebooting",
	compute.HardRebooting: "rebooting_hard", compute.Pausing: "pausing", compute.Unpausing: "unpausing", compute.Suspending: "suspending",
	compute.Resuming: "resuming", compute.Rebuilding: "rebuilding", compute.Reshaping: "resize_prep", compute.Reverting: "resize_reverting",
	compute.Migrating: "resize_migrating", compute.LiveMigrating: "migrating", compute.Evacuating: "rebuilding", compute.Deleting: "deleting",
	compute.Imaging: "image_snapshot", compute.BackingUp: "image_backup", compute.Shelving: "shelving", compute.Unshelving: "unshelving",
}

// statuses are what clients see when nothing under way changes it (Compute API guide, "Server status").
var statuses = map[compute.Stage]string{
	compute.Building: "BUILD", compute.Running: "ACTIVE", compute.Stopped: "SHUTOFF", compute.Frozen: "PAUSED",
	compute.Asleep: "SUSPENDED", compute.Failed: "ERROR", compute.Unsettled: "VERIFY_RESIZE",
	compute.Shelved: "SHELVED", compute.Offloaded: "SHELVED_OFFLOADED",
}

// taskStatuses are those that show through whatever stage the server is in.
var taskStatuses = map[compute.Task]string{
	compute.SoftRebooting: "REBOOT", compute.HardRebooting: "HARD_REBOOT", compute.Rebuilding: "REBUILD", compute.Reshaping: "RESIZE",
	compute.Reverting: "REVERT_RESIZE", compute.Migrating: "RESIZE", compute.LiveMigrating: "MIGRATING", compute.Evacuating: "REBUILD",
}

// statusOfServer names how a server stands.
func statusOfServer(at compute.Standing) string {
	if s, ok := taskStatuses[at.Task]; ok && at.Stage != compute.Building {
		return s
	}
	return statuses[at.Stage]
}

// standingsOf are all standings that have one of these statuses; a filter becomes a few ranges of an index.
// A status that no server of ours can have gives none.
func standingsOf(names []string) []compute.Standing {
	found := []compute.Standing{}
	for _, stage := range compute.Stages() {
		for _, task := range compute.Tasks() {
			at := compute.Standing{Stage: stage, Task: task}
			if slices.Contains(names, statusOfServer(at)) {
				found = append(found, at)
			}
		}
	}
	return found
}

// standingsIn are those with one of these vm_states, or with one of these task_states.
func standingsIn(vms, tasks []string) []compute.Standing {
	found := []compute.Standing{}
	for _, stage := range compute.Stages() {
		for _, task := range compute.Tasks() {
			if vms != nil && !slices.Contains(vms, vmStates[stage]) || tasks != nil && !slices.Contains(tasks, taskStates[task]) {
				continue
			}
			found = append(found, compute.Standing{Stage: stage, Task: task})
		}
	}
	return found
}

// knownStatuses are Nova's statuses, those included that no server of ours has.
var knownStatuses = []string{"ACTIVE", "BUILD", "DELETED", "ERROR", "HARD_REBOOT", "MIGRATING", "PASSWORD", "PAUSED", "REBOOT", "REBUILD",
	"RESCUE", "RESIZE", "REVERT_RESIZE", "SHELVED", "SHELVED_OFFLOADED", "SHUTOFF", "SOFT_DELETED", "SUSPENDED", "UNKNOWN", "VERIFY_RESIZE"}

func knownStatus(s string) bool { return slices.Contains(knownStatuses, strings.ToUpper(s)) }

// progressing are the statuses with which Nova shows a progress.
var progressing = map[string]bool{"ACTIVE": true, "BUILD": true, "REBUILD": true, "RESIZE": true, "VERIFY_RESIZE": true, "MIGRATING": true}

// powerStates are Nova's numbers for what was last seen of a guest.
var powerStates = map[compute.Power]int{
	compute.On: 1, compute.Paused: 3, compute.Off: 4, compute.Crashed: 6, compute.Suspended: 7,
}
