package agent

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// library is a controller's images. Reads of those that it holds wait for open.
type library struct {
	mu    sync.Mutex
	data  map[resource.ID][]byte
	hold  map[resource.ID]chan struct{}
	fail  error
	reads int
}

func (l *library) add(size int) compute.ImageRef {
	data := bytes.Repeat([]byte{byte(size)}, size)
	sum := sha512.Sum512(data)
	ref := compute.ImageRef{ID: resource.NewID(time.Now(), nil), SHA512: hex.EncodeToString(sum[:]), Bytes: int64(size), Format: "raw"}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.data == nil {
		l.data, l.hold = map[resource.ID][]byte{}, map[resource.ID]chan struct{}{}
	}
	l.data[ref.ID] = data
	return ref
}

func (l *library) get(ctx context.Context, id resource.ID) (io.ReadCloser, error) {
	l.mu.Lock()
	l.reads++
	data, hold, err := l.data[id], l.hold[id], l.fail
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return io.NopCloser(&heldReader{ctx, hold, bytes.NewReader(data)}), nil
}

type heldReader struct {
	ctx  context.Context
	hold chan struct{}
	r    io.Reader
}

func (r *heldReader) Read(b []byte) (int, error) {
	if r.hold != nil {
		select {
		case <-r.hold:
		case <-r.ctx.Done():
			return 0, r.ctx.Err()
		}
	}
	return r.r.Read(b)
}

// cached runs a cache until the test ends, and tells whom it woke.
func cached(t *testing.T, l *library) (c *Images, woken func() []resource.ID) {
	t.Helper()
	var mu sync.Mutex
	var guests []resource.ID
	c = &Images{Dir: t.TempDir(), Get: l.get, Arrived: func(ids []resource.ID) {
		mu.Lock()
		defer mu.Unlock()
		guests = append(guests, ids...)
	}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { c.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return c, func() []resource.ID {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(guests)
	}
}

func find(t *testing.T, c *Images, guest resource.ID, refs ...compute.ImageRef) []string {
	t.Helper()
	paths, err := c.Find(guest, refs...)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestAnImageIsFetchedOnceForAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		ref, small := l.add(3<<20), l.add(10)
		held := make(chan struct{})
		l.hold[ref.ID] = held
		c, woken := cached(t, l)
		if find(t, c, guestID, ref, small) != nil || find(t, c, otherID, ref) != nil {
			t.Fatal("an image is there that nobody brought")
		}
		synctest.Wait()
		if got := find(t, c, netID, small); len(got) != 1 {
			t.Error("a small image waits for a large one")
		}
		close(held)
		synctest.Wait()
		paths := find(t, c, guestID, ref, small)
		if len(paths) != 2 || len(woken()) != 3 || l.reads != 2 {
			t.Fatalf("%d paths, woken %v, %d reads", len(paths), woken(), l.reads)
		}
		data, err := os.ReadFile(paths[0])
		if err != nil || !bytes.Equal(data, l.data[ref.ID]) {
			t.Errorf("other bytes arrived: %v", err)
		}
	})
}

func TestOthersCannotReadImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		ref := l.add(100)
		c, _ := cached(t, l)
		if err := os.Chmod(c.Dir, 0o755); err != nil { // as an earlier release made it
			t.Fatal(err)
		}
		find(t, c, guestID, ref)
		synctest.Wait()
		for name, want := range map[string]os.FileMode{c.Dir: 0o700, find(t, c, guestID, ref)[0]: 0o400} {
			info, err := os.Stat(name)
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
			}
		}
	})
}

func TestATransferThatStallsIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		ref := l.add(100)
		l.hold[ref.ID] = make(chan struct{}) // never closed
		c, woken := cached(t, l)
		find(t, c, guestID, ref)
		time.Sleep(stalled + time.Second)
		if len(woken()) != 1 {
			t.Fatal("a transfer without a byte goes on")
		}
		l.mu.Lock()
		delete(l.hold, ref.ID)
		l.mu.Unlock()
		find(t, c, guestID, ref)
		synctest.Wait()
		if find(t, c, guestID, ref) == nil {
			t.Error("the image did not come at the second attempt")
		}
	})
}

func TestTransfersEndWhenNobodyWaitsAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		c, woken := cached(t, l)
		var guests []resource.ID
		var held []chan struct{}
		for n := range transfers + 2 {
			ref := l.add(100 + n)
			held, guests = append(held, make(chan struct{})), append(guests, resource.NewID(time.Now(), nil))
			l.hold[ref.ID] = held[n]
			find(t, c, guests[n], ref)
		}
		wanted := l.add(5)
		find(t, c, guestID, wanted)
		synctest.Wait()
		if find(t, c, guestID, wanted) != nil {
			t.Fatalf("more than %d transfers go on", transfers)
		}
		for n, guest := range guests {
			c.Forget(guest)
			close(held[n])
		}
		synctest.Wait()
		if find(t, c, guestID, wanted) == nil || !slices.Equal(woken(), []resource.ID{guestID}) || l.reads != transfers+1 {
			t.Errorf("woken %v, %d reads", woken(), l.reads)
		}
		if left, err := os.ReadDir(c.Dir); err != nil || len(left) != 1 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

func TestAnImageThatIsGoneIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		ref := l.add(100)
		l.fail = &ImageError{"The image is no longer there."}
		c, _ := cached(t, l)
		find(t, c, guestID, ref)
		synctest.Wait()
		for range 3 { // while it is tried again, too
			_, err := c.Find(guestID, ref)
			if never := (*ImageError)(nil); !errors.As(err, &never) {
				t.Errorf("got %v", err)
			}
			time.Sleep(time.Second)
		}
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		time.Sleep(time.Minute)
		if _, err := c.Find(guestID, ref); err == nil {
			t.Error("it is forgotten too soon")
		}
		synctest.Wait()
		if find(t, c, guestID, ref) == nil {
			t.Error("it is not there")
		}
	})
}

func TestDamagedImagesAreNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := new(library)
		ref := l.add(100)
		l.data[ref.ID][5] ^= 1
		c, _ := cached(t, l)
		find(t, c, guestID, ref)
		synctest.Wait()
		if find(t, c, guestID, ref) != nil {
			t.Error("a damaged image is given out")
		}
		if left, err := os.ReadDir(c.Dir); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}

func TestLeftoversOfTransfersGo(t *testing.T) {
	c := &Images{Dir: t.TempDir()}
	if err := os.WriteFile(filepath.Join(c.Dir, "new-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(c.Dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// An image that a guest has just been given stays, whatever was known of it when the sweep began.
func TestASweepTakesNothingThatIsInUse(t *testing.T) {
	l := new(library)
	ref := l.add(10)
	old := time.Now().Add(-time.Hour)
	dir := t.TempDir()
	for range 3000 {
		c := &Images{Dir: dir, Get: l.get}
		os.Remove(c.path(ref))
		if err := os.WriteFile(c.path(ref), l.data[ref.ID], 0o400); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(c.path(ref), old, old); err != nil {
			t.Fatal(err)
		}
		var paths []string
		var found, swept error
		var wg sync.WaitGroup
		wg.Go(func() { paths, found = c.Find(guestID, ref) })
		wg.Go(func() { swept = c.Sweep(nil, time.Minute) })
		wg.Wait()
		if found != nil || swept != nil {
			t.Fatal(found, swept)
		}
		if paths == nil {
			continue // it was gone before, and comes again
		}
		if _, err := os.Stat(paths[0]); err != nil {
			t.Fatalf("a guest is made over an image that was swept: %v", err)
		}
	}
}
