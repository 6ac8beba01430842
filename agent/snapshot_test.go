package agent

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// copier is a driver that copies disks as it is told.
type copier struct {
	stubborn
	copy compute.Copy
}

func (c *copier) Snapshot(context.Context, compute.Guest) (compute.Observation, compute.Copy, error) {
	return c.seen, c.copy, nil
}

// carried is an Uploader that says what it is told to.
type carried struct {
	done bool
	err  error
	of   []compute.Snapshot
}

func (c *carried) Upload(_ context.Context, _ resource.ID, s compute.Snapshot, _ compute.Copy) (bool, int, error) {
	c.of = append(c.of, s)
	return c.done, 40, c.err
}
func (c *carried) Forget(resource.ID) { c.of = nil }

func TestAGuestsDiskGoesIntoItsImage(t *testing.T) {
	d, up := &copier{stubborn: stubborn{compute.Observation{Power: compute.Off}}, copy: compute.Copy{Percent: 30}}, &carried{}
	r := guestRig(t, &Guests{Driver: d, Uploads: up})
	g := compute.Guest{ID: guestID, Power: compute.Off, Wish: 3, Snapshot: &compute.Snapshot{Number: 5, ImageID: netID}}
	r.wish(t, g, true)
	says := func(want compute.Copying) {
		t.Helper()
		want.Number = 5
		if seen := r.told(t); seen == nil || seen.Wish != 3 || seen.Power != compute.Off || seen.Copy != want {
			t.Fatalf("reported: %+v, want %+v", seen, want)
		}
		r.now = r.now.Add(whileWell)
	}
	says(compute.Copying{Percent: 15})
	d.copy.Done = true
	says(compute.Copying{Percent: 70})
	up.err = &ImageError{"No."}
	says(compute.Copying{Percent: 15, Trouble: "No."})
	up.done, up.err = true, nil
	says(compute.Copying{Percent: 100, Done: true})
	if len(up.of) != 3 || up.of[0] != *g.Snapshot {
		t.Errorf("brought were %v", up.of)
	}
	d.copy = compute.Copy{Trouble: "Full."}
	says(compute.Copying{Trouble: "Full."})
	g.Snapshot, g.Wish = nil, 4
	r.wish(t, g, false)
	if seen := r.told(t); seen == nil || seen.Wish != 4 || seen.Copy != (compute.Copying{}) || up.of != nil {
		t.Errorf("without a snapshot it is reported as %+v", seen)
	}
}

func TestAHostThatCopiesNoDisksSaysSo(t *testing.T) {
	r := guestRig(t, &Guests{Driver: &stubborn{}})
	r.wish(t, compute.Guest{ID: guestID, Wish: 3, Snapshot: &compute.Snapshot{Number: 5}}, true)
	if seen := r.told(t); seen == nil || seen.Copy.Trouble == "" || seen.Copy.Number != 5 {
		t.Errorf("reported: %+v", seen)
	}
}

func TestUploads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var outcome error
		var got []string
		ended := 0
		u := &Uploads{Ended: func(resource.ID) { ended++ }, Put: func(_ context.Context, _ resource.ID, body io.Reader, _ int64) error {
			all, err := io.ReadAll(body)
			got = append(got, string(all))
			return errors.Join(err, outcome)
		}}
		c := compute.Copy{Bytes: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("disk")), nil }}
		upload := func(number int) (bool, int, error) {
			t.Helper()
			done, percent, err := u.Upload(t.Context(), guestID, compute.Snapshot{Number: number, ImageID: netID}, c)
			synctest.Wait()
			return done, percent, err
		}
		outcome = errors.New("the controller is away")
		for range 2 { // the second has to wait
			if done, _, err := upload(1); done || err != nil || len(got) != 1 || ended != 1 {
				t.Fatalf("done %v, %v; %d attempts, %d ended", done, err, len(got), ended)
			}
		}
		time.Sleep(time.Hour)
		outcome = nil
		upload(1)
		if done, percent, err := upload(1); !done || percent != 100 || err != nil || len(got) != 2 || got[1] != "disk" {
			t.Fatalf("done %v (%d %%), %v; brought were %q", done, percent, err, got)
		}
		outcome = &ImageError{"No."}
		upload(2) // another snapshot is another upload
		time.Sleep(time.Hour)
		if done, _, err := upload(2); done || err == nil || len(got) != 3 {
			t.Errorf("what was refused is %v, %v, after %d attempts", done, err, len(got))
		}
		u.Forget(guestID)
		outcome = nil
		if upload(2); len(got) != 4 {
			t.Error("what was forgotten is not brought anew")
		}
		u.Close()
	})
}
