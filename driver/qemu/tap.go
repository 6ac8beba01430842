package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

var errNoTap = errors.New("the tap device is not there")

// openTap opens a tap device, which must be there, in its network namespace.
func openTap(tap compute.Tap) (*os.File, error) {
	if tap.Name == "" {
		return nil, errNoTap
	}
	var f *os.File
	var err error
	if tap.Netns == "" {
		f, err = openTapHere(tap)
	} else {
		onSpareThread(func() { f, err = openTapHere(tap) })
	}
	if err != nil {
		return nil, fmt.Errorf("open tap %s in %q: %w", tap.Name, tap.Netns, err)
	}
	return f, nil
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
