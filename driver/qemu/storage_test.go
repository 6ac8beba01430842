package qemu

import "testing"

// TestSharedDisks is the contract of movers for two hosts that keep disks in one folder.
func TestSharedDisks(t *testing.T) {
	t.Parallel()
	testMover(t, true)
}
