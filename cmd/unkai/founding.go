package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/durable"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

// A state that is not there may be one that has not begun, or one whose disk is not mounted: only the first may be founded. What tells
// them apart is what a cloud leaves in its data directory beside the state, and a mark that is there from before the first of it until the cloud is
// whole, so that a founding that is killed goes on with the next start.
const foundingMark = "founding-unfinished"

// tracesOf are what shows that a controller has been at work in a data directory, beside the state itself.
func tracesOf(dir string) ([]string, error) {
	var found []string
	for _, name := range []string{secretsFile, membershipFile, filepath.Join("peer", authorityFile), filepath.Join("host", agent.IdentityFile)} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			found = append(found, name)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	images, err := os.ReadDir(filepath.Join(dir, "images"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	blobs := 0
	for _, i := range images {
		if strings.HasSuffix(i.Name(), ".blob") {
			blobs++
		}
	}
	if blobs > 0 {
		found = append(found, fmt.Sprintf("%d images", blobs))
	}
	return found, nil
}

// founding reports whether a cloud is being founded in a directory, or this controller's share of one.
func founding(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, foundingMark))
	return err == nil
}

// beginFounding is asked before anything is made in a data directory whose state is in it, or is to be: it lets a cloud begin where none has
// been. What is there already it lets be.
func beginFounding(dir string) error {
	if err := refuseUnfinished(dir); err != nil {
		return err
	}
	if etcd.Kept(filepath.Join(dir, "etcd")) || founding(dir) {
		return nil
	}
	traces, err := tracesOf(dir)
	if err != nil {
		return err
	}
	if len(traces) > 0 {
		return stateIsMissing(dir, filepath.Join(dir, "etcd"), traces)
	}
	return markFounding(dir)
}

func markFounding(dir string) error {
	return durable.Write(filepath.Join(dir, foundingMark), []byte("a controller begins here for the first time, and is not whole yet\n"), 0o600)
}

// endFounding is called once nothing is missing.
func endFounding(dir string) error {
	err := os.Remove(filepath.Join(dir, foundingMark))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(err, syncPath(dir))
}

// stateIsMissing is why no cloud is founded where one has been. Nothing has been changed.
func stateIsMissing(dir, where string, traces []string) error {
	return fmt.Errorf(`the state is missing: a controller has been at work in %s (%s), and there is nothing in %s. No new cloud is made there, for it would know nothing of that one's images and guests.
If the state's disk is not mounted, mount it. If the state is lost, restore a backup into an empty directory, but for host/ (unkai restore); where other controllers have it, dismiss this one there (unkai controller dismiss) and join anew from an empty directory. For a new cloud move %s away, or remove it`,
		dir, strings.Join(traces, ", "), where, dir)
}

// knows reports why the state whose authority is given, or nothing if it has none, is not of the cloud that this controller is one of; nil also if it
// has been one of none so far.
func (m *membership) knows(authority []byte) error {
	kept, err := os.ReadFile(m.file(authorityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && len(authority) > 0 && !bytes.Equal(kept, authority) {
		err = fmt.Errorf("the state is another cloud's: its authority is not the one in %s. Give the --etcd and the --etcd-prefix that this controller began with, or begin with an empty data directory", m.file(authorityFile))
	}
	return err
}
