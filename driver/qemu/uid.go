package qemu

import (
	"fmt"
	"os"
)

// firstUID is beyond what systemd and subordinate IDs use.
const firstUID = 1_900_000_000

// freeUID finds a user ID that no other guest has.
func (d *Driver) freeUID(except *guest) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := map[int]bool{}
	for _, g := range d.guests {
		taken[g.uid] = g != except
	}
	for uid := d.firstUID; uid < d.firstUID+d.uids; uid++ {
		if !taken[uid] {
			except.uid = uid
			return uid, nil
		}
	}
	return 0, fmt.Errorf("all %d user IDs for guests are taken", d.uids)
}

// owns tells whether a process of this user can be a guest's.
func (d *Driver) owns(uid int) bool {
	return uid == os.Geteuid() || uid >= d.firstUID && uid < d.firstUID+d.uids
}
