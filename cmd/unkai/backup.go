package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/backup"
	"github.com/unkai-cloud/unkai/driver/fileblob"
)

type backupCommand struct {
	dataOption
	File string `arg:"" help:"Where to: a file that is not there yet (made with mode 0600), or - for standard output."`
}

// Help is what `unkai backup --help` says beside the options.
func (backupCommand) Help() string {
	return `The cloud goes on while it is written. The backup is of one moment: every object of the state as of one revision, images' bytes,
and the first accounts' secrets. It is not encrypted, and whoever can read it can be anybody in the cloud: keep it as you keep a key.
Disks of servers are their hosts', and are not in it.

It is checked as it is written; the file has its name only once it is whole. To keep it elsewhere, or smaller:

  unkai backup - | zstd | ssh elsewhere 'umask 077; cat > unkai.zst'

An S3 bucket as its target is not there yet.`
}

// Run writes a backup of a running cloud.
func (b *backupCommand) Run(ctx context.Context) error {
	if b.File == "-" {
		if info, err := os.Stdout.Stat(); err == nil && info.Mode()&fs.ModeCharDevice != 0 {
			return errors.New("a backup is no text for a terminal: lead it into a file or a program")
		}
		h, err := fetchBackup(ctx, b.Data, os.Stdout)
		if err == nil {
			fmt.Fprintln(os.Stderr, describe(h)+". Its secrets are readable: keep it from others")
		}
		return err
	}
	h, size, err := writeBackup(ctx, b.Data, b.File)
	if err == nil {
		fmt.Printf("%s is %s, %d MiB. It holds secrets and has mode 0600: keep it so\n", b.File, describe(h), size>>20)
	}
	return err
}

func describe(h backup.Header) string {
	return fmt.Sprintf("the backup of revision %d of %s: %d objects, %d images", h.Revision, h.Time.Format(time.RFC3339), h.Records, h.Images)
}

// fetchBackup has the controller write a backup, and reads it for itself to know that it is whole.
func fetchBackup(ctx context.Context, dir string, to io.Writer) (backup.Header, error) {
	client := controlClient(dir, 0)
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://unkai/backup", nil)
	if err != nil {
		return backup.Header{}, err
	}
	res, err := client.Do(req)
	if err != nil {
		return backup.Header{}, fmt.Errorf("no controller answers for %s: is it running?", dir)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, err := io.ReadAll(io.LimitReader(res.Body, 4096))
		return backup.Header{}, errors.Join(errors.New(strings.TrimSpace(string(text))), err)
	}
	return backup.Check(io.TeeReader(res.Body, to))
}

// writeBackup makes a file that is a whole backup, or none.
func writeBackup(ctx context.Context, dir, path string) (h backup.Header, size int64, err error) {
	if _, err := os.Lstat(path); err == nil {
		return h, 0, fmt.Errorf("%s is there already", path)
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return h, 0, err
	}
	defer func() {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			err = errors.Join(err, os.Remove(path+".new"))
		}
	}()
	if h, err = fetchBackup(ctx, dir, f); err != nil {
		return h, 0, err
	}
	info, err := f.Stat()
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return h, 0, err
	}
	err = f.Close()
	f = nil
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, path+".new", unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return h, 0, fmt.Errorf("name the backup %s: %w", path, err)
	}
	return h, info.Size(), syncPath(filepath.Dir(path))
}

// writeTo writes a backup of this cloud as it is now.
func (c *cloud) writeTo(ctx context.Context, w io.Writer) error {
	secrets, err := os.ReadFile(filepath.Join(c.dir, secretsFile))
	if err != nil {
		return err
	}
	defer c.image.Hold()() // before the moment is chosen
	return backup.Write(ctx, w, backup.Source{Tx: c.state.Latest(), Images: c.image, Secrets: secrets, Release: version, Now: time.Now()})
}

// answerBackup streams a backup to whoever asks on the control socket.
func (c *cloud) answerBackup(w http.ResponseWriter, r *http.Request) {
	if !c.state.Leads() { // only that one keeps images' bytes from going
		where := "none does now"
		if c.cluster != nil {
			if link, ok := c.cluster.leader(); ok {
				where = "it is the one at " + link
			}
		}
		http.Error(w, "this controller does not lead: run it on the one that does, "+where, http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := c.writeTo(r.Context(), w); err != nil {
		slog.Error("a backup was not finished", "err", err)
		panic(http.ErrAbortHandler) // so that nobody takes it for whole
	}
}

type restoreCommand struct {
	dataOption
	File   string `arg:"" help:"The backup, or - for standard input."`
	Accept bool   `name:"accept-contradictions" help:"Keep what was restored although the auditor finds contradictions in it: it was so when it was written."`
}

// Help is what `unkai restore --help` says beside the options.
func (restoreCommand) Help() string {
	return `The data directory must be empty, but for host/: that is this machine as a host, with its guests' disks, and it is kept. The backup is
checked to its last byte, and what was made from it by the auditor, before the cloud can be started; one that fails leaves nothing. When
this is killed on its way, the directory says that it is unfinished, no cloud starts on it, and the same command begins anew.

After that, start the cloud (unkai up, or unkai controller) and say

  unkai controller restored

for hosts refuse a state that is older than one they were told of. What the backup does not know they keep for a week (see unkai status).

A backup is read from a file or standard input; an S3 bucket as its source is not there yet.`
}

// Run makes a cloud again from a backup.
func (r *restoreCommand) Run(ctx context.Context) error {
	in := os.Stdin
	if r.File != "-" {
		f, err := os.Open(r.File)
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
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

// syncPath puts what a file holds, or the names in a directory, on the disk.
func syncPath(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// controlClient speaks to the controller of a data directory; within 0 there is no limit of time.
func controlClient(dir string, within time.Duration) *http.Client {
	return &http.Client{Timeout: within, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, controlSocket))
		}}}
}
