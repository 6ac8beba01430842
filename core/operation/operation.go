// Package operation keeps what users asked for that takes time: who asked, what it waits
// for, by when it ends, and how it ended. Dialects show operations as they know them:
// instance actions, jobs, pending states, progress bars.
package operation

import (
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// An Operation is one change under way, or one that has ended.
type Operation struct {
	resource.Meta // ProjectID is the target's

	// Asked for.
	Verb       string
	TargetKind string
	TargetID   resource.ID
	UserID     resource.ID
	AsProject  resource.ID // in which the user asked
	RequestID  string
	Via        string // the dialect

	// Found out while it goes on.
	Outcome    Outcome
	WaitingFor string // in words, e.g. "host node-1: downloading the image"
	Percent    int
	Deadline   time.Time
	EndedAt    time.Time
	Message    string // why it failed, for the owner
	Why        *Why   // a decision that was taken, e.g. the placement
	Steps      []Step // the newest last, at most maxSteps
}

// An Outcome is how an operation stands.
type Outcome string

const (
	Running   Outcome = "running"
	Succeeded Outcome = "succeeded"
	Failed    Outcome = "failed"
	Cancelled Outcome = "cancelled"
)

// A Step is one part of an operation.
type Step struct {
	Name      string
	HostID    resource.ID
	StartedAt time.Time
	EndedAt   time.Time
	Outcome   Outcome
	Message   string
}

// A Why explains a decision: what was looked at, and what removed it.
type Why struct {
	Chosen string
	Looked int // how many candidates were looked at
	Of     int `json:",omitempty" since:"2,soft"` // how many there were, when only some were looked at because one of these fitted
	// What was asked of each candidate, whatever it took away, in the order in which it was: that follows from the request alone.
	Asked []string `json:",omitempty" since:"2,soft"`
	// Of that, when nothing was chosen, what leaves no candidate whatever others have and however candidates are just now.
	Alone   []string  `json:",omitempty" since:"2,soft"`
	Removed []Removed // by which rule, in the order they were applied
	Ended   string    `json:",omitempty" since:"2,soft"` // the rule that took the last away, when nothing was chosen
	Nearest string    // what came nearest to fitting, when nothing was chosen
	Scores  []Score   // the best few that fitted
}

// A Removed says how many candidates a constraint took away.
type Removed struct {
	Constraint string
	Count      int
	Examples   []string // names, for the operator only
}

// A Score is how a candidate was judged.
type Score struct {
	Name  string
	Score float64
}

const maxSteps = 32

var operations = state.NewTable[Operation]("operation",
	state.Index("target", func(o *Operation) state.Key { return state.KeyOf(o.TargetID) }),
	state.Index("project", func(o *Operation) state.Key { return state.KeyOf(o.ProjectID) }),
	state.Index("deadline", func(o *Operation) state.Key {
		if o.Outcome != Running {
			return ""
		}
		return state.KeyOf(o.Deadline)
	}),
	state.Index("deleted", func(o *Operation) state.Key { // what is gone, for those who still ask for a while
		if o.Verb != DeleteVerb || o.Outcome != Succeeded {
			return ""
		}
		return state.KeyOf(o.ProjectID, o.TargetKind, o.EndedAt)
	}),
	state.Index("ended", func(o *Operation) state.Key {
		if o.Outcome == Running {
			return ""
		}
		return state.KeyOf(o.EndedAt)
	}),
	state.Index("past", func(o *Operation) state.Key { // what a project may have forgotten, the oldest first
		if o.Outcome == Running {
			return ""
		}
		return state.KeyOf(o.ProjectID, o.EndedAt)
	}),
	state.Tally("past-count", func(o *Operation) (state.Key, state.Amounts) {
		if o.Outcome == Running {
			return "", state.Amounts{}
		}
		return state.KeyOf(o.ProjectID), state.Amounts{}
	}),
)

// What is kept of the past at most, for a target and for a project: nobody is to fill the state by rebooting
// a server for days, or by making and deleting many.
const (
	keepOfTarget  = 100
	keepOfProject = 200_000
)

// Table gives the native API and the auditor a look at every operation.
func Table() *state.Table[Operation] { return operations }

// Begin records that something was asked for, in the transaction that writes the wish
// itself. It must have ended within the given time, else its owner ends it as Failed.
func Begin(tx *state.Tx, verb, targetKind string, target *resource.Meta, actor *identity.Actor, within time.Duration) (*Operation, error) {
	cause := tx.Cause()
	o := &Operation{
		Meta: resource.Meta{ID: tx.NewID(), ProjectID: target.ProjectID, Name: verb},
		Verb: verb, TargetKind: targetKind, TargetID: target.ID,
		UserID: actor.UserID, AsProject: actor.ProjectID, RequestID: cause.RequestID, Via: cause.Via,
		Outcome: Running, Deadline: tx.Now().Add(within),
	}
	if err := forgetOldest(tx, target.ID); err != nil {
		return nil, err
	}
	return o, operations.Put(tx, o)
}

// forgetOldest drops the oldest ended operation of a target that has its fill of them.
func forgetOldest(tx *state.Tx, target resource.ID) error {
	all := operations.IDs(tx, "target", state.KeyOf(target))
	if len(all) < keepOfTarget {
		return nil
	}
	for _, id := range all {
		if o, ok := operations.PeekOne(tx, id); ok && o.Outcome != Running {
			return operations.Delete(tx, id)
		}
	}
	return nil
}

// Active gives the operation that is under way on a target, the newest if there are
// several; nil if none is.
func Active(tx *state.Tx, target resource.ID) *Operation {
	for o := range operations.Range(tx, "target", state.Range{Prefix: state.KeyOf(target), Reverse: true}) {
		if o.Outcome == Running {
			return o
		}
	}
	return nil
}

// Of lists the operations of a target, the newest first.
func Of(tx *state.Tx, target resource.ID) []*Operation {
	var all []*Operation
	for o := range operations.Range(tx, "target", state.Range{Prefix: state.KeyOf(target), Reverse: true}) {
		all = append(all, o)
	}
	return all
}

// DeleteVerb is the verb of operations after which the target is gone.
const DeleteVerb = "delete"

// Deleted lists the operations that took away a project's things of one kind since a time,
// the newest first.
func Deleted(tx *state.Tx, project resource.ID, kind string, since time.Time) []*Operation {
	var all []*Operation
	for o := range operations.Range(tx, "deleted", state.Range{Prefix: state.KeyOf(project, kind), Reverse: true}) {
		if o.EndedAt.Before(since) {
			break
		}
		all = append(all, o)
	}
	return all
}

// Note records how far a running operation is. Unchanged notes write nothing.
func Note(tx *state.Tx, o *Operation, waitingFor string, percent int) error {
	if o.Outcome != Running || o.WaitingFor == waitingFor && o.Percent == percent {
		return nil
	}
	o.WaitingFor, o.Percent = waitingFor, percent
	return operations.Put(tx, o)
}

// Prolong gives a running operation more time, from now on.
func Prolong(tx *state.Tx, o *Operation, within time.Duration) error {
	if o.Outcome != Running {
		return nil
	}
	o.Deadline = tx.Now().Add(within)
	return operations.Put(tx, o)
}

// Stepped ends the step under way, if any, and begins the next one.
func Stepped(tx *state.Tx, o *Operation, name string, host resource.ID) error {
	o.endStep(tx.Now(), Succeeded, "")
	o.Steps = append(o.Steps, Step{Name: name, HostID: host, StartedAt: tx.Now(), Outcome: Running})
	if extra := len(o.Steps) - maxSteps; extra > 0 {
		o.Steps = o.Steps[extra:]
	}
	return operations.Put(tx, o)
}

func (o *Operation) endStep(now time.Time, outcome Outcome, message string) {
	if n := len(o.Steps); n > 0 && o.Steps[n-1].Outcome == Running {
		s := &o.Steps[n-1]
		s.EndedAt, s.Outcome, s.Message = now, outcome, message
	}
}

// End settles an operation. To end one that has ended changes nothing.
func End(tx *state.Tx, o *Operation, outcome Outcome, message string) error {
	if o.Outcome != Running {
		return nil
	}
	if outcome == Running {
		return fmt.Errorf("operation %s: to end it as running", o.ID)
	}
	o.endStep(tx.Now(), outcome, message)
	o.Outcome, o.Message, o.EndedAt, o.WaitingFor = outcome, message, tx.Now(), ""
	if outcome == Succeeded {
		o.Percent = 100
	}
	if err := operations.Put(tx, o); err != nil {
		return err
	}
	if past, _ := operations.Sum(tx, "past-count", state.KeyOf(o.ProjectID)); past > keepOfProject {
		for oldest := range operations.Peek(tx, "past", state.Range{Prefix: state.KeyOf(o.ProjectID)}) {
			return operations.Delete(tx, oldest.ID)
		}
	}
	return nil
}

// EndAll settles everything under way on a target, as when it is deleted.
func EndAll(tx *state.Tx, target resource.ID, outcome Outcome, message string) error {
	for _, o := range Of(tx, target) {
		if err := End(tx, o, outcome, message); err != nil {
			return err
		}
	}
	return nil
}

// Explain keeps why something was decided.
func Explain(tx *state.Tx, o *Operation, why *Why) error {
	o.Why = why
	return operations.Put(tx, o)
}

// Get gives an operation of any project.
func Get(tx *state.Tx, id resource.ID) (*Operation, error) {
	o, ok := operations.Find(tx, id)
	if !ok {
		return nil, fault.Missing("operation", id)
	}
	return o, nil
}
