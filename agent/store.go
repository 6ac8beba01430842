package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Store keeps what is wanted over a restart, so that a host goes on without a controller.
type Store interface {
	// Load gives everything kept.
	Load() ([]host.Item, error)
	// Save keeps a delivery. had is what was wanted before.
	Save(d host.Delivery, had map[host.Key]json.RawMessage) error
}

// A DirStore is a Store on disk, one file a thing. Only the agent's own user may read it:
// guests' secrets are in it.
type DirStore struct{ dir string }

// NewDirStore makes a store in a directory, which it creates.
func NewDirStore(dir string) (*DirStore, error) {
	return &DirStore{dir}, os.MkdirAll(dir, 0o700)
}

func (s *DirStore) path(key host.Key) string {
	return filepath.Join(s.dir, key.Kind+"_"+key.ID.String()+".json")
}

// Load gives everything kept. A file that cannot be read as JSON is left out: the
// controller will tell it again.
func (s *DirStore) Load() ([]host.Item, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var items []host.Item
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		kind, text, ok2 := strings.Cut(name, "_")
		id, err := resource.ParseID(text)
		if !ok || !ok2 || err != nil {
			continue // a half-written temporary file
		}
		body, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if !json.Valid(body) {
			slog.Warn("what was wanted of a thing is damaged on disk", "kind", kind, "id", id)
			continue
		}
		items = append(items, host.Item{Key: host.Key{Kind: kind, ID: id}, Body: body})
	}
	return items, nil
}

// Save keeps a delivery.
func (s *DirStore) Save(d host.Delivery, had map[host.Key]json.RawMessage) error {
	named := map[host.Key]bool{}
	for _, item := range d.Items {
		named[item.Key] = true
		if err := s.save(item, had[item.Key]); err != nil {
			return err
		}
	}
	if !d.Full {
		return nil
	}
	for key := range had {
		if !named[key] {
			if err := s.save(host.Item{Key: key}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *DirStore) save(item host.Item, had json.RawMessage) error {
	path := s.path(item.Key)
	if item.Body == nil {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if string(had) == string(item.Body) {
		return nil
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, item.Body, 0o600); err != nil {
		return fmt.Errorf("write %s %s: %w", item.Kind, item.ID, err)
	}
	return os.Rename(temp, path)
}
