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
func diskBytes(dir *os.Root, name, format string) (int64, error) {
	f, err := openPlain(dir, name, os.O_RDONLY)
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
	dir, err := g.diskRoot()
	if err != nil {
		return err
	}
	defer dir.Close()
	name := d.file("")
	_, err = dir.Lstat(name)
	switch {
	case err == nil && d.Made:
		return nil
	case err == nil:
		d.Bytes, err = diskBytes(dir, name, d.Format)
		d.Made = err == nil
		return err
	case !errors.Is(err, fs.ErrNotExist):
		return err
	case d.Made:
		return fmt.Errorf("disk %s is lost: %w", d.Name, err)
	}
	draft := name + ".new"
	if g.rec.Storage != "" { // where another host may have one of its own
		draft = fmt.Sprintf("%s.%d-%d.new", name, g.rec.Claim.Era, g.rec.Claim.Epoch)
	}
	if err := dir.RemoveAll(draft); err != nil {
		return err
	}
	f, err := openPlain(dir, draft, os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return fmt.Errorf("make disk %s: %w", d.Name, err)
	}
	if d.Format == "qcow2" {
		err = qcow2.Fill(f, d.Bytes, d.Image.Path, d.Image.Format)
	} else {
		err = blank(ctx, f, d.Bytes, d.Label)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("make disk %s: %w", d.Name, err)
	}
	if err := g.amongDisks(ctx, func(dir *os.Root) error { return dir.Rename(draft, name) }); err != nil {
		return errors.Join(err, dir.RemoveAll(draft))
	}
	d.Made = true
	return nil
}

// blank makes a disk of zeros of a file, or one with an empty file system in it. The file's name may be another file's by now.
func blank(ctx context.Context, f *os.File, size int64, label string) error {
	if err := f.Truncate(size); err != nil || label == "" {
		return err
	}
	const path = "/proc/self/fd/3" // of the program
	program, args := "mke2fs", []string{"-q", "-F", "-t", "ext4", "-L", label, path}
	if label == "swap" {
		program, args = "mkswap", []string{"-L", label, path}
	}
	if found, err := exec.LookPath(program); err == nil {
		program = found
	} else {
		program = filepath.Join("/usr/sbin", program) // often not on an ordinary PATH
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err != nil {
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
