package image_test

import (
	"bytes"
	"context"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
)

// An account alone must not be enough to fill the disk of the control plane.
func TestProjectsAreLimitedUnlessAnOperatorSaysOtherwise(t *testing.T) {
	r := newRig(t, image.Config{})
	u, err := r.Usage(r.owner)
	if err != nil || u.Limits.Images <= 0 || u.Limits.Bytes <= 0 || u.Limits.Transfers <= 0 {
		t.Fatalf("a new cloud's limits: %+v, %v", u, err)
	}
	people := identity.New(r.State, identity.Config{})
	operator := identity.Internal(t.Context())
	offer, err := people.CreateOffer(operator, &identity.Offer{Meta: resource.Meta{Name: "glance"}, Type: "image", Enabled: true})
	if err != nil {
		t.Fatal(err)
	}
	registered, err := people.CreateDefaultLimits(operator, []*identity.DefaultLimit{
		{OfferID: offer.ID, Resource: "image_count_total", Default: 2}, {OfferID: offer.ID, Resource: "image_size_total", Default: 1}})
	if err != nil {
		t.Fatal(err)
	}
	one := r.make(t, r.owner, "1")
	r.make(t, r.owner, "2")
	_, err = r.Create(r.owner, image.Request{Name: "3"})
	wantKind(t, err, fault.OverQuota)
	wantKind(t, r.Upload(r.owner, one.ID, bytes.NewReader(make([]byte, 1<<20+1)), -1), fault.TooLarge)
	if err := r.Upload(r.owner, one.ID, bytes.NewReader(make([]byte, 1<<20)), -1); err != nil {
		t.Fatal(err)
	}
	if u, err = r.Usage(r.owner); err != nil || u.Images != 2 || u.Bytes != 1<<20 || u.Limits.Images != 2 || u.Limits.Bytes != 1<<20 {
		t.Errorf("used: %+v, %v", u, err)
	}
	// One project may have any number, and nothing else changes for it.
	if _, err := people.CreateLimits(operator, []*identity.Limit{{OwnerID: r.project, OfferID: offer.ID, Resource: "image_count_total", Most: -1}}); err != nil {
		t.Fatal(err)
	}
	three := r.make(t, r.owner, "3")
	wantKind(t, r.Upload(r.owner, three.ID, bytes.NewReader([]byte("x")), 1), fault.OverQuota)
	// 0 is none at all.
	if _, err := people.UpdateDefaultLimit(operator, registered[0].ID, func(l *identity.DefaultLimit) error { l.Default = 0; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err = r.Create(r.other, image.Request{Name: "1"})
	wantKind(t, err, fault.OverQuota)
}

// trickle gives a byte at each tick, and then ends.
type trickle struct {
	ticks chan struct{}
}

func (r trickle) Read(b []byte) (int, error) {
	if _, open := <-r.ticks; !open {
		return 0, io.EOF
	}
	return copy(b, "x"), nil
}

// Uploads that go on at the same time share what is left: none of them has the whole of it.
func TestUploadsAtTheSameTimeShareTheQuota(t *testing.T) {
	limits := image.Limits{Bytes: 10, Transfers: 3}
	r := newRig(t, image.Config{Limits: func(*state.Tx, resource.ID) image.Limits { return limits }})
	var uploads sync.WaitGroup
	var outcomes [3]error
	ticks := make([]trickle, 3)
	for n := range outcomes {
		ticks[n].ticks = make(chan struct{})
		id := r.make(t, r.owner, "x").ID
		uploads.Go(func() { outcomes[n] = r.Upload(r.owner, id, ticks[n], -1) })
	}
	for {
		u, err := r.Usage(r.owner)
		if err != nil {
			t.Fatal(err)
		}
		if u.Transfers == 3 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	wantKind(t, r.Upload(r.owner, r.make(t, r.owner, "y").ID, bytes.NewReader(nil), 0), fault.OverQuota)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for sent := range 9 {
		select {
		case ticks[sent%3].ticks <- struct{}{}:
		case <-ctx.Done():
			t.Fatal("the uploads do not go on")
		}
	}
	// The tenth byte fits, the eleventh does not, whoever brings it.
	ticks[0].ticks <- struct{}{}
	ticks[1].ticks <- struct{}{}
	kept := func(bytes int64) {
		t.Helper()
		for {
			u, err := r.Usage(r.owner)
			if err != nil || ctx.Err() != nil {
				t.Fatal(u, err, ctx.Err())
			}
			if u.Bytes == bytes {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	close(ticks[0].ticks)
	kept(4)
	close(ticks[2].ticks)
	kept(7)
	close(ticks[1].ticks)
	uploads.Wait()
	if outcomes[0] != nil || outcomes[2] != nil || !fault.Is(outcomes[1], fault.TooLarge) {
		t.Errorf("the uploads ended with %v", outcomes)
	}
	if u, err := r.Usage(r.owner); err != nil || u.Bytes != 7 || u.Transfers != 0 {
		t.Errorf("used: %+v, %v", u, err)
	}
}

func TestQuota(t *testing.T) {
	var r *rig
	r = newRig(t, image.Config{Limits: func(_ *state.Tx, p resource.ID) image.Limits {
		if p == r.project {
			return image.Limits{Images: 2, Bytes: 100}
		}
		return image.Limits{}
	}})
	one, two := r.make(t, r.owner, "1"), r.make(t, r.owner, "2")
	_, err := r.Create(r.owner, image.Request{Name: "3"})
	wantKind(t, err, fault.OverQuota)
	if err := r.Upload(r.owner, one.ID, bytes.NewReader(make([]byte, 80)), -1); err != nil {
		t.Fatal(err)
	}
	wantKind(t, r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 21)), -1), fault.TooLarge)
	wantKind(t, r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 21)), 21), fault.TooLarge)
	if err := r.Upload(r.owner, two.ID, bytes.NewReader(make([]byte, 20)), -1); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(r.owner, one.ID); err != nil {
		t.Fatal(err)
	}
	three := r.make(t, r.owner, "3")
	if err := r.Upload(r.owner, three.ID, bytes.NewReader(make([]byte, 80)), 80); err != nil {
		t.Error(err)
	}
	r.clean(t, 2)
}
