package host

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A host says how much of its disks is free whenever that is another percentage than before. Written down is only what that comes to: a disk that fills
// is two changes of the state, and one on which guests come and go none.

// A Room is how much is left of a file system.
type Room string

const (
	Enough   Room = ""
	Low      Room = "low"
	Critical Room = "critical"
)

// Bounds of a Room, in percent that are free: at which it begins, and above which it ends. Between the two it is as it was, so that it does not come and go.
const (
	LowBegins, LowEnds           = 10, 15
	CriticalBegins, CriticalEnds = 3, 5
)

// After is the room that is left when so many percent are free; before, it was r.
func (r Room) After(free int) Room {
	switch {
	case free <= CriticalBegins || free <= CriticalEnds && r == Critical:
		return Critical
	case free <= LowBegins || free <= LowEnds && r != Enough:
		return Low
	}
	return Enough
}

// A Shortage is that little is left of a file system of a host's.
type Shortage struct {
	Room  Room
	Since time.Time // as little as that
}

// FreePart is how many percent of a file system are free that has so many bytes, or blocks. Of one without a size all are.
func FreePart(free, size uint64) int {
	switch {
	case size == 0 || free >= size:
		return 100
	case size < 100:
		return int(free * 100 / size)
	}
	return int(min(free/(size/100), 100)) // free*100 might not fit
}

// Free is how many percent of a host's file systems are free; 100 of one that it has not.
type Free struct {
	Own    int // of those with its data directory and its guests' disks, the fullest
	Shared int // of the storage that it shares with other hosts
}

// DiskKind is the kind of the report that says how much is free.
const DiskKind = "host-disk"

// disks takes such reports in. Whoever reports means itself.
func disks() Source {
	return Reports(DiskKind, func(tx *state.Tx, host, _ resource.ID, seen json.RawMessage) error {
		var free Free
		if err := json.Unmarshal(seen, &free); err != nil {
			return fmt.Errorf("decode how full the disks of host %s are: %w", host, err)
		}
		return Fill(tx, host, free)
	})
}

// Fill records whether enough is left of a host's disks. One that is lost is not asked.
func Fill(tx *state.Tx, id resource.ID, free Free) error {
	for _, percent := range []int{free.Own, free.Shared} {
		if percent < 0 || percent > 100 {
			return fault.Errorf(fault.Invalid, "The host says that %d percent of a disk are free.", percent)
		}
	}
	h, ok := hosts.Find(tx, id)
	if !ok || !h.Up() {
		return nil
	}
	if h.Capacity.Storage == "" {
		free.Shared = 100
	}
	own, shared := h.Disk.after(free.Own, tx.Now()), h.SharedDisk.after(free.Shared, tx.Now())
	if own == h.Disk && shared == h.SharedDisk {
		return nil
	}
	h.Disk, h.SharedDisk = own, shared
	return hosts.Put(tx, h)
}

func (s Shortage) after(free int, now time.Time) Shortage {
	switch room := s.Room.After(free); room {
	case s.Room:
		return s
	case Enough:
		return Shortage{}
	default:
		return Shortage{room, now}
	}
}

// Words say it to an operator, to be put after the name of the disk; "" when enough is left.
func (s Shortage) Words() string {
	switch s.Room {
	case Critical:
		return fmt.Sprintf("is nearly full, %d %% free or less, since %s", CriticalEnds, s.Since.UTC().Format(time.RFC3339))
	case Low:
		return fmt.Sprintf("has little room left, %d %% or less, since %s", LowEnds, s.Since.UTC().Format(time.RFC3339))
	}
	return ""
}
