package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"golang.org/x/sys/unix"
)

// TestSharedDisks is the contract of movers for two hosts that keep disks in one folder.
func TestSharedDisks(t *testing.T) {
	t.Parallel()
	testMover(t, true)
}

func TestHostsFindTheSameStorage(t *testing.T) {
	dir := t.TempDir()
	ids := make([]string, 8)
	var wg sync.WaitGroup
	for n := range ids {
		own := t.TempDir()
		wg.Go(func() {
			s, err := openStorage(dir, own)
			if err != nil {
				t.Error(err)
				return
			}
			ids[n] = s.id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Errorf("of one folder they say %q and %q", ids[0], id)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".unkai-*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestStorageThatIsRefused(t *testing.T) {
	fresh := func(t *testing.T) (dir, own string) {
		dir, own = t.TempDir(), t.TempDir()
		if _, err := openStorage(dir, own); err != nil {
			t.Fatal(err)
		}
		return dir, own
	}
	for name, test := range map[string]struct {
		make func(t *testing.T) (dir, own string)
		says string
	}{
		"a copy": {func(t *testing.T) (string, string) {
			dir, own := fresh(t)
			other := t.TempDir()
			if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			return other, own
		}, "copy"},
		"an empty mount point": {func(t *testing.T) (string, string) {
			_, own := fresh(t)
			return t.TempDir(), own
		}, "not mounted"},
		"another one": {func(t *testing.T) (string, string) {
			_, own := fresh(t)
			other, _ := fresh(t)
			return other, own
		}, "another one"},
		"one within the agent's folder": {func(t *testing.T) (string, string) {
			own := t.TempDir()
			return filepath.Join(own, "disks"), own
		}, "one in the other"},
		"none": {func(t *testing.T) (string, string) { return filepath.Join(t.TempDir(), "nowhere"), t.TempDir() }, "no such file"},
		"a link": {func(t *testing.T) (string, string) {
			dir, own := t.TempDir(), t.TempDir()
			if err := os.Symlink("/etc/hostname", filepath.Join(dir, identityFile)); err != nil {
				t.Fatal(err)
			}
			return dir, own
		}, ""},
		"gibberish": {func(t *testing.T) (string, string) {
			dir, own := t.TempDir(), t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, identityFile), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir, own
		}, "understood"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, own := test.make(t)
			if s, err := openStorage(dir, own); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("it is %+v, %v", s, err)
			}
		})
	}
}

func TestMountsThatKeepLocksToThemselves(t *testing.T) {
	const table = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:50 / /srv/my\040guests rw,nodev shared:2 - nfs4 server:/guests rw,vers=4.2,nolock
41 22 0:51 / /srv/back\134slash\011tab rw - nfs server:/b rw,local_lock=all
42 40 0:52 / /srv/my\040guests/good rw - nfs server:/good rw,local_lock=none
43 22 0:53 / /mnt/over rw - nfs server:/c rw,nolock
44 43 0:54 / /mnt/over rw - nfs server:/d rw
`
	for dir, deaf := range map[string]bool{
		"/srv/my guests": true, "/srv/my guests/disks": true, "/srv/my guests/good": false, "/srv/my": false, "/srv": false,
		"/srv/back\\slash\ttab/disks": true, "/mnt/over": false,
	} {
		if why := deafIn(table, dir); (why != "") != deaf {
			t.Errorf("%s: %q", dir, why)
		}
	}
}

func TestGlusterThatForgetsLocks(t *testing.T) {
	point := filepath.Join(t.TempDir(), "with [all] sorts * of")
	table := "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n40 22 0:50 / " + strings.ReplaceAll(point, " ", `\040`) + " rw - fuse.glusterfs nas:v rw\n"
	option := func(client, name, value string) {
		dir := filepath.Join(point, ".meta/graphs/active", client, "options")
		if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, want bool) {
		t.Helper()
		if why := deafIn(table, filepath.Join(point, "disks")); strings.Contains(why, "strict-locks") != want {
			t.Errorf("%s: %q", what, why)
		}
	}
	check("one that says nothing", true)
	option("v-client-0", "remote-subvolume", "/brick\n")
	check("as it is made", true)
	option("v-client-0", "strict-locks", "on\n")
	check("with the option", false)
	option("v-client-1", "remote-subvolume", "/brick\n")
	option("v-client-1", "strict-locks", "off\n")
	check("with one brick that is not so", true)
}

func TestLocksThatTheKernelKeeps(t *testing.T) {
	const table = "1: OFDLCK ADVISORY  WRITE -1 00:3a:12345 0 EOF\n2: POSIX  ADVISORY  WRITE 612 fe:01:77 0 EOF\n"
	for name, test := range map[string]struct {
		dev, inode uint64
		local      bool
	}{
		"its own":        {unix.Mkdev(0, 0x3a), 12345, true},
		"another file's": {unix.Mkdev(0, 0x3a), 1234, false},
		"elsewhere":      {unix.Mkdev(0xfe, 1), 12345, false},
	} {
		if isLocal(table, test.dev, test.inode) != test.local {
			t.Error(name)
		}
	}
}

// claimant is a guest on a host that keeps disks in a folder, without a hypervisor.
func claimant(t *testing.T, dir string, id resource.ID) *guest {
	t.Helper()
	own := t.TempDir()
	s, err := openStorage(dir, own)
	if err != nil {
		t.Fatal(err)
	}
	d := &Driver{dir: own, storage: s, step: func(string) {}, guests: map[resource.ID]*guest{}}
	g := d.guest(id)
	g.rec = &record{Storage: s.id}
	if err := os.MkdirAll(g.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return g
}

// placed is a wish by a decision.
func placed(id resource.ID, era int64, epoch int, kept bool) compute.Guest {
	return compute.Guest{ID: id, Era: era, Epoch: epoch, Kept: kept, Disks: []compute.Disk{{Name: "root"}}}
}

// claims tries to have the guest's disks, and says how that ended.
func (g *guest) claims(want compute.Guest) string {
	g.claimedAt = time.Time{}
	switch trouble, err := g.mine(context.Background(), want); {
	case errors.Is(err, errClaimed):
		return "another's"
	case err != nil:
		return err.Error()
	case trouble != "":
		return "trouble"
	}
	return "mine"
}

func TestClaimsOnlyRise(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	a, b := claimant(t, dir, id), claimant(t, dir, id)
	disk := func() string { return filepath.Join(dir, guestOn(id), "disk-root.qcow2") }
	for n, step := range []struct {
		g    *guest
		want compute.Guest
		says string
	}{
		{b, placed(id, 0, 2, true), "trouble"}, // nothing is there yet
		{a, placed(id, 0, 1, false), "mine"},
		{a, placed(id, 0, 1, false), "mine"},
		{b, placed(id, 0, 2, true), "trouble"}, // nothing was made yet
		{nil, compute.Guest{}, ""},             // now it is
		{b, placed(id, 0, 2, true), "mine"},
		{a, placed(id, 0, 1, false), "another's"},
		{a, placed(id, 0, 3, true), "mine"},
		{b, placed(id, 0, 2, true), "another's"},
		{b, placed(id, 7, 1, false), "mine"}, // of a restored state: the numbers begin anew, the disks stay
		{a, placed(id, 0, 9, true), "another's"},
		{a, placed(id, 7, 2, true), "mine"},
	} {
		if step.g == nil {
			a.rec.Devices = []device{{Kind: "disk", Name: "root", Format: "qcow2", Made: true}}
			if err := errors.Join(a.noteDisks(t.Context(), 0), os.WriteFile(disk(), []byte("data"), 0o600)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got := step.g.claims(step.want); got != step.says {
			t.Errorf("step %d: %s, want %s", n, got, step.says)
		}
	}
	if data, err := os.ReadFile(disk()); err != nil || string(data) != "data" {
		t.Errorf("the disk holds %q, %v", data, err)
	}
	if lost, err := b.lost(t.Context()); !lost || err != nil {
		t.Errorf("the host that lost the guest does not know it: %v", err)
	}
	if err := b.noteDisks(t.Context(), 1); !errors.Is(err, errClaimed) {
		t.Errorf("it writes to another's claim: %v", err)
	}
}

// What an earlier life of the guest left is taken away for a new one, unless somebody holds it.
func TestClaimOfANewLife(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	a, b := claimant(t, dir, id), claimant(t, dir, id)
	a.claims(placed(id, 0, 1, false))
	path := filepath.Join(dir, guestOn(id), "disk-root.qcow2")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// as QEMU has it
	lock := unix.Flock_t{Type: unix.F_RDLCK, Start: imageLocksFrom + 1, Len: 1}
	f2, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.FcntlFlock(f2.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	erase := func(epoch int) error {
		b.driver.guests = map[resource.ID]*guest{}
		return b.driver.Erase(t.Context(), compute.Erasure{GuestID: id, Storage: b.driver.storage.id, Epoch: epoch})
	}
	if got := b.claims(placed(id, 0, 5, false)); !strings.Contains(got, "in use") {
		t.Errorf("a disk that is in use was taken away: %s", got)
	}
	if err := erase(1); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a disk that is in use was erased: %v", err)
	}
	if got := a.claims(placed(id, 0, 1, false)); got != "another's" {
		t.Errorf("who holds a disk that is to be erased is not told: %s", got)
	}
	f2.Close()
	if got := b.claims(placed(id, 0, 5, false)); got != "mine" {
		t.Fatal(got)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk of the life before is there: %v", err)
	}
	if err := erase(4); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil {
		t.Errorf("an order of before took it away: %v", err)
	}
	if err := erase(5); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was not erased: %v", err)
	}
	for _, g := range []*guest{a, b} {
		if got := g.claims(placed(id, 0, g.rec.Claim.Epoch, false)); got != "another's" {
			t.Errorf("who had what is erased takes it up again: %s", got)
		}
	}
	if _, err := os.Stat(filepath.Dir(path)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something of it is there again: %v", err)
	}
}

// A storage that is not mounted for a moment takes no guest away from anybody.
func TestStorageThatIsAway(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	g := claimant(t, dir, id)
	g.claims(placed(id, 0, 1, false))
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := g.claims(placed(id, 0, 1, false)); got == "mine" || got == "another's" {
			t.Errorf("it is %s", got)
		}
		if lost, err := g.lost(t.Context()); lost || err == nil {
			t.Errorf("lost: %v, %v", lost, err)
		}
		os.Mkdir(dir, 0o700) // as under a mount that is gone
	}
	if err := errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)); err != nil {
		t.Fatal(err)
	}
	if got := g.claims(placed(id, 0, 1, false)); got != "mine" {
		t.Error(got)
	}
}

// Whoever else writes to the folder does not lead us out of it.
func TestOtherHostsAreNotTrusted(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	g := claimant(t, dir, id)
	g.claims(placed(id, 0, 1, false))
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, guestOn(id))
	path := filepath.Join(inside, "disk-root.raw")
	for name, plant := range map[string]func() error{
		"a link": func() error { return os.Symlink(secret, path) },
		"a pipe": func() error { return unix.Mkfifo(path, 0o600) },
		"a folder elsewhere": func() error {
			elsewhere := t.TempDir()
			return errors.Join(os.WriteFile(filepath.Join(elsewhere, "disk-root.raw"), nil, 0o600), os.RemoveAll(inside), os.Symlink(elsewhere, inside))
		},
	} {
		os.Remove(path)
		if info, err := os.Lstat(inside); err == nil && info.Mode()&os.ModeSymlink != 0 {
			os.Remove(inside)
			os.Mkdir(inside, 0o700)
		}
		if err := plant(); err != nil {
			t.Fatal(err)
		}
		if f, err := g.openDisk(path, os.O_RDWR); err == nil {
			f.Close()
			t.Errorf("%s is opened as a disk", name)
		}
	}
	os.Remove(inside)
	os.Mkdir(inside, 0o700)
	text, _ := json.Marshal(map[string]any{"Epoch": "many"})
	if err := os.WriteFile(filepath.Join(inside, claimFile), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := g.claims(placed(id, 0, 1, false)); got == "mine" {
		t.Error("a claim that cannot be understood is taken for ours")
	}
}

// An agent that stood still for long makes nothing among disks that are another host's by now, and takes nothing away.
func TestALateHandLeavesDisksAlone(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	a, b := claimant(t, dir, id), claimant(t, dir, id)
	a.claims(placed(id, 0, 1, false))
	if got := b.claims(placed(id, 0, 2, false)); got != "mine" {
		t.Fatal(got)
	}
	if err := a.makeDisk(t.Context(), &device{Kind: "disk", Name: "root", Format: "raw", Bytes: 512}); !errors.Is(err, errClaimed) {
		t.Errorf("it makes a disk: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, guestOn(id), "disk-*")); len(left) > 0 {
		t.Errorf("there is %q", left)
	}
	dev := device{Kind: "disk", Name: "root", Format: "raw", Bytes: 512}
	if err := b.makeDisk(t.Context(), &dev); err != nil || !dev.Made {
		t.Fatal(err)
	}
	if err := a.removeDisks(t.Context(), dev.file("")); !errors.Is(err, errClaimed) {
		t.Errorf("it takes a disk away: %v", err)
	}
	if _, err := os.Stat(dev.file(b.disks())); err != nil {
		t.Error(err)
	}
	if err := b.removeDisks(t.Context(), dev.file(""), "never-there"); err != nil {
		t.Error(err)
	}
}

// After a backup was restored disks are taken up that the state knows nothing of, but not as what they are not.
func TestDisksOfALaterLife(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	a, b := claimant(t, dir, id), claimant(t, dir, id)
	is, other := resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	a.claims(placed(id, 0, 9, false))
	a.rec.Devices = []device{{Kind: "disk", Name: "root", Format: "qcow2", Made: true, Image: imageFile{ID: is}}}
	if err := errors.Join(a.noteDisks(t.Context(), 0), os.WriteFile(filepath.Join(a.disks(), "disk-root.qcow2"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	want := placed(id, 7, 2, false)
	want.Disks[0].Image = &compute.ImageRef{ID: other}
	if got := b.claims(want); got != "trouble" {
		t.Errorf("a disk over another image is %s", got)
	}
	want.Disks[0].Image.ID = is
	if got := b.claims(want); got != "mine" {
		t.Errorf("its own disk is %s", got)
	}
}

// A decision of after a restored backup looks at what is there as any other does, and forgets no rebuild.
func TestDisksOfALaterLifeAreLookedAt(t *testing.T) {
	is, other := resource.NewID(time.Now(), nil), resource.NewID(time.Now(), nil)
	for name, test := range map[string]struct {
		kept, claimed, missing bool
		done, want             int // rebuilds
		over                   resource.ID
		says                   string
		carriedOut             int // by the host's record
	}{
		"evacuated":                             {kept: true, over: is, says: "mine"},
		"evacuated, over another image":         {kept: true, over: other, says: "trouble"},
		"evacuated, a rebuild not carried out":  {kept: true, done: 1, want: 2, over: other, says: "mine", carriedOut: 1},
		"evacuated, and its disk is missing":    {kept: true, over: is, missing: true, says: "trouble"},
		"its disk is missing":                   {over: is, missing: true, says: "trouble"},
		"a rebuild not carried out":             {done: 1, want: 2, over: is, says: "mine", carriedOut: 1},
		"on its host":                           {claimed: true, over: is, says: "mine"},
		"on its host, over another image":       {claimed: true, over: other, says: "trouble"},
		"on its host, rebuilt more often":       {claimed: true, done: 4, want: 2, over: other, says: "trouble", carriedOut: 4},
		"on its host, to be rebuilt after that": {claimed: true, done: 4, want: 8, over: other, says: "mine", carriedOut: 4},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
			a, b := claimant(t, dir, id), claimant(t, dir, id)
			a.rec.Rebuilds, b.rec.Rebuilds = test.done, test.want
			a.claims(placed(id, 0, 9, false))
			a.rec.Devices = []device{{Kind: "disk", Name: "root", Format: "qcow2", Made: true, Image: imageFile{ID: is}}}
			if err := a.noteDisks(t.Context(), test.done); err != nil {
				t.Fatal(err)
			}
			if !test.missing {
				if err := os.WriteFile(filepath.Join(a.disks(), "disk-root.qcow2"), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			g := b
			if test.claimed {
				g = a
			}
			want := placed(id, 7, 2, test.kept)
			want.Rebuilds, want.Disks[0].Image = test.want, &compute.ImageRef{ID: test.over}
			if got := g.claims(want); got != test.says {
				t.Errorf("it is %s, want %s", got, test.says)
			}
			if test.says == "mine" && g.rec.Rebuilds != test.carriedOut {
				t.Errorf("it has carried out %d rebuilds, want %d", g.rec.Rebuilds, test.carriedOut)
			}
		})
	}
}

// Where disks should be and are not, or are other than they should be, a rebuild makes them anew.
func TestARebuildIsAWayOut(t *testing.T) {
	other := resource.NewID(time.Now(), nil)
	for name, there := range map[string]func(t *testing.T, a *guest){
		"nothing": func(*testing.T, *guest) {},
		"a claim, and no disk": func(t *testing.T, a *guest) {
			a.claims(placed(a.id, 0, 1, false))
		},
		"over another image": func(t *testing.T, a *guest) {
			a.claims(placed(a.id, 0, 1, false))
			a.rec.Devices = []device{{Kind: "disk", Name: "root", Format: "qcow2", Made: true, Image: imageFile{ID: other}}}
			if err := a.noteDisks(t.Context(), 99); err != nil {
				t.Fatal(err)
			}
		},
		"being erased": func(t *testing.T, a *guest) {
			a.claims(placed(a.id, 0, 1, false))
			if err := a.changeMine(t.Context(), func(c *claim) { c.Erasing = true }); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
			a, b := claimant(t, dir, id), claimant(t, dir, id)
			there(t, a)
			want := placed(id, 0, 5, true)
			want.Disks[0].Image = &compute.ImageRef{ID: id}
			if got := b.claims(want); got != "trouble" {
				t.Fatalf("without one it is %s", got)
			}
			want.Rebuilds++
			if got := b.claims(want); got != "mine" || b.rec.Rebuilds >= want.Rebuilds {
				t.Errorf("it is %s, and rebuild %d is carried out", got, b.rec.Rebuilds)
			}
			if got := a.claims(placed(id, 0, 1, false)); got != "another's" {
				t.Errorf("for who had it before it is %s", got)
			}
		})
	}
}

// An agent may die at each step of taking disks up and of erasing them: the next one goes on.
func TestAgentsDieWhileTheyClaim(t *testing.T) {
	dir, id := t.TempDir(), resource.NewID(time.Now(), nil)
	g := claimant(t, dir, id)
	died := map[string]bool{}
	dies := func(f func()) {
		t.Helper()
		defer func() { recover() }()
		g.driver.step = func(name string) {
			if !died[name] {
				died[name] = true
				panic(name)
			}
		}
		f()
		t.Fatal("it did not die")
	}
	dies(func() { g.claims(placed(id, 0, 1, false)) })
	disk := filepath.Join(dir, guestOn(id), "disk-root.qcow2")
	if err := os.WriteFile(disk, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, remembers := range []bool{true, false} { // it died after its own record was written, or before
		if !remembers {
			g.rec.Claim = decision{}
		}
		if got := g.claims(placed(id, 0, 1, false)); got != "mine" {
			t.Errorf("the next agent says that the disks are %s", got)
		}
		if _, err := os.Stat(disk); err != nil {
			t.Error(err)
		}
	}
	left := compute.Erasure{GuestID: id, Storage: g.driver.storage.id, Epoch: 1}
	g.driver.guests = map[resource.ID]*guest{}
	dies(func() { g.driver.Erase(t.Context(), left) })
	if err := g.driver.Erase(t.Context(), left); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Dir(disk)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	for _, step := range steps(t, sharedSources) {
		if !died[step] && !slices.Contains([]string{"departure recorded", "arrival recorded", "disks taken up"}, step) { // the contract has those, TestAgentsDieAsTheyTakeDisksUp this one
			t.Errorf("no agent died at %q", step)
		}
	}
}
