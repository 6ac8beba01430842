package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// twoClients is one storage as two hosts see it. SHARED_A and SHARED_B name where a network file system is mounted twice, by a client each
// (test/gluster.sh does so); without them both hosts see one folder.
func twoClients(t *testing.T) [2]*storage {
	dirs := [2]string{os.Getenv("SHARED_A"), os.Getenv("SHARED_B")}
	if dirs[0] == "" || dirs[1] == "" {
		dirs[0] = t.TempDir()
		dirs[1] = dirs[0]
	} else {
		name := "test-" + resource.NewID(time.Now(), nil).String()
		if err := os.Mkdir(filepath.Join(dirs[0], name), 0o700); err != nil {
			t.Fatal(err)
		}
		for n := range dirs {
			dirs[n] = filepath.Join(dirs[n], name)
		}
		t.Cleanup(func() { os.RemoveAll(dirs[0]) })
	}
	var s [2]*storage
	for n := range s {
		var err error
		if s[n], err = openStorage(dirs[n], t.TempDir()); err != nil {
			t.Fatal(err)
		}
	}
	if s[0].id != s[1].id {
		t.Fatalf("they see storages %s and %s", s[0].id, s[1].id)
	}
	return s
}

// TestClientsSeeEachOthersClaims has two hosts change one claim in turn, and each find what the other wrote last.
func TestClientsSeeEachOthersClaims(t *testing.T) {
	s, id := twoClients(t), resource.NewID(time.Now(), nil)
	for n := range 40 {
		err := s[n%2].change(t.Context(), id, true, func(_ *os.Root, have *claim) (*claim, error) {
			saw := 0
			if have != nil {
				saw = have.Epoch
			}
			if saw != n {
				t.Errorf("after %d changes host %d sees %d", n, n%2, saw)
			}
			return newClaim(decision{Epoch: n + 1}), nil
		})
		if err != nil {
			t.Fatalf("change %d: %v", n, err)
		}
	}
}

// TestClientsChangeAClaimAtOnce has two hosts count in one claim, and loses nothing.
func TestClientsChangeAClaimAtOnce(t *testing.T) {
	s, id := twoClients(t), resource.NewID(time.Now(), nil)
	const each = 60
	count := func(n int) error {
		return s[n].change(t.Context(), id, true, func(_ *os.Root, have *claim) (*claim, error) {
			if have == nil {
				have = newClaim(decision{})
			}
			have.Epoch++
			return have, nil
		})
	}
	var wg sync.WaitGroup
	for n := range s {
		wg.Go(func() {
			for range each {
				if err := count(n); err != nil {
					t.Errorf("host %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
	for n := range s {
		err := s[n].change(t.Context(), id, false, func(_ *os.Root, have *claim) (*claim, error) {
			if have == nil || have.Epoch != 2*each {
				t.Errorf("host %d counts %+v of %d", n, have, 2*each)
			}
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestClientsSeeWhoHoldsADisk has one host hold an image as a hypervisor does, and let it go.
func TestClientsSeeWhoHoldsADisk(t *testing.T) {
	s, id := twoClients(t), resource.NewID(time.Now(), nil)
	for n := range s {
		if err := s[n].change(t.Context(), id, true, func(*os.Root, *claim) (*claim, error) { return newClaim(decision{Epoch: 1}), nil }); err != nil {
			t.Fatal(err)
		}
		mine, err := s[n].guestRoot(id)
		if err != nil {
			t.Fatal(err)
		}
		defer mine.Close()
		theirs, err := s[1-n].guestRoot(id)
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		f, err := openPlain(mine, fmt.Sprintf("disk-%d.raw", n), os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if err != nil {
			t.Fatal(err)
		}
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: imageLocksFrom + 3, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			t.Fatal(err)
		}
		if name, err := used(theirs); name == "" || err != nil {
			t.Errorf("held by host %d, the other sees %q, %v", n, name, err)
		}
		f.Close()
		began := time.Now()
		for {
			name, err := used(theirs)
			if err != nil {
				t.Fatal(err)
			}
			if name == "" {
				break
			}
			if time.Since(began) > 5*time.Second {
				t.Fatalf("let go by host %d, the other sees it held", n)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// TestClientsBeginWhereAnotherErased has one host take away what another began with, who begins again.
func TestClientsBeginWhereAnotherErased(t *testing.T) {
	s, id := twoClients(t), resource.NewID(time.Now(), nil)
	for n := range 8 {
		epoch := n + 1
		err := s[n/2%2].change(t.Context(), id, true, func(_ *os.Root, have *claim) (*claim, error) {
			if have != nil {
				t.Errorf("round %d: it finds %+v", n, have)
			}
			return newClaim(decision{Epoch: epoch}), nil
		})
		if err != nil {
			t.Fatalf("round %d: begin: %v", n, err)
		}
		other := &Driver{dir: t.TempDir(), storage: s[(n+1)%2], step: func(string) {}, guests: map[resource.ID]*guest{}}
		if err := other.Erase(t.Context(), compute.Erasure{GuestID: id, Storage: s[0].id, Epoch: epoch}); err != nil {
			t.Fatalf("round %d: erase: %v", n, err)
		}
	}
}
