package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

var errNoTap = errors.New("the tap device is not there")

// openTap opens a tap device, which must be there, in its network namespace.
func openTap(tap compute.Tap) (*os.File, error) {
	if tap.Name == "" {
		return nil, errNoTap
	}
	type opened struct {
		f   *os.File
		err error
	}
	result := make(chan opened)
	go func() {
		if tap.Netns != "" {
			runtime.LockOSThread() // for good: the thread is of no more use in another namespace
		}
		f, err := openTapHere(tap)
		result <- opened{f, err}
	}()
	o := <-result
	if o.err != nil {
		return nil, fmt.Errorf("open tap %s in %q: %w", tap.Name, tap.Netns, o.err)
	}
	return o.f, nil
}

func openTapHere(tap compute.Tap) (*os.File, error) {
	if tap.Netns != "" {
		ns, err := os.Open(tap.Netns)
		if err != nil {
			return nil, err
		}
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		ns.Close()
		if err != nil {
			return nil, fmt.Errorf("enter the namespace: %w", err)
		}
	}
	// Asking for a tap that does not exist would make one that no bridge knows.
	if _, err := net.InterfaceByName(tap.Name); err != nil {
		return nil, errNoTap
	}
	request, err := unix.NewIfreq(tap.Name)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), tap.Name), nil
}
