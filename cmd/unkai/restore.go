package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/backup"
	"github.com/unkai-cloud/unkai/driver/fileblob"
	"github.com/unkai-cloud/unkai/driver/s3"
)

type restoreCommand struct {
	dataOption
	bucketOptions
	File   string `arg:"" help:"The backup: a file, s3://BUCKET/KEY, or - for standard input."`
	Accept bool   `name:"accept-contradictions" help:"Keep what was restored although the auditor finds contradictions in it: it was so when it was written."`
}

// Help is what `unkai restore --help` says beside the options.
func (restoreCommand) Help() string {
	return `The data directory must be empty, but for host/: that is this machine as a host, with its guests' disks, and it is kept. The backup is
checked to its last byte, and what was made from it by the auditor, before the cloud can be started; one that fails leaves nothing. When
this is killed on its way, the directory says that it is unfinished, no cloud starts on it, and the same command begins anew.

After that, start the cloud (unkai up, or unkai controller) and say

  unkai controller restored

for hosts refuse a state that is older than one they were told of. What the backup does not know they keep for a week (see unkai status).`
}

// Run makes a cloud again from a backup.
func (r *restoreCommand) Run(ctx context.Context) error {
	in, err := r.source(ctx)
	if err != nil {
		return err
	}
	defer in.Close()
	h, found, err := restoreDir(ctx, r.Data, in, r.Accept)
	for _, f := range found {
		fmt.Fprintln(os.Stderr, f)
	}
	if err != nil {
		return err
	}
	fmt.Printf("%s is made again from %s, written by release %s\n", r.Data, describe(h), h.Release)
	fmt.Println("start it, and then have hosts heed it: unkai controller restored --data", r.Data)
	return nil
}

func (r *restoreCommand) source(ctx context.Context) (io.ReadCloser, error) {
	switch {
	case r.File == "-":
		return os.Stdin, nil
	case s3.Names(r.File):
		from, err := r.open(r.File)
		if err != nil {
			return nil, err
		}
		return from.Get(ctx)
	default:
		return os.Open(r.File)
	}
}

// restoreMark is in a directory as long as a restore into it has not ended well.
const restoreMark = "restore-unfinished"

// refuseUnfinished is asked before a cloud is opened.
func refuseUnfinished(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, restoreMark)); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(fmt.Errorf("%s holds a restore that did not finish, and is no cloud: run unkai restore again", dir), err)
	}
	return nil
}

// made are what a restore makes in a directory.
var made = []string{"etcd", "images", secretsFile, secretsFile + ".new"}

// restoreDir makes a cloud in a directory, or leaves it as it was.
func restoreDir(ctx context.Context, dir string, in io.Reader, accept bool) (h backup.Header, found []audit.Finding, err error) {
	lock, err := lockDir(dir)
	if err != nil {
		return h, nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := clearUnfinished(dir); err != nil {
		return h, nil, err
	}
	if err := refuseUsed(dir); err != nil {
		return h, nil, err
	}
	mark := filepath.Join(dir, restoreMark)
	if err := errors.Join(os.WriteFile(mark, []byte("unkai restore has begun here and not ended: this is no cloud yet\n"), 0o600), syncPath(dir)); err != nil {
		return h, nil, err
	}
	h, found, err = restoreInto(ctx, dir, in)
	if err == nil && len(found) > 0 && !accept {
		err = fmt.Errorf("%d contradictions are in it; --accept-contradictions keeps it all the same", len(found))
	}
	if err != nil {
		return h, found, errors.Join(err, clearUnfinished(dir))
	}
	return h, found, errors.Join(syncPath(dir), os.Remove(mark), syncPath(dir))
}

// refuseUsed refuses a directory with anything in it that is not a host's.
func refuseUsed(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !slices.Contains([]string{"lock", "host"}, e.Name()) {
			return fmt.Errorf("%s is not empty: %s is in it. Restore into a new directory", dir, e.Name())
		}
	}
	return nil
}

// clearUnfinished takes away what an unfinished restore made, if there was one; the mark goes last.
func clearUnfinished(dir string) error {
	mark := filepath.Join(dir, restoreMark)
	if _, err := os.Lstat(mark); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, name := range made {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return errors.Join(syncPath(dir), os.Remove(mark), syncPath(dir))
}

func restoreInto(ctx context.Context, dir string, in io.Reader) (h backup.Header, found []audit.Finding, err error) {
	blobs, err := fileblob.New(filepath.Join(dir, "images"))
	if err != nil {
		return h, nil, err
	}
	engine, err := etcd.Open(ctx, etcd.Options{Dir: filepath.Join(dir, "etcd")})
	if err != nil {
		return h, nil, fmt.Errorf("begin a state in %s: %w", dir, err)
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	return backup.Restore(ctx, in, backup.Target{Engine: engine, Blobs: blobs,
		Header: func(h backup.Header) error {
			slog.Info("restoring", "release", h.Release, "revision", h.Revision, "objects", h.Records, "images", h.Images)
			return nil
		},
		Secrets: func(text []byte) error {
			path := filepath.Join(dir, secretsFile)
			return errors.Join(writePrivate(path, text), syncPath(path))
		},
	})
}
