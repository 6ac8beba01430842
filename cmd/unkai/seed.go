package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/unkai-cloud/unkai/api/metadata"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// seeds builds config drives: ISO 9660 with Joliet and Rock Ridge, labelled config-2. One
// is made anew when what it says has changed, and the guest sees that at its next start.
type seeds struct{ dir string }

func (s seeds) path(id resource.ID) string { return filepath.Join(s.dir, id.String()+".iso") }

// open removes what an earlier process did not finish: user data and passwords are in it.
func (s seeds) open() error {
	var failures []error
	for _, pattern := range []string{"iso-*", "*.new"} {
		left, err := filepath.Glob(filepath.Join(s.dir, pattern))
		failures = append(failures, err)
		for _, path := range left {
			failures = append(failures, os.RemoveAll(path))
		}
	}
	return errors.Join(failures...)
}

// build answers the path of a guest's config drive.
func (s seeds) build(g compute.Guest) (string, error) {
	facts, err := json.Marshal(struct {
		Name string
		compute.Metadata
	}{g.Name, g.Metadata})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(facts)
	mark := hex.EncodeToString(sum[:])
	made := s.path(g.ID)
	was, err := os.ReadFile(made + ".sum")
	if _, there := os.Stat(made); err == nil && there == nil && string(was) == mark {
		return made, nil
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return "", err
	}
	var seed [512]byte
	rand.Read(seed[:])
	if err := writeISO(made+".new", metadata.ConfigDrive(&g, seed[:])); err != nil {
		return "", err
	}
	if err := os.Rename(made+".new", made); err != nil {
		return "", err
	}
	return made, writePrivate(made+".sum", []byte(mark))
}

// remove takes a guest's config drive away.
func (s seeds) remove(id resource.ID) error {
	for _, name := range []string{s.path(id), s.path(id) + ".sum"} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func writeISO(name string, files []metadata.ConfigFile) (err error) {
	const block = 2048
	size := int64(1 << 20)
	for _, f := range files {
		size += int64(len(f.Data)) + 4*block
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := out.Truncate(size); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(name), "iso-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	iso, err := iso9660.Create(file.New(out, false), size, 0, block, work)
	if err != nil {
		return fmt.Errorf("begin the image: %w", err)
	}
	for _, f := range files {
		if err := addFile(iso, "/"+f.Path, f.Data); err != nil {
			return fmt.Errorf("add %s: %w", f.Path, err)
		}
	}
	return iso.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: "config-2"})
}

func addFile(iso *iso9660.FileSystem, name string, data []byte) error {
	if err := iso.Mkdir(path.Dir(name)); err != nil {
		return err
	}
	f, err := iso.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
