package freeport

import (
	"net"
	"strconv"
	"testing"
)

// What is given is free, is given once, and is none that the kernel may give to a connection.
func TestAddress(t *testing.T) {
	given := map[string]bool{}
	for range 500 {
		address := Address(t)
		if given[address] {
			t.Fatalf("%s is given twice", address)
		}
		given[address] = true
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		listener.Close()
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		if port, err := strconv.Atoi(text); err != nil || port < least || port >= most {
			t.Errorf("%s: %v", address, err)
		}
	}
}
