package etcd

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// releasePages tells the kernel that the pages of the server's file, which it maps into
// memory as a whole, will hardly be read again: who commits has tables of its own, and the
// server goes on at the file's end. Advice that comes too late, for a mapping that has moved,
// does no harm: MADV_PAGEOUT never changes what memory holds.
func (s *server) releasePages() error {
	file := filepath.Join(s.etcd.Config().Dir, "member", "snap", "db")
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		var from, to uintptr
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x ", &from, &to); err != nil || !strings.HasSuffix(lines.Text(), file) {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_PAGEOUT); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return lines.Err()
}
