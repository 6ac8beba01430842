package backup

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/audit"
	"github.com/unkai-cloud/unkai/core/image"
)

// A Target is where a cloud is made again: an empty engine and no blobs, which nobody else uses before Restore has ended
// well. When it fails, what it left there is a part, and of no use.
type Target struct {
	Engine  state.Engine
	Blobs   image.Blobs
	Secrets func([]byte) error
	Header  func(Header) error // told first; its error ends it
}

// Restore makes a cloud from a backup, and looks whether it is sound: the auditor has seen all of it. What that found is no error: it may
// have been so in the cloud that was written.
func Restore(ctx context.Context, r io.Reader, t Target) (Header, []audit.Finding, error) {
	to := &restoring{ctx: ctx, target: t}
	h, err := Read(r, to)
	if err == nil {
		err = to.restorer.Done(ctx)
	}
	if err != nil {
		return h, nil, err
	}
	s, err := state.Open(ctx, t.Engine, state.Options{})
	if err != nil {
		return h, nil, fmt.Errorf("open what was restored: %w", err)
	}
	tx := s.Latest()
	if tx.Revision() != h.Revision {
		return h, nil, fmt.Errorf("what was restored is at revision %d, not %d", tx.Revision(), h.Revision)
	}
	found := audit.State(tx)
	bytes, err := image.New(s, t.Blobs, image.Config{}).Audit(ctx)
	for _, what := range bytes {
		found = append(found, audit.Finding{Kind: "image-bytes", What: what})
	}
	return h, found, err
}

type restoring struct {
	ctx      context.Context
	target   Target
	restorer *state.Restorer
}

func (r *restoring) Header(h Header) (err error) {
	if err := r.target.Header(h); err != nil {
		return err
	}
	r.restorer, err = state.NewRestorer(r.ctx, r.target.Engine, state.Head{Revision: h.Revision, Time: h.Time})
	return err
}

func (r *restoring) Secrets(text []byte) error { return r.target.Secrets(text) }

func (r *restoring) Record(rec state.Record) error { return r.restorer.Add(r.ctx, rec) }

func (r *restoring) Image(blob resource.ID, size int64, body io.Reader) (err error) {
	w, err := r.target.Blobs.Create(r.ctx, blob, size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	n, err := io.Copy(w, contextual{r.ctx, body})
	switch {
	case err != nil:
		return fmt.Errorf("store the blob %s: %w", blob, err)
	case n < size:
		return damaged("it was cut off")
	}
	return w.Commit()
}
