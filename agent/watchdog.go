package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Device is a Watchdog of the kernel's, as /dev/watchdog. When its process ends it stays armed: the machine is reset
// unless another agent is there in time.
type Device struct {
	path  string
	stays bool     // once armed it cannot rest
	file  *os.File // nil while it is not armed
}

// OpenDevice makes sure that a watchdog works, and lets it rest.
func OpenDevice(path string) (*Device, error) {
	d := &Device{path: path}
	if at, err := filepath.EvalSymlinks(path); err == nil {
		name := filepath.Base(at)
		if name == "watchdog" { // the first one's other name
			name = "watchdog0"
		}
		text, err := os.ReadFile(filepath.Join("/sys/class/watchdog", name, "nowayout"))
		d.stays = err == nil && strings.TrimSpace(string(text)) == "1"
	}
	if err := d.Arm(); err != nil {
		return nil, err
	}
	return d, d.Disarm()
}

// Arm arms it, or pets it.
func (d *Device) Arm() error {
	if d.file == nil {
		f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("open the watchdog: %w", err)
		}
		fd, seconds := int(f.Fd()), int(WatchdogTime.Seconds())
		err = unix.IoctlSetPointerInt(fd, unix.WDIOC_SETTIMEOUT, seconds)
		if err == nil {
			seconds, err = unix.IoctlGetInt(fd, unix.WDIOC_GETTIMEOUT)
		}
		if err == nil && seconds > int(WatchdogTime.Seconds()) {
			err = fmt.Errorf("it takes %d s at least", seconds)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s is no watchdog that resets the machine within %v: %w", d.path, WatchdogTime, err), unmind(f))
		}
		d.file = f
	}
	_, err := d.file.Write([]byte{0})
	return err
}

// Disarm lets it rest; where it cannot, it is petted.
func (d *Device) Disarm() error {
	switch {
	case d.file == nil:
		return nil
	case d.stays:
		return d.Arm()
	}
	f := d.file
	d.file = nil
	return unmind(f)
}

// unmind ends a watchdog's use in the way that disarms it, where the driver lets anybody.
func unmind(f *os.File) error {
	_, err := f.Write([]byte("V"))
	return errors.Join(err, f.Close())
}
