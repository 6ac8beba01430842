package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/driver/qemu/qcow2"
	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// imageBytes is how large the disk is that an image holds.
func imageBytes(image *compute.ImageRef) (int64, error) {
	f, err := os.Open(image.Path)
	if err != nil {
		return 0, fmt.Errorf("open image %s: %w", image.ID, err)
	}
	defer f.Close()
	size, err := bytesIn(f, image.Format)
	if err != nil {
		return 0, fmt.Errorf("size of image %s: %w", image.ID, err)
	}
	return size, nil
}

// diskBytes is how large a disk is that was made already: its guest may have had it grown on another host.
func diskBytes(path, format string) (int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return bytesIn(f, format)
}

func bytesIn(f *os.File, format string) (size int64, err error) {
	if format == "qcow2" {
		size, err = qcow2.Size(f)
	} else {
		size, err = f.Seek(0, io.SeekEnd)
	}
	return (size + 511) &^ 511, err
}

// plan fills in how the disk is to be made. What is made already stays as it is.
func (d *device) plan(w compute.Disk) error {
	d.takeDisk(w)
	if d.Made {
		return nil
	}
	d.Bytes, d.Format, d.Image = int64(w.SizeMiB)*mib, "raw", imageFile{}
	if w.Image != nil {
		size, err := imageBytes(w.Image)
		if err != nil {
			return err
		}
		d.Bytes, d.Format = max(d.Bytes, size), "qcow2"
		d.Image = imageFile{w.Image.ID, w.Image.Path, w.Image.Format}
	}
	return nil
}

// makeDisk makes a disk's file, which appears complete or not at all.
func (g *guest) makeDisk(ctx context.Context, d *device) error {
	path := d.file(g.disks())
	_, err := os.Stat(path)
	switch {
	case err == nil && d.Made:
		return nil
	case err == nil:
		d.Made = true
		d.Bytes, err = diskBytes(path, d.Format)
		return err
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case d.Made:
		return fmt.Errorf("disk %s is lost: %w", d.Name, err)
	}
	draft := path + ".new"
	if g.rec.Storage != "" { // where another host may have one of its own
		draft = fmt.Sprintf("%s.%d-%d.new", path, g.rec.Claim.Era, g.rec.Claim.Epoch)
	}
	if err := remove(draft); err != nil {
		return err
	}
	if d.Format == "qcow2" {
		err = qcow2.Write(draft, d.Bytes, d.Image.Path, d.Image.Format)
	} else {
		err = blank(ctx, draft, d.Bytes, d.Label)
	}
	if err != nil {
		return fmt.Errorf("make disk %s: %w", d.Name, err)
	}
	if err := g.amongDisks(ctx, func(dir *os.Root) error { return dir.Rename(filepath.Base(draft), filepath.Base(path)) }); err != nil {
		return errors.Join(err, remove(draft))
	}
	d.Made = true
	return nil
}

// blank makes a disk of zeros, or with an empty file system in it.
func blank(ctx context.Context, path string, size int64, label string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil || label == "" {
		return err
	}
	program, args := "mke2fs", []string{"-q", "-F", "-t", "ext4", "-L", label, path}
	if label == "swap" {
		program, args = "mkswap", []string{"-L", label, path}
	}
	if found, err := exec.LookPath(program); err == nil {
		program = found
	} else {
		program = filepath.Join("/usr/sbin", program) // often not on an ordinary PATH
	}
	if out, err := exec.CommandContext(ctx, program, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return nil
}

// copyImage makes a copy that its guest's user may read, sharing the blocks
// where the file system can. It does nothing if have is already the image.
func copyImage(image *compute.ImageRef, path string, uid int, have *resource.ID) error {
	if *have == image.ID {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
	}
	from, err := os.Open(image.Path)
	if err != nil {
		return fmt.Errorf("open image %s: %w", image.ID, err)
	}
	defer from.Close()
	to, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o400)
	if err != nil {
		return err
	}
	if err = unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		_, err = io.Copy(to, from)
	}
	if err == nil && os.Geteuid() == 0 {
		err = to.Chown(uid, uid)
	}
	if err = errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copy image %s: %w", image.ID, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	*have = image.ID
	return nil
}
