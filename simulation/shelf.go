package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// uploads bring copies of disks from a machine to the controller. They are cut off with the link, and now and then they, or the
// answer, are lost.
type uploads struct{ n *node }

func (u uploads) Upload(ctx context.Context, _ resource.ID, s compute.Snapshot, c compute.Copy) (bool, int, error) {
	w := u.n.w
	if w.clock.Before(u.n.cutUntil) || u.n.session == nil {
		return false, 0, errors.New("simulated: the controller cannot be reached")
	}
	body, err := c.Open()
	if err != nil {
		return false, 0, err
	}
	defer body.Close()
	if !w.calm && w.chance(100) {
		w.fault("upload cut off")
		body = io.NopCloser(io.LimitReader(body, c.Bytes/2))
	}
	if !compute.Makes(w.control.state.Latest(), u.n.id, s.ImageID) {
		return agent.Answered(fault.Missing("image", s.ImageID))
	}
	err = w.control.images.Fill(identity.Internal(ctx), s.ImageID, body, c.Bytes)
	if f := fault.From(err); f != nil && f.Kind == fault.Invalid {
		return false, 0, err // it was cut off: a host that finds its connection broken sends it again
	}
	if err == nil && !w.calm && w.chance(100) {
		w.fault("upload's answer lost")
		return false, 0, errors.New("simulated: the answer is lost")
	}
	return agent.Answered(err)
}

func (uploads) Forget(resource.ID) {}

// imageTask is the images' own work. Our projects are nowhere, and are not to be taken for ended.
func imageTask(s *image.Service) reconcile.Task {
	t := s.Task()
	step := t.Step
	t.All = func(tx *state.Tx) []resource.ID { return image.Table().IDs(tx, "unsettled", "") }
	t.Step = func(ctx context.Context, id resource.ID) (reconcile.Next, error) {
		if !image.Table().Has(s.State.Latest(), id) {
			return reconcile.Next{}, nil
		}
		return step(ctx, id)
	}
	return t
}

// shelf has an owner shelve a server, bring it back or make an image of it, or an operator say how long those that are shelved stay.
func (c *client) shelf(p *project, id resource.ID) (string, error) {
	w, admin, s := c.w, identity.Internal(c.w.ctx), c.w.control.compute
	if w.chance(300) {
		return c.backUp(p)
	}
	n := w.rng.IntN(12)
	if left := w.bequeathed(p); len(left) > 0 && w.chance(500) { // back to the storage before what it had there is erased
		id = left[w.rng.IntN(len(left))]
		return "unshelve at once " + id.String(), s.Unshelve(p.ctx, id, compute.Place{})
	}
	if shelved := w.shelvedOf(p); len(shelved) > 0 && w.chance(800) {
		id, n = shelved[w.rng.IntN(len(shelved))], 4+w.rng.IntN(7)
	} else if n < 10 {
		n = 0
	}
	switch {
	case n < 4:
		return "shelve " + id.String(), s.Shelve(p.ctx, id, nil)
	case n < 8:
		return "unshelve " + id.String(), s.Unshelve(p.ctx, id, compute.Place{})
	case n == 8:
		return "unshelve to a host " + id.String(), s.Unshelve(admin, id, compute.Place{Host: w.nodes[w.rng.IntN(len(w.nodes))].name})
	case n == 9:
		return "offload " + id.String(), s.Offload(admin, id)
	case n == 10:
		srv, ok := compute.Servers().PeekOne(w.control.state.Latest(), id)
		if ok && srv.Shelf != nil && w.chance(500) { // its owner takes the image away: what it has must stay all the same
			return "delete the image of the shelved " + id.String(), w.control.images.Delete(p.ctx, srv.Shelf.Image.ID)
		}
		_, err := s.CreateImage(p.ctx, id, compute.ImageWanted{Name: "image"})
		return "image of " + id.String(), err
	default:
		stay := []time.Duration{0, time.Minute, host.ShelvedForever}[w.rng.IntN(3)]
		_, err := (&host.Service{State: w.control.state}).SetKeeping(admin, func(k *host.Keeping) { k.ShelvedStay = stay })
		return fmt.Sprintf("shelved servers stay for %v", stay), err
	}
}

// waver has an owner bring a server back where it is, or take that back at once; "" if there is none.
func (c *client) waver(p *project) (string, error) {
	for _, id := range c.w.shelvedOf(p) {
		srv, _ := compute.Servers().PeekOne(c.w.control.state.Latest(), id)
		switch {
		case srv.Task == compute.Unshelving && !srv.Shelf.Offloaded:
			_, err := c.w.control.operations.Cancel(p.ctx, srv.OperationID)
			return "cancel that this comes back where it is " + id.String(), err
		case srv.Task == "" && srv.Stage() == compute.Shelved:
			return "unshelve where it is " + id.String(), c.w.control.compute.Unshelve(p.ctx, id, compute.Place{})
		}
	}
	return "", nil
}

// shelvedOf lists a project's servers that are shelved, or about to be.
func (w *world) shelvedOf(p *project) (ids []resource.ID) {
	for _, id := range p.order {
		if srv, ok := compute.Servers().PeekOne(w.control.state.Latest(), id); ok && (srv.Shelf != nil || srv.Task == compute.Shelving) {
			ids = append(ids, id)
		}
	}
	return ids
}

// bequeathed lists a project's servers that are shelved, and have left something that is not erased yet.
func (w *world) bequeathed(p *project) (ids []resource.ID) {
	tx := w.control.state.Latest()
	for _, id := range p.order {
		srv, ok := compute.Servers().PeekOne(tx, id)
		if !ok || srv.Stage() != compute.Offloaded || srv.Task != "" {
			continue
		}
		for range compute.Estates().Peek(tx, "server", state.Range{Prefix: state.KeyOf(id)}) {
			ids = append(ids, id)
			break
		}
	}
	return ids
}

// checkDisks is that what a server is made from, or is to be, is the copy of its own disk.
func (w *world) checkDisks(tx *state.Tx) error {
	for srv := range compute.Servers().Peek(tx, "", state.Range{}) {
		refs := []*compute.ImageRef{srv.Root}
		if srv.Shelf != nil {
			refs = append(refs, &srv.Shelf.Image)
		}
		for _, ref := range refs {
			if ref == nil {
				continue
			}
			if err := w.checkDisk(srv, ref); err != nil {
				return fmt.Errorf("server %s: %w", srv.ID, err)
			}
		}
	}
	return nil
}

func (w *world) checkDisk(srv *compute.Server, ref *compute.ImageRef) error {
	b, err := w.control.images.Open(w.ctx, ref.ID)
	if err != nil {
		return fmt.Errorf("the disk that it lies over, or would, is lost: %w", err)
	}
	defer b.Close()
	body, err := io.ReadAll(b)
	if err != nil {
		return err
	}
	for number := srv.Snapshots; number > 0; number-- {
		if bytes.Equal(body, sim.Disk(srv.ID, number)) {
			return nil
		}
	}
	return fmt.Errorf("the disk that it lies over, or would, says %q", bytes.TrimRight(body, "\x00"))
}

// unshelved says which shelved server is not where it should be; "" for none.
func (w *world) unshelved(tx *state.Tx) string {
	stay := host.KeepingOf(tx).ShelvedStay
	for srv := range compute.Servers().Peek(tx, "", state.Range{}) {
		if srv.Stage() != compute.Shelved || stay == host.ShelvedForever {
			continue
		}
		if n := w.node(srv.HostID); n != nil && !n.dead {
			return fmt.Sprintf("server %s is shelved, and on its host still", srv.ID)
		}
	}
	for i := range image.Table().Peek(tx, "", state.Range{}) {
		if i.State == image.Deleting && !compute.UsesImage(tx, i.ID) {
			return fmt.Sprintf("image %s was deleted, and is there still", i.ID)
		}
	}
	return ""
}
