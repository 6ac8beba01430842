package sim

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// outlet is one console of one guest.
type outlet struct {
	guest resource.ID
	kind  string
}

// greeting is what a guest's consoles say to who connects. A VNC client is greeted as RFC 6143,
// section 7.1.1, has it, and no further.
var greeting = map[string]string{"vnc": "RFB 003.008\n", "serial": ""}

// ConsoleLog is the newest part of what the guest has written: the same at each boot, so it
// takes no memory.
func (d *Guests) ConsoleLog(ctx context.Context, id resource.ID, max int) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g, err := d.m.known(id)
	if err != nil {
		return nil, err
	}
	once := fmt.Appendf(nil, "[    0.000000] simulated guest %s starts\n[    0.000000] there is no operating system to speak of\nsimulated login: \n", id)
	max = min(max, g.boots*len(once))
	log := bytes.Repeat(once, (max+len(once)-1)/len(once))
	return log[len(log)-max:], nil
}

// Console answers like a guest that repeats what is typed. A newer connection takes over from an
// older one, and both end with the guest.
func (d *Guests) Console(ctx context.Context, id resource.ID, kind string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	g, err := d.m.known(id)
	if err != nil {
		return nil, err
	}
	hello, ok := greeting[kind]
	switch {
	case !ok:
		return nil, fault.Errorf(fault.Unsupported, "There is no console of type %q.", kind)
	case g.power != compute.On && g.power != compute.Paused:
		return nil, fault.Errorf(fault.Conflict, "The guest is not running.")
	}
	d.m.unplug(outlet{id, kind})
	ours, theirs := net.Pipe()
	d.m.consoles[outlet{id, kind}] = ours
	go repeat(ours, hello) // ends with either side of the pipe
	return theirs, nil
}

func repeat(c net.Conn, hello string) {
	defer c.Close()
	if _, err := io.WriteString(c, hello); err != nil {
		return // the other side has gone
	}
	io.Copy(c, c)
}

// unplug ends a console's connection, if there is one. The caller holds mu.
func (m *Machine) unplug(o outlet) {
	if c := m.consoles[o]; c != nil {
		c.Close()
		delete(m.consoles, o)
	}
}

// unplugConsoles ends all of a guest's. The caller holds mu.
func (m *Machine) unplugConsoles(id resource.ID) {
	for kind := range greeting {
		m.unplug(outlet{id, kind})
	}
}
