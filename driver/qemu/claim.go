package qemu

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// A claim says, beside a guest's disks on shared storage, whose they are: those of the host that the guest was given to by the
// latest decision of the controllers that any host has come with. Each decision has a number, and the claim only rises. So a host that
// was thought dead, and comes back, finds that it is not to touch them; and which host is right needs no clock, and nobody to ask.
//
// It is changed under a lock beside it, which is held for that moment only. What keeps two hypervisors from one disk, whatever
// their agents do, are their own locks on the images.
type claim struct {
	decision
	By    string // the machine's name, for who looks at it
	Proof string `json:",omitempty"` // written by the host that sends the guest, for the other to find

	// What is there, for whoever takes it up.
	Rebuilds int
	Disks    map[string]resource.ID // made so far: their images, by name
	Erasing  bool                   `json:",omitempty"` // they are being taken away
}

const (
	claimFile = "claim.json"
	claimLock = "claim.lock"
)

// A decision of the controllers gave a guest to a host.
type decision struct {
	Era   int64 `json:",omitempty"` // of the state that decided; a restored backup begins a new one
	Epoch int   // its number
}

func (d decision) compare(other decision) int {
	return cmp.Or(cmp.Compare(d.Era, other.Era), cmp.Compare(d.Epoch, other.Epoch))
}

func newClaim(d decision) *claim {
	name, _ := os.Hostname()
	return &claim{decision: d, By: name}
}

// errClaimed is the end of a guest that was given to another host.
var errClaimed = errors.New("its disks are another host's by a later decision")

// errNothing is that a guest has nothing on a storage, which is there.
var errNothing = errors.New("there is nothing of the guest")

const notHere = "The storage that the guest's disks are on is not to be had on this host."

// change has f look at a guest's claim, nil if there is none, while nobody else does; what f answers is written, if anything. Of a guest
// that has nothing there f is told so, and begins only if it is to.
func (s *storage) change(ctx context.Context, id resource.ID, begin bool, f func(dir *os.Root, have *claim) (*claim, error)) error {
	dir, lock, err := s.enter(ctx, id, begin)
	if errors.Is(err, errNothing) {
		_, err := f(nil, nil)
		return err
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	defer lock.Close()
	if s.aged {
		if err := renew(dir); err != nil {
			return err
		}
	}
	have, err := readClaim(dir)
	if err != nil {
		return err
	}
	next, err := f(dir, have)
	if err != nil || next == nil {
		return err
	}
	data, err := json.Marshal(next)
	if err != nil {
		return err
	}
	return replace(dir, claimFile, data)
}

// enter opens a guest's directory, which begin makes if need be, and locks its claim.
func (s *storage) enter(ctx context.Context, id resource.ID, begin bool) (dir *os.Root, lock *os.File, err error) {
	root, err := s.root()
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	for deadline := time.Now().Add(lockPatience); ; {
		if begin {
			err = root.Mkdir(guestOn(id), 0o700)
		} else {
			_, err = root.Lstat(guestOn(id))
		}
		if errors.Is(err, fs.ErrNotExist) && !begin { // and the storage is there: see root
			return nil, nil, errNothing
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
		dir, lock, err = tryEnter(root, id)
		if err == nil || !isTaken(err) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESTALE) {
			return dir, lock, err
		}
		if time.Now().After(deadline) {
			return nil, nil, fmt.Errorf("the claim of guest %s is held by somebody: %w", id, err)
		}
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func tryEnter(root *os.Root, id resource.ID) (_ *os.Root, _ *os.File, err error) {
	dir, err := openGuest(root, id)
	if err != nil {
		return nil, nil, err
	}
	lock, err := openPlain(dir, claimLock, os.O_RDWR|os.O_CREATE)
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	whole := unix.Flock_t{Type: unix.F_WRLCK}
	if err = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &whole); err == nil {
		// Who took the guest away had the lock before us: then it is of a file that is gone.
		var ours, there fs.FileInfo
		if ours, err = lock.Stat(); err == nil {
			if there, err = root.Lstat(filepath.Join(guestOn(id), claimLock)); err == nil && os.SameFile(ours, there) {
				return dir, lock, nil
			}
			err = errors.Join(err, fs.ErrNotExist)
		}
	}
	lock.Close()
	dir.Close()
	return nil, nil, err
}

func readClaim(dir *os.Root) (*claim, error) {
	f, err := openPlain(dir, claimFile, os.O_RDONLY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	c := new(claim)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("a claim on disks cannot be understood: %w", err)
	}
	return c, nil
}

// mine makes sure that a guest's disks are this host's by what the wish says, and takes them up if they are now. trouble is why they
// cannot be had; errClaimed, that they are another's.
func (g *guest) mine(ctx context.Context, want compute.Guest) (trouble string, err error) {
	s, r := g.driver.storage, g.rec
	if trouble := g.driver.lacks(r.Storage); r.Storage == "" || trouble != "" {
		return trouble, nil
	}
	by := decision{want.Era, cmp.Or(want.Epoch, r.Epoch)} // 0 says nothing
	if r.Claim == by && time.Since(g.claimedAt) < claimHolds {
		return "", nil
	}
	claimed := r.Claim != decision{}
	anew := want.Rebuilds > r.Rebuilds // nothing need be there, and whatever is makes way
	err = s.change(ctx, g.id, !claimed && (anew || !want.Kept), func(dir *os.Root, have *claim) (*claim, error) {
		next := newClaim(by)
		next.Rebuilds = r.Rebuilds
		switch {
		case have != nil:
		case claimed: // and it was taken away since
			return nil, errClaimed
		case want.Kept && !anew:
			trouble = "The guest's disks are not on the storage on which they should be."
			return nil, nil
		default:
			return next, nil
		}
		order := have.compare(by)
		switch {
		case order > 0 || have.Erasing && (order == 0 || claimed):
			return nil, errClaimed
		case claimed:
			if have.Era != by.Era { // a restored state may say something else of what is there
				trouble = have.overAnother(want, anew)
			}
		case have.Erasing && want.Kept && !anew:
			trouble = "The guest's disks were taken away."
		case have.Erasing || !want.Kept && have.Era == by.Era && order < 0:
			return next, clearAway(dir) // of a life that the guest has lost
		case want.Kept || have.Era != by.Era: // that restored state may know nothing of what is there
			if trouble = have.unlike(dir, want, anew); trouble == "" {
				r.Rebuilds = min(have.Rebuilds, r.Rebuilds) // one that was asked for and not carried out is
			}
		}
		if trouble != "" {
			return nil, nil
		}
		if order == 0 {
			return nil, nil
		}
		next.Rebuilds, next.Disks = have.Rebuilds, have.Disks
		return next, nil
	})
	switch {
	case err != nil:
		return "", fmt.Errorf("guest %s: %w", g.id, err)
	case trouble != "":
		return trouble, nil
	}
	g.claimedAt = time.Now()
	if r.Claim == by {
		return "", nil
	}
	r.Claim = by
	return "", g.write("disks claimed")
}

// stillMine makes sure of the same for a guest that is copied or sent, which may take long; trouble is why it cannot be.
func (g *guest) stillMine(ctx context.Context, want compute.Guest) (seen compute.Observation, trouble string, err error) {
	if trouble, err = g.mine(ctx, want); errors.Is(err, errClaimed) {
		seen, err = g.lose(ctx)
		return seen, seen.Trouble, err
	}
	if trouble != "" && err == nil {
		if g.seen, err = g.look(ctx); err == nil {
			seen = g.observe(g.seen)
		}
	}
	return seen, trouble, err
}

// unlike is why the disks that are there cannot be the guest's. A rebuild makes the root disk anew, and what is missing.
func (c *claim) unlike(dir *os.Root, want compute.Guest, anew bool) (trouble string) {
	if anew || c.Rebuilds < want.Rebuilds {
		return ""
	}
	if _, made := c.Disks[want.Disks[0].Name]; !made && want.Kept {
		return "The guest's root disk is not on the storage on which it should be."
	}
	if trouble := c.overAnother(want, anew); trouble != "" {
		return trouble
	}
	for _, w := range want.Disks {
		name, found := w.Name, false
		if _, made := c.Disks[name]; !made {
			continue
		}
		for _, format := range []string{"raw", "qcow2"} {
			_, err := dir.Lstat((&device{Name: name, Format: format}).file(""))
			found = found || err == nil
		}
		if !found {
			return "A disk of the guest is not on the storage on which it should be."
		}
	}
	return ""
}

// overAnother is why the root disk that is there, if one is, would be read as something that it is not.
func (c *claim) overAnother(want compute.Guest, anew bool) (trouble string) {
	root := want.Disks[0]
	if image, made := c.Disks[root.Name]; made && !anew && c.Rebuilds >= want.Rebuilds && root.Image != nil && image != root.Image.ID {
		return "The guest's root disk lies over another image."
	}
	return ""
}

// lose ends a guest that is another host's. It must write nothing more, so that it is not asked to end.
func (g *guest) lose(ctx context.Context) (compute.Observation, error) {
	g.driver.log.WarnContext(ctx, "a guest was given to another host, and ends here", "guest", g.id)
	g.cutWay()
	g.seen = deaf
	err := g.cut(ctx, "")
	return compute.Observation{Power: compute.Off, Trouble: "The guest was given to another host.", Isolating: g.driver.accel == accelKVM}, err
}

// lost reports whether another host has claimed the guest's disks.
func (g *guest) lost(ctx context.Context) (lost bool, err error) {
	s := g.driver.storage
	if g.rec.Storage == "" || g.rec.Claim == (decision{}) || g.driver.lacks(g.rec.Storage) != "" {
		return false, nil
	}
	err = s.change(ctx, g.id, false, func(_ *os.Root, have *claim) (*claim, error) {
		lost = have == nil || have.decision != g.rec.Claim || have.Erasing
		return nil, nil
	})
	return lost, err
}

// claimHolds is for how long a claim is not looked at again, while a guest is being worked at.
const claimHolds = 2 * time.Second

// noteDisks writes down beside the disks what there is.
func (g *guest) noteDisks(ctx context.Context, rebuilds int) error {
	if g.rec.Storage == "" {
		return nil
	}
	disks := map[string]resource.ID{}
	for _, dev := range g.rec.Devices {
		if dev.Kind == "disk" && dev.Made {
			disks[dev.Name] = dev.Image.ID
		}
	}
	return g.changeMine(ctx, func(c *claim) { c.Disks, c.Rebuilds = disks, rebuilds })
}

// holdClaim has f look at a claim that is this host's still, while nobody else does; what f answers is written, if anything.
func (g *guest) holdClaim(ctx context.Context, f func(dir *os.Root, have *claim) (*claim, error)) error {
	if trouble := g.driver.lacks(g.rec.Storage); trouble != "" {
		return errors.New(trouble)
	}
	return g.driver.storage.change(ctx, g.id, false, func(dir *os.Root, have *claim) (*claim, error) {
		if have == nil || have.decision != g.rec.Claim || have.Erasing {
			return nil, fmt.Errorf("guest %s: %w", g.id, errClaimed)
		}
		return f(dir, have)
	})
}

// changeMine changes what stands in the claim.
func (g *guest) changeMine(ctx context.Context, change func(*claim)) error {
	return g.holdClaim(ctx, func(_ *os.Root, have *claim) (*claim, error) {
		change(have)
		return have, nil
	})
}

// amongDisks does something to the names of the guest's disks. What an agent began that then stood still for long must not become of
// disks that are another host's by now.
func (g *guest) amongDisks(ctx context.Context, f func(dir *os.Root) error) error {
	if g.rec.Storage != "" {
		return g.holdClaim(ctx, func(dir *os.Root, _ *claim) (*claim, error) { return nil, f(dir) })
	}
	dir, err := os.OpenRoot(g.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(dir)
}

// removeDisks takes files away that lie with the guest's disks; those that are not there are gone.
func (g *guest) removeDisks(ctx context.Context, paths ...string) error {
	return g.amongDisks(ctx, func(dir *os.Root) error {
		for _, path := range paths {
			if err := dir.Remove(filepath.Base(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// prove leaves a mark beside the disks that only who sees the same storage finds.
func (g *guest) prove(ctx context.Context) (mark string, err error) {
	mark = rand.Text()
	return mark, g.changeMine(ctx, func(c *claim) { c.Proof = mark })
}

// finds reports whether a mark is there.
func (s *storage) finds(ctx context.Context, id resource.ID, mark string) (found bool, err error) {
	err = s.change(ctx, id, false, func(_ *os.Root, have *claim) (*claim, error) {
		found = have != nil && mark != "" && have.Proof == mark && !have.Erasing
		return nil, nil
	})
	return found, err
}

// clearAway takes everything from a guest's directory but its claim. What a hypervisor holds stays, and is an error.
func clearAway(dir *os.Root) error {
	switch name, err := used(dir); {
	case err != nil:
		return err
	case name != "":
		return fmt.Errorf("%s is in use", name)
	}
	names, err := fs.ReadDir(dir.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range names {
		if e.Name() == claimFile || e.Name() == claimLock {
			continue
		}
		if err := dir.RemoveAll(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// Erase implements compute.Eraser.
func (d *Driver) Erase(ctx context.Context, e compute.Erasure) error {
	s := d.storage
	if s == nil || s.id != e.Storage {
		return fmt.Errorf("erase the disks of guest %s: storage %s is not here", e.GuestID, e.Storage)
	}
	g := d.guest(e.GuestID)
	g.mu.Lock()
	defer g.mu.Unlock()
	defer d.forget(g)
	if r := g.rec; r != nil && r.Storage == e.Storage && r.Epoch <= e.Epoch {
		return fmt.Errorf("erase the disks of guest %s: it is still on this host", e.GuestID)
	}
	gone := false
	err := s.change(ctx, e.GuestID, false, func(dir *os.Root, have *claim) (*claim, error) {
		if dir == nil || have != nil && have.compare(decision{e.Era, e.Epoch}) > 0 {
			return nil, nil // it has come back since
		}
		gone = true
		next := newClaim(decision{e.Era, e.Epoch})
		next.Erasing = true
		return next, nil
	})
	if err != nil || !gone {
		return err
	}
	root, err := s.root()
	if err != nil {
		return err
	}
	defer root.Close()
	err = s.change(ctx, e.GuestID, false, func(dir *os.Root, have *claim) (*claim, error) {
		if have == nil || !have.Erasing {
			return nil, nil
		}
		if err := clearAway(dir); err != nil {
			return nil, err
		}
		d.step("shared disks erased")
		return nil, errors.Join(dir.Remove(claimFile), dir.Remove(claimLock), root.Remove(guestOn(e.GuestID)))
	})
	if err != nil {
		return fmt.Errorf("erase the disks of guest %s: %w", e.GuestID, err)
	}
	return nil
}
