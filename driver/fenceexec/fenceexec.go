// Package fenceexec has programs of the operator's make sure that machines are off: for whatever they are switched with. What
// a host's record names is a program in one directory on the controller, and never a command: who may speak to the API is not
// thereby who may run things on a controller.
package fenceexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/unkai-cloud/unkai/core/host"
)

// A Fencer calls programs of a directory.
type Fencer struct{ Dir string }

const (
	mostOutput = 400
	killWithin = 5 * time.Second
)

// Off calls the host's program as "PROGRAM off NAME", with the host's address in UNKAI_ADDRESS. It ends with code 0 once the machine is surely
// off; anything else is a failure, and what it said the reason.
func (f *Fencer) Off(ctx context.Context, h *host.Host) error {
	name := h.Fencing.Program
	if name == "" || name != filepath.Base(name) || strings.HasPrefix(name, ".") {
		return fmt.Errorf("%q is no name of a program", name)
	}
	path := filepath.Join(f.Dir, name)
	if err := trusted(path); err != nil {
		return err
	}
	var said output
	cmd := exec.CommandContext(ctx, path, "off", h.Name)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "UNKAI_HOST=" + h.Name, "UNKAI_HOST_ID=" + h.ID.String()}
	if h.Address.IsValid() {
		cmd.Env = append(cmd.Env, "UNKAI_ADDRESS="+h.Address.String())
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = f.Dir, &said, &said
	// What it has started ends with it.
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = killWithin
	err := cmd.Run()
	if ctx.Err() != nil {
		err = errors.New("it did not end in time")
	}
	if err == nil {
		return nil
	}
	if text := strings.TrimSpace(string(said.kept)); text != "" {
		return fmt.Errorf("%s: %w: %s", name, err, strings.ToValidUTF8(text, "?"))
	}
	return fmt.Errorf("%s: %w", name, err)
}

// trusted refuses a program that others than we and root could have written.
func trusted(path string) error {
	for _, p := range []string{filepath.Dir(path), path} {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return fmt.Errorf("look for %s: %w", p, err)
		}
		if st.Uid != 0 && int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
			return fmt.Errorf("%s can be written by others: it must be root's or the controller's alone", p)
		}
	}
	return nil
}

// output keeps the beginning of what a program says.
type output struct{ kept []byte }

func (o *output) Write(b []byte) (int, error) {
	o.kept = append(o.kept, b[:min(len(b), mostOutput-len(o.kept))]...)
	return len(b), nil
}
