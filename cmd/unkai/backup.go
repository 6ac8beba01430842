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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/backup"
	"github.com/unkai-cloud/unkai/driver/s3"
)

type backupCommand struct {
	dataOption
	bucketOptions
	File string `arg:"" help:"Where to: a file that is not there yet (made with mode 0600), s3://BUCKET/KEY, or - for standard output."`
}

// bucketOptions say which service an s3:// address is at, in the words that clients of Amazon's know.
type bucketOptions struct {
	Endpoint string `name:"s3-endpoint" env:"AWS_ENDPOINT_URL_S3,AWS_ENDPOINT_URL" help:"The service that has the bucket, as https://HOST[:PORT]; Amazon's when empty."`
	Region   string `name:"s3-region" env:"AWS_REGION,AWS_DEFAULT_REGION" help:"Its region."`
	Insecure bool   `name:"insecure-plain-http" help:"Let the service be one of plain HTTP beyond loopback. The backup's secrets then cross the network unprotected."`
}

func (b bucketOptions) open(address string) (*s3.Object, error) {
	return s3.Open(address, s3.Options{Endpoint: b.Endpoint, Region: b.Region, Insecure: b.Insecure})
}

// Help is what `unkai backup --help` says beside the options.
func (backupCommand) Help() string {
	return `The cloud goes on while it is written. The backup is of one moment: every object of the state as of one revision, images' bytes,
and the first accounts' secrets. It is not encrypted, and whoever can read it can be anybody in the cloud: keep it as you keep a key.
Disks of servers are their hosts', and are not in it.

It is checked as it is written; the file has its name only once it is whole. To keep it elsewhere, or smaller:

  unkai backup - | zstd | ssh elsewhere 'umask 077; cat > unkai.zst'

In a bucket it appears once it is whole, too, and nothing that is there is written over. Credentials are as any client of Amazon's has them:
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or the role of an Amazon machine. 64 MiB of memory are used.`
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
	if s3.Names(b.File) {
		h, size, err := b.upload(ctx)
		if err == nil {
			fmt.Printf("%s is %s, %d MiB. It holds secrets: let nobody else read the bucket\n", b.File, describe(h), size>>20)
		}
		return err
	}
	h, size, err := writeBackup(ctx, b.Data, b.File)
	if err == nil {
		fmt.Printf("%s is %s, %d MiB. It holds secrets and has mode 0600: keep it so\n", b.File, describe(h), size>>20)
	}
	return err
}

// upload makes an object that is a whole backup, or none.
func (b *backupCommand) upload(ctx context.Context) (h backup.Header, size int64, err error) {
	to, err := b.open(b.File)
	if err != nil {
		return h, 0, err
	}
	ctx, cancel := context.WithCancel(ctx) // of what the controller writes, when the service takes no more
	defer cancel()
	r, w := io.Pipe()
	fetched := make(chan backup.Header, 1)
	go func() {
		h, err := fetchBackup(ctx, b.Data, w)
		fetched <- h
		w.CloseWithError(err) // the end of the stream only when what was read is whole
	}()
	size, err = to.Put(ctx, r)
	r.CloseWithError(err)
	return <-fetched, size, err
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
