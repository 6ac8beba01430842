package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image/inspect"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A transfer is bytes on their way into an image. It belongs to the process that reads them:
// the image names the blob being written, and this process knows which it writes. An image
// whose blob nobody writes any more, because the process died or its client left, is Queued again
// (settle). So nothing has to be said to the state while bytes flow; the operation's deadline is
// only the outer bound, and a source that stalls is its reader's to cut off.

// Upload brings an image's bytes in and makes it active. expect is how many there are, -1 if
// nobody knows. Whatever goes wrong leaves the image queued, and nothing of the bytes.
func (s *Service) Upload(ctx context.Context, id resource.ID, src io.Reader, expect int64) error {
	return s.transfer(ctx, id, Receiving, src, expect)
}

// Fill is Upload by the cloud itself, which may come again with the same bytes: an image that has them needs no more.
func (s *Service) Fill(ctx context.Context, id resource.ID, src io.Reader, expect int64) error {
	if i, ok := images.PeekOne(s.State.Latest(), id); ok && (i.State == Active || i.State == Deactivated) {
		return nil
	}
	return s.Upload(ctx, id, src, expect)
}

// Stage brings an image's bytes in for a later Import.
func (s *Service) Stage(ctx context.Context, id resource.ID, src io.Reader, expect int64) error {
	return s.transfer(ctx, id, Staging, src, expect)
}

var verbs = map[State]string{Receiving: "upload", Staging: "stage"}

// A run is a transfer of this process.
type run struct {
	image  resource.ID
	blob   resource.ID // zero until the state knows of the transfer
	cancel context.CancelCauseFunc
}

func (s *Service) transfer(ctx context.Context, id resource.ID, as State, src io.Reader, expect int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// It runs before the state says so: nobody must take it for abandoned in between.
	r := &run{image: id, cancel: cancel}
	s.mu.Lock()
	s.runs[r] = true
	s.mu.Unlock()
	defer s.over(r)

	i, most, err := s.begin(ctx, id, as, expect)
	if err != nil || state.Planning(ctx) {
		return err
	}
	s.mu.Lock()
	r.blob = i.TransferID
	s.mu.Unlock()
	got, verdict, err := s.write(ctx, i, as, src, expect, most)
	if err == nil {
		err = s.finish(ctx, i, as, got, verdict)
	}
	if err != nil {
		s.over(r)
		s.abandon(context.WithoutCancel(ctx), i, err)
	}
	return err
}

func (s *Service) over(r *run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.runs, r)
}

// abandon undoes a transfer of ours that failed. What cannot be done now, settle does later.
func (s *Service) abandon(ctx context.Context, i *Image, why error) {
	if s.State.Broken() != nil || fault.Is(why, fault.Unavailable) {
		return // the image may be there all the same; only who sees what was stored can tell: settle, and the sweep
	}
	if err := s.blobs.Remove(ctx, i.TransferID); err != nil {
		slog.WarnContext(ctx, "the blob of a failed upload was not removed yet", "blob", i.TransferID, "err", err)
	}
	if _, err := s.settleWith(ctx, i.ID, trouble(why)); err != nil {
		slog.WarnContext(ctx, "a failed upload was not undone yet", "image", i.ID, "err", err)
	}
}

// trouble is what an owner may read of an error.
func trouble(err error) string {
	if f := fault.From(err); f != nil {
		return f.Message
	}
	return "The bytes could not be stored."
}

// begin books the transfer, and says how many bytes may come.
func (s *Service) begin(ctx context.Context, id resource.ID, as State, expect int64) (*Image, int64, error) {
	var most int64
	// The blob's ID is made anew for each attempt, so that what is left of one cannot be taken for another.
	i, err := s.change(ctx, id, "image.upload", func(tx *state.Tx, i *Image) error {
		if i.Format == "" || i.Container == "" {
			return fault.Errorf(fault.Invalid, "Image %s needs a disk_format and a container_format before its data.", id)
		}
		if err := s.roomForTransfer(tx, i.ProjectID); err != nil {
			return err
		}
		if err := i.move(as); err != nil {
			return err
		}
		most = s.config.MaxBytes
		if limits := s.config.Limits(tx, i.ProjectID); limits.Bytes != 0 {
			if err := s.roomFor(tx, i.ProjectID, 0, 1); err != nil {
				return err
			}
			_, sums := images.Sum(tx, "use", state.KeyOf(i.ProjectID))
			most = min(most, limits.Bytes-sums[0])
		}
		if expect > most {
			return tooLong(most)
		}
		i.TransferID, i.Trouble = tx.NewID(), ""
		_, err := operation.Begin(tx, verbs[as], images.Kind(), &i.Meta, identity.ActorOf(ctx), s.config.Within)
		return err
	})
	return i, most, err
}

func tooLong(most int64) error {
	return fault.Errorf(fault.TooLarge, "The image is larger than the %d bytes that it may have.", most).With("quota", "image-bytes")
}

// write streams the bytes into a blob, judges them, and makes the blob durable.
func (s *Service) write(ctx context.Context, i *Image, as State, src io.Reader, expect, most int64) (got sums, verdict inspect.Verdict, err error) {
	w, err := s.blobs.Create(ctx, i.TransferID, expect)
	if err != nil {
		return got, verdict, err
	}
	defer func() {
		if e := w.Close(); e != nil && err == nil {
			err = fmt.Errorf("close blob %s: %w", i.TransferID, e)
		}
	}()
	m := &metered{Writer: w, s: s, project: i.ProjectID}
	defer m.end() // before the state counts them
	got, err = receive(m, stopping{ctx, src}, most)
	var broken readError
	switch {
	case context.Cause(ctx) == errOvertaken:
		return got, verdict, overtaken(i.ID)
	case errors.Is(err, errTooLong):
		return got, verdict, tooLong(most)
	case errors.As(err, &broken) || err == nil && expect >= 0 && got.bytes != expect:
		return got, verdict, fault.Errorf(fault.Invalid, "The upload ended early, after %d bytes. Nothing was kept; try again.", got.bytes)
	case err != nil:
		return got, verdict, err
	}
	if as == Receiving { // what is staged is judged when it is imported
		if verdict, err = judge(i, w, got.bytes); err != nil {
			return got, verdict, err
		}
	}
	return got, verdict, w.Commit()
}

// judge looks at an image's bytes. What is wrapped in a container is not looked at, and not used.
func judge(i *Image, r io.ReaderAt, bytes int64) (inspect.Verdict, error) {
	if !bare[i.Container] {
		return inspect.Verdict{}, nil
	}
	return inspect.Judge(i.Format, r, bytes)
}

// stopping ends a stream once its context has ended. A read that waits for a client is cut
// off by whoever owns the connection.
type stopping struct {
	ctx context.Context
	src io.Reader
}

func (r stopping) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.src.Read(b)
}

// finish shows the bytes to the world, unless the image was deleted or timed out meanwhile.
func (s *Service) finish(ctx context.Context, was *Image, as State, got sums, verdict inspect.Verdict) error {
	return s.State.Update(context.WithoutCancel(ctx), func(tx *state.Tx) error {
		i, ok := images.Find(tx, was.ID)
		if !ok || i.TransferID != was.TransferID || i.State != as {
			return overtaken(was.ID)
		}
		if err := s.roomFor(tx, i.ProjectID, 0, got.bytes); err != nil {
			return err
		}
		i.BlobID, i.TransferID = i.TransferID, resource.ID{}
		i.Bytes, i.MD5, i.SHA512 = got.bytes, got.md5, got.sha512
		to := Staged
		if as == Receiving {
			to = Active
			i.VirtualBytes, i.Usable = verdict.VirtualBytes, verdict.Usable
		}
		if err := i.move(to); err != nil {
			return err
		}
		if err := end(tx, i.ID, operation.Succeeded, ""); err != nil {
			return err
		}
		return images.Put(tx, i)
	})
}

var errOvertaken = errors.New("the transfer is no longer wanted")

func overtaken(id resource.ID) error {
	return fault.Errorf(fault.Gone, "Image %s could not be found after upload. The image may have been deleted during the upload.", id)
}
