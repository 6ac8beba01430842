// Package state keeps the control plane's truth: typed tables in memory, changed by
// one writer, durable before anyone sees a change.
//
// A domain declares its tables as package variables and reads and writes them through
// a Tx. State.Update runs a function as one transaction: it sees a consistent snapshot,
// and what it wrote is visible all at once, to everybody, only after the Engine has made
// it durable. State.View reads the newest published snapshot and never waits.
//
// Code inside Update is pure: no I/O, no wall clock, no randomness but the Tx's. That is
// what makes a dry run (WithPlan), a replay and a deterministic simulation possible.
//
// The package knows engines and no domain.
package state
