// Package freeport finds ports of the loopback address for tests whose processes have to be told where to listen, or will be found where they
// listened before. Of a listener on port 0 that is closed again the kernel may give the port to any connection that is made before the process
// begins, and to any other such listener.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// least and most are below what the kernel gives to connections (ip_local_port_range begins at 32768, unless it was changed).
const least, most = 20000, 32000

// Address is an address of the loopback device, 127.0.0.1:port, at which nobody listens, and which no other test is given before this one has
// ended: it is held by a name in the kernel that goes when the process does.
func Address(t testing.TB) string {
	t.Helper()
	for range 1000 {
		port := least + rand.IntN(most-least)
		held, err := net.Listen("unix", fmt.Sprintf("@unkai-test-port-%d", port))
		if err != nil {
			continue // another test's
		}
		address := fmt.Sprintf("127.0.0.1:%d", port)
		listener, err := net.Listen("tcp", address)
		if err != nil {
			held.Close()
			continue
		}
		t.Cleanup(func() { held.Close() })
		if err := listener.Close(); err != nil {
			t.Fatal(err)
		}
		return address
	}
	t.Fatal("no port is free")
	return ""
}
