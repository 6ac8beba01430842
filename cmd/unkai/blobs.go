package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/image"
)

// manyBlobs is the images' bytes on several controllers. A blob is committed once most of them have it, so that the loss of one
// loses none; the others take it over in time, and who is asked for one that is not here fetches it.
type manyBlobs struct {
	image.Blobs // this controller's own
	cluster     *cluster
}

// Create begins a blob here.
func (b *manyBlobs) Create(ctx context.Context, id resource.ID, expect int64) (image.Writer, error) {
	w, err := b.Blobs.Create(ctx, id, expect)
	if err != nil {
		return nil, err
	}
	return &manyWriter{w, b, id}, nil
}

type manyWriter struct {
	image.Writer
	blobs *manyBlobs
	id    resource.ID
}

// spreadWithin is how long it may take until most controllers have a blob.
const spreadWithin = 10 * time.Minute

// Commit makes the blob durable here, and has as many others take it over as makes most.
func (w *manyWriter) Commit() error {
	if err := w.Writer.Commit(); err != nil {
		return err
	}
	k := w.blobs.cluster
	others := k.others()
	need := (len(others) + 1) / 2 // with this one most of all
	if need == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), spreadWithin)
	defer cancel()
	done := make(chan error, len(others))
	for _, link := range others {
		go func() {
			done <- relay.Post(ctx, k.transport, link, "blobs/"+w.id.String()+"/fetch", map[string]string{"from": k.Link}, nil)
		}()
	}
	var failed []error
	for range others {
		if err := <-done; err != nil {
			failed = append(failed, err)
			continue
		}
		if need--; need == 0 {
			return nil
		}
	}
	return fmt.Errorf("keep the image on most controllers: %w", errors.Join(failed...))
}

// Open gives a blob, fetched from another controller if need be.
func (b *manyBlobs) Open(ctx context.Context, id resource.ID) (image.Blob, error) {
	blob, err := b.Blobs.Open(ctx, id)
	if !fault.Is(err, fault.NotFound) {
		return blob, err
	}
	for _, link := range b.cluster.others() {
		if fetched := b.Fetch(ctx, id, link); fetched == nil {
			return b.Blobs.Open(ctx, id)
		}
	}
	return nil, err
}

// Fetch takes a blob over from another controller, unless it is here.
func (b *manyBlobs) Fetch(ctx context.Context, id resource.ID, from string) error {
	if have, err := b.Blobs.Open(ctx, id); err == nil {
		return have.Close()
	}
	res, err := b.ask(ctx, id, from)
	if err != nil {
		return fmt.Errorf("fetch blob %s: %w", id, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength < 0 {
		return fmt.Errorf("fetch blob %s: the controller at %s answers %s", id, from, res.Status)
	}
	w, err := b.Blobs.Create(ctx, id, res.ContentLength)
	if err != nil {
		return err
	}
	n, err := io.Copy(w, res.Body)
	if err == nil && n != res.ContentLength {
		err = fmt.Errorf("fetch blob %s: it ended after %d of %d bytes", id, n, res.ContentLength)
	}
	if err == nil {
		err = w.Commit()
	}
	return errors.Join(err, w.Close())
}

// ask asks a controller for a blob.
func (b *manyBlobs) ask(ctx context.Context, id resource.ID, from string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from+"/controller/v1/blobs/"+id.String(), nil)
	if err != nil {
		return nil, err
	}
	return b.cluster.transport.RoundTrip(req)
}

// Elsewhere reports whether another controller that can be reached has a blob.
func (b *manyBlobs) Elsewhere(ctx context.Context, id resource.ID) bool {
	ctx, cancel := context.WithTimeout(ctx, probeWithin) // no byte of it is read
	defer cancel()
	for _, link := range b.cluster.others() {
		if res, err := b.ask(ctx, id, link); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return true
			}
		}
	}
	return false
}

// own is this controller's copies alone, for the others: who lacks one does not ask who lacks it too.
type own struct{ *manyBlobs }

func (o own) Open(ctx context.Context, id resource.ID) (image.Blob, error) {
	return o.Blobs.Open(ctx, id)
}

// mirror takes over what this controller lacks, until ctx ends.
func (b *manyBlobs) mirror(ctx context.Context) {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		for i := range image.Table().Peek(b.cluster.cloud.state.Latest(), "", state.Range{}) {
			if i.BlobID.IsZero() || ctx.Err() != nil {
				continue
			}
			if blob, err := b.Open(ctx, i.BlobID); err == nil {
				if err := blob.Close(); err != nil {
					slog.WarnContext(ctx, "could not close a blob", "blob", i.BlobID, "err", err)
				}
			} else if ctx.Err() == nil {
				slog.WarnContext(ctx, "an image's bytes are on no controller that can be reached", "image", i.ID, "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
