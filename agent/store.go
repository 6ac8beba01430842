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
	"time"

	"go.etcd.io/bbolt"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Store keeps what is wanted over a restart, so that a host goes on without a controller.
type Store interface {
	Load() (Kept, error)
	// Save makes a change last, all of it or nothing, before it returns.
	Save(Change) error
}

// Kept is what a Store remembers.
type Kept struct {
	Items []host.Item
	Held  map[host.Key]Held
	Mark  host.Mark
}

// A Change is what is to be remembered from now on.
type Change struct {
	Items []host.Item        // without a body: nothing is wanted of the thing any more
	Held  map[host.Key]*Held // nil: it is not held any more
	Mark  host.Mark          // the zero one leaves it as it is
}

// Held is a thing that nobody wants and that is kept for a while.
type Held struct {
	Since time.Time
	Body  json.RawMessage `json:",omitempty"` // what was last wanted of it; nil if that is not known
}

// A FileStore is a Store in one file. Only the agent's own user may read it: guests'
// secrets are in it.
type FileStore struct{ db *bbolt.DB }

var (
	wantsBucket = []byte("wants")
	heldBucket  = []byte("held")
	selfBucket  = []byte("self")
	markKey     = []byte("mark")
)

const storeFile = "wants.db"

// OpenStore opens the store in a directory, which it creates. What an earlier release kept there, one
// file a thing, is taken over.
func OpenStore(dir string) (*FileStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// A file of freed pages need not be kept in step: it is found out anew at the start.
	db, err := bbolt.Open(filepath.Join(dir, storeFile), 0o600, &bbolt.Options{Timeout: 5 * time.Second, NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", filepath.Join(dir, storeFile), err)
	}
	s := &FileStore{db}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{wantsBucket, heldBucket, selfBucket} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = s.takeOver(dir)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return s, nil
}

// Close lets go of the file.
func (s *FileStore) Close() error { return s.db.Close() }

// takeOver moves the files of an earlier release into the store.
func (s *FileStore) takeOver(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*_*.json*"))
	if err != nil || len(files) == 0 {
		return err
	}
	var c Change
	for _, path := range files {
		key, ok := parseKey(strings.TrimSuffix(filepath.Base(path), ".json"), "_")
		if !ok {
			continue // half-written
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		c.Items = append(c.Items, host.Item{Key: key, Body: body})
	}
	if err := s.Save(c); err != nil {
		return err
	}
	for _, path := range files {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func parseKey(name, separator string) (host.Key, bool) {
	kind, text, ok := strings.Cut(name, separator)
	id, err := resource.ParseID(text)
	return host.Key{Kind: kind, ID: id}, ok && err == nil
}

func nameOf(key host.Key) []byte { return []byte(key.Kind + "/" + key.ID.String()) }

// Load gives everything kept. What cannot be read is left out: the controller will tell it again.
func (s *FileStore) Load() (Kept, error) {
	k := Kept{Held: map[host.Key]Held{}}
	damaged := func(what, name []byte) error {
		slog.Warn("something that the agent kept is damaged on disk", "what", string(what), "name", string(name))
		return nil
	}
	err := s.db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(wantsBucket).ForEach(func(name, body []byte) error {
			key, ok := parseKey(string(name), "/")
			if !ok || !json.Valid(body) {
				return damaged(wantsBucket, name)
			}
			k.Items = append(k.Items, host.Item{Key: key, Body: append(json.RawMessage(nil), body...)})
			return nil
		})
		if err != nil {
			return err
		}
		if text := tx.Bucket(selfBucket).Get(markKey); text != nil && json.Unmarshal(text, &k.Mark) != nil {
			damaged(selfBucket, markKey)
		}
		return tx.Bucket(heldBucket).ForEach(func(name, text []byte) error {
			key, ok := parseKey(string(name), "/")
			var h Held
			if !ok || json.Unmarshal(text, &h) != nil {
				return damaged(heldBucket, name)
			}
			k.Held[key] = h
			return nil
		})
	})
	return k, err
}

// Save keeps a change.
func (s *FileStore) Save(c Change) error {
	return s.db.Update(func(tx *bbolt.Tx) error {
		wants, held := tx.Bucket(wantsBucket), tx.Bucket(heldBucket)
		for _, item := range c.Items {
			var err error
			if item.Body == nil {
				err = wants.Delete(nameOf(item.Key))
			} else {
				err = wants.Put(nameOf(item.Key), item.Body)
			}
			if err != nil {
				return fmt.Errorf("keep %s %s: %w", item.Kind, item.ID, err)
			}
		}
		for key, h := range c.Held {
			if h == nil {
				if err := held.Delete(nameOf(key)); err != nil {
					return err
				}
				continue
			}
			text, err := json.Marshal(h)
			if err != nil {
				return err
			}
			if err := held.Put(nameOf(key), text); err != nil {
				return fmt.Errorf("keep %s %s: %w", key.Kind, key.ID, err)
			}
		}
		if c.Mark == (host.Mark{}) {
			return nil
		}
		text, err := json.Marshal(c.Mark)
		if err != nil {
			return err
		}
		return tx.Bucket(selfBucket).Put(markKey, text)
	})
}
