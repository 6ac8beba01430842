package linuxnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A store keeps the wishes that the kernel is to hold, so that a new process
// goes on where the last one stopped: it knows which rules are in force and
// whom to answer. It lives as long as the kernel's things do, so it stands on
// a file system that a reboot clears, and needs no sync.
type store struct{ dir string }

// Kinds of wishes, as in network.Thing.
const (
	segmentKind    = "segment"
	attachmentKind = "attachment"
	filterKind     = "filter"
	gatewayKind    = "gateway"
)

var kinds = []string{segmentKind, attachmentKind, filterKind, gatewayKind}

func (s store) path(kind string, id resource.ID) string {
	return filepath.Join(s.dir, kind, id.String()+".json")
}

func (s store) save(kind string, id resource.ID, wish any) error {
	data, err := json.Marshal(wish)
	if err != nil {
		return fmt.Errorf("keep %s %s: %w", kind, id, err)
	}
	path := s.path(kind, id)
	temporary := path + ".new"
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("keep %s %s: %w", kind, id, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("keep %s %s: %w", kind, id, err)
	}
	return nil
}

func (s store) forget(kind string, id resource.ID) error {
	if err := os.Remove(s.path(kind, id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget %s %s: %w", kind, id, err)
	}
	return nil
}

// load gives each wish of a kind to use.
func load[T any](s store, kind string, use func(resource.ID, T)) error {
	dir := filepath.Join(s.dir, kind)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the network's state directory: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the network's state directory: %w", err)
	}
	for _, entry := range entries {
		name, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue // a file that a crash left half written
		}
		id, err := resource.ParseID(name)
		if err != nil {
			return fmt.Errorf("read the network's state directory: %s: %w", entry.Name(), err)
		}
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return fmt.Errorf("read kept %s: %w", kind, err)
		}
		var wish T
		if err := json.Unmarshal(data, &wish); err != nil {
			return fmt.Errorf("read kept %s %s: %w", kind, id, err)
		}
		use(id, wish)
	}
	return nil
}
