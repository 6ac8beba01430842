package linuxnet

import (
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
	"github.com/unkai-cloud/unkai/core/network/networktest"
)

func TestDriver(t *testing.T) {
	var mu sync.Mutex
	machines := map[network.Driver]*machine{} // guarded by mu
	guests := map[resource.ID]*guest{}        // guarded by mu
	find := func(d network.Driver) *machine {
		mu.Lock()
		defer mu.Unlock()
		return machines[d]
	}
	keep := func(m *machine) network.Driver {
		mu.Lock()
		defer mu.Unlock()
		machines[m.Driver] = m
		return m.Driver
	}
	networktest.TestDriver(t, func(t *testing.T) network.Driver { return keep(newMachine(t)) }, networktest.Options{
		Reopen: func(t *testing.T, d network.Driver) network.Driver {
			m := find(d)
			m.restart()
			return keep(m)
		},
		Reaches: func(t *testing.T, d network.Driver, from, to network.Attachment, port int) bool {
			m := find(d)
			plugged := func(port network.Attachment) *guest {
				g := guests[port.ID]
				if g == nil {
					tap := network.Tap{Netns: netnsDir + "/" + m.options.Prefix + "-s-" + port.NetworkID.String(), Name: tapName(port.ID)}
					g = m.boot(tap, port.MAC, static(port)...)
					for number := 80; number <= 82; number++ {
						echo(t, g.namespace, number)
					}
					guests[port.ID] = g
				}
				return g
			}
			mu.Lock()
			asker := plugged(from)
			plugged(to)
			mu.Unlock()
			return asks(asker.namespace, net.JoinHostPort(to.Addresses[0].Address.String(), strconv.Itoa(port))) != ""
		},
	})
}
