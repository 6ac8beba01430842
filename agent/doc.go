// Package agent makes one machine match its part of the desired state. It learns what is
// wanted from a controller, keeps it on disk, calls drivers, and reports what they saw; without a
// controller it goes on with what it knows.
//
// The Agent itself has no goroutine and reads no clock: the simulator drives it step by step;
// Run drives it with goroutines.
package agent
