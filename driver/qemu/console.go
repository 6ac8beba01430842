package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"golang.org/x/sys/unix"
)

// QEMU itself appends what a guest writes to its serial port to a file, so that
// nothing is lost while no agent runs. We only cut off its beginning. While no driver runs nobody
// does, and the file grows as fast as the guest can write to a serial port: QEMU knows no bound for it,
// a limit on the size of files (RLIMIT_FSIZE) would hold its disks too, a pipe that nobody empties would
// hold it up, and project quotas are not on every file system.

const trimEvery = time.Second

// trimLogs keeps the logs short until the driver is closed.
func (d *Driver) trimLogs() {
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	for {
		select {
		case <-d.closing.Done():
			return
		case <-ticker.C:
		}
		d.mu.Lock()
		dirs := make([]string, 0, len(d.guests))
		for _, g := range d.guests {
			dirs = append(dirs, g.dir)
		}
		d.mu.Unlock()
		for _, dir := range dirs {
			for _, name := range []string{consoleFile, stderrFile} {
				if err := trim(filepath.Join(dir, name), d.logBytes); err != nil && !errors.Is(err, os.ErrNotExist) {
					d.log.Error("guest's log cannot be shortened", "dir", dir, "error", err)
				}
			}
		}
	}
}

// trim frees the blocks of all but the last bytes of a file that is being
// appended to, once it takes twice as much. The file's size stays: nothing that
// is written meanwhile can be lost.
func trim(path string, keep int64) error {
	var info unix.Stat_t
	if err := unix.Stat(path, &info); err != nil {
		return err
	}
	if info.Blocks*512 <= 2*keep {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, (info.Size-keep)&^4095)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(0) // a file system without holes: better a gap than a full disk
	}
	return err
}

// ConsoleLog implements compute.Consoler.
func (d *Driver) ConsoleLog(ctx context.Context, id resource.ID, max int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g, err := d.known(id)
	if err != nil {
		return nil, err
	}
	defer g.mu.Unlock()
	f, err := os.Open(filepath.Join(g.dir, consoleFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // it has never run
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	log := make([]byte, min(size, d.logBytes, int64(max)))
	n, err := f.ReadAt(log, size-int64(len(log)))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return log[:n], err
}

// Console implements compute.Consoler.
func (d *Driver) Console(ctx context.Context, id resource.ID, kind string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if kind != "vnc" && kind != "serial" {
		return nil, fault.Errorf(fault.Unsupported, "There is no console of type %q.", kind)
	}
	g, err := d.known(id)
	if err != nil {
		return nil, err
	}
	defer g.mu.Unlock()
	if now, err := g.look(ctx); err != nil {
		return nil, err
	} else if now == gone || now == starting {
		return nil, fault.Errorf(fault.Conflict, "The guest is not running.")
	}
	if kind == "vnc" {
		return g.vnc(ctx)
	}
	return g.serialPort(ctx)
}

// vnc hands QEMU one end of a connection. There is no listener that others could reach.
func (g *guest) vnc(ctx context.Context) (net.Conn, error) {
	here, there, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer there.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	name := "console" + strconv.FormatInt(time.Now().UnixNano(), 36)
	err = g.monitor.ExecuteWithFile(ctx, there, "getfd", object{"fdname": name}, nil)
	if err == nil {
		err = g.monitor.Execute(ctx, "add_client", object{"protocol": "vnc", "fdname": name, "skipauth": true}, nil)
	}
	if err != nil {
		here.Close()
		return nil, fmt.Errorf("guest %s: %w", g.id, err)
	}
	return here, nil
}

// A serialConsole passes bytes between QEMU and whoever looks at the console.
// There is one for a guest: a new one takes over.
type serialConsole struct {
	qemu, client *net.UnixConn
	once         sync.Once
}

func (s *serialConsole) end() {
	s.once.Do(func() {
		s.qemu.Close()
		s.client.Close()
	})
}

// stalled is how long somebody may not read before he is cut off: QEMU would
// hold the guest's output back for as long.
const stalled = 5 * time.Second

func (g *guest) serialPort(ctx context.Context) (net.Conn, error) {
	qemu, err := dial(ctx, g.dir, serialSocket)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.id, err)
	}
	client, end, err := socketPair()
	if err != nil {
		qemu.Close()
		return nil, err
	}
	defer end.Close()
	out, err := net.FileConn(end)
	if err != nil {
		qemu.Close()
		client.Close()
		return nil, err
	}
	s := &serialConsole{qemu: qemu, client: client}
	g.consoles.Lock()
	if g.serial != nil {
		g.serial.end()
	}
	g.serial = s
	g.consoles.Unlock()
	g.driver.watchers.Go(func() {
		defer s.end()
		buf := make([]byte, 32<<10)
		for {
			n, err := qemu.Read(buf)
			if err != nil {
				return
			}
			client.SetWriteDeadline(time.Now().Add(stalled))
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	})
	g.driver.watchers.Go(func() {
		defer s.end()
		io.Copy(qemu, client) // ends with either side; there is nothing to do about why
	})
	return out, nil
}

// hangUp ends the serial console, if somebody is on it.
func (g *guest) hangUp() {
	g.consoles.Lock()
	defer g.consoles.Unlock()
	if g.serial != nil {
		g.serial.end()
		g.serial = nil
	}
}
