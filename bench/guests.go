package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// The real cloud's names in the kernel, and its outside.
var realCloud = []string{"--prefix", "ukb", "--pool", "172.31.248.0/24"}

// guests: real QEMU on a real network. Of the time from the accepted create until the guest's first instruction, all
// but QEMU's own start is ours.
func (b *bench) guests() (err error) {
	disk := filepath.Join(b.guest, "disk.qcow2")
	if _, err := os.Stat(disk); err != nil || os.Geteuid() != 0 {
		fmt.Println("  guests: not measured, which needs root and the demo guest (make guest)")
		return nil
	}
	if b.dir, err = os.MkdirTemp("", "unkai-bench-"); err != nil {
		return err
	}
	c, err := b.launch(b.dir, realCloud...)
	defer func() {
		b.end()
		out, downErr := exec.Command(b.unkai, append([]string{"down", "--data", b.dir, "--purge"}, realCloud...)...).CombinedOutput()
		if downErr != nil {
			err = errors.Join(err, fmt.Errorf("down: %w: %s", downErr, out))
		}
	}()
	if err != nil {
		return err
	}
	l, err := b.realLaunch(c, disk)
	if err != nil {
		return err
	}
	var ours, theirs times
	for n := range 9 {
		mine, qemu, err := c.bootOne(l, fmt.Sprint("g", n))
		if err != nil {
			return err
		}
		ours, theirs = append(ours, mine), append(theirs, qemu)
	}
	b.note("accepted create to first instruction, our share", "< 150 ms", ours.at(0.5) < 150*time.Millisecond,
		"median %s, most %s of 9 (QEMU's own start: %s)", ms(ours.at(0.5)), ms(slices.Max(ours)), ms(theirs.at(0.5)))
	return nil
}

// realLaunch uploads the guest's disk and makes a network.
func (b *bench) realLaunch(c *cloud, disk string) (l launch, err error) {
	var made struct{ ID string }
	if err := c.do("POST", "/image/v2/images", map[string]any{"name": "guest", "disk_format": "qcow2", "container_format": "bare"}, &made); err != nil {
		return l, err
	}
	file, err := os.Open(disk)
	if err != nil {
		return l, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return l, err
	}
	if err := c.transfer("PUT", "/image/v2/images/"+made.ID+"/file", file, info.Size()); err != nil {
		return l, err
	}
	id, err := c.network("guests", "10.99.0.0/24")
	return launch{made.ID, "42", []map[string]string{{"uuid": id}}}, err
}

// bootOne makes a server, waits until it runs, and takes it away again.
func (c *cloud) bootOne(l launch, name string) (ours, qemu time.Duration, err error) {
	var made struct{ Server struct{ ID string } }
	if err := c.do("POST", "/compute/v2.1/servers", map[string]any{"server": map[string]any{"name": name, "imageRef": l.image,
		"flavorRef": l.flavor, "networks": l.networks}}, &made); err != nil {
		return 0, 0, err
	}
	var s struct {
		CreatedAt  time.Time `json:"created_at"`
		LaunchedAt time.Time `json:"launched_at"`
		Seen       struct {
			OursMs  float64 `json:"ours_ms"`
			StartMs float64 `json:"start_ms"`
		}
	}
	for end := time.Now().Add(time.Minute); s.LaunchedAt.IsZero() || s.Seen.StartMs == 0; time.Sleep(10 * time.Millisecond) {
		if err := c.do("GET", "/v1/servers/"+made.Server.ID, nil, &s); err != nil {
			return 0, 0, err
		}
		if time.Now().After(end) {
			return 0, 0, fmt.Errorf("server %s does not run after a minute", name)
		}
	}
	qemu = time.Duration((s.Seen.StartMs - s.Seen.OursMs) * float64(time.Millisecond))
	if err := c.do("DELETE", "/compute/v2.1/servers/"+made.Server.ID, nil, nil); err != nil {
		return 0, 0, err
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var list struct{ Servers []struct{ ID string } }
		if err := c.do("GET", "/compute/v2.1/servers", nil, &list); err != nil {
			return 0, 0, err
		}
		if len(list.Servers) == 0 {
			return s.LaunchedAt.Sub(s.CreatedAt) - qemu, qemu, nil
		}
		if time.Now().After(end) {
			return 0, 0, fmt.Errorf("server %s is not gone after a minute", name)
		}
	}
}
