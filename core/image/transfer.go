package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
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

// end settles the operation under way on an image.
func end(tx *state.Tx, id resource.ID, outcome operation.Outcome, message string) error {
	if o := operation.Active(tx, id); o != nil {
		return operation.End(tx, o, outcome, message)
	}
	return nil
}

// importWithin bounds the judging of staged bytes: it reads a few MiB at most.
const importWithin = 10 * time.Minute

// Import makes an image of what was staged. It returns before that is done.
func (s *Service) Import(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, id, "image.upload", func(tx *state.Tx, i *Image) error {
		if err := i.move(Importing); err != nil {
			return err
		}
		i.Imported = true
		_, err := operation.Begin(tx, "import", images.Kind(), &i.Meta, identity.ActorOf(ctx), importWithin)
		return err
	})
	return err
}

// Copy brings an active image to every store. There is one, so it is done at once; the
// operation is there to be looked at.
func (s *Service) Copy(ctx context.Context, id resource.ID) error {
	_, err := s.change(ctx, id, "image.copy", func(tx *state.Tx, i *Image) error {
		if i.State != Active {
			return fault.Errorf(fault.Conflict, "Only images with status active can be copied; %s is %s.", id, i.State).WithCode("image-state")
		}
		i.Imported = true
		o, err := operation.Begin(tx, "copy", images.Kind(), &i.Meta, identity.ActorOf(ctx), importWithin)
		if err != nil {
			return err
		}
		return operation.End(tx, o, operation.Succeeded, "")
	})
	return err
}

// Operations lists what was done to an image that the actor can see, the newest first.
func (s *Service) Operations(ctx context.Context, id resource.ID) ([]*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := find(ctx, tx, id, "image.get"); err != nil {
		return nil, err
	}
	return operation.Of(tx, id), nil
}

// Recent lists what was done to images in the whole cloud, for its operator: the newest first, at most max.
func (s *Service) Recent(ctx context.Context, max int) ([]*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "image.diagnose", resource.Meta{}); err != nil {
		return nil, err
	}
	var found []*operation.Operation
	for o := range operation.Table().Range(tx, "", state.Range{Reverse: true}) {
		if o.TargetKind == images.Kind() {
			found = append(found, o)
		}
		if len(found) == max {
			break
		}
	}
	return found, nil
}

// Operation gives one of them.
func (s *Service) Operation(ctx context.Context, id resource.ID) (*operation.Operation, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	if err := identity.Allow(ctx, "image.diagnose", resource.Meta{}); err != nil {
		return nil, err
	}
	o, err := operation.Get(tx, id)
	if err == nil && o.TargetKind != images.Kind() {
		return nil, fault.Missing("operation", id)
	}
	return o, err
}

// Download gives an image's bytes to an actor that may have them. The blob is nil when there are none yet.
func (s *Service) Download(ctx context.Context, id resource.ID) (*Image, Blob, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, nil, err
	}
	i, err := find(ctx, tx, id, "image.download")
	if err != nil {
		return nil, nil, err
	}
	switch {
	case i.State == Deactivated && !identity.ActorOf(ctx).Admin():
		return nil, nil, fault.Errorf(fault.Forbidden, "The requested image has been deactivated. Image data download is forbidden.")
	case i.State != Active && i.State != Deactivated:
		return i, nil, nil
	}
	b, err := s.open(ctx, i)
	return i, b, err
}

// open gives an image's bytes. An image that was just deleted has none any more; one that is still there
// must have them.
func (s *Service) open(ctx context.Context, i *Image) (Blob, error) {
	b, err := s.blobs.Open(ctx, i.BlobID)
	if !fault.Is(err, fault.NotFound) {
		return b, err
	}
	if now, ok := images.PeekOne(s.State.Latest(), i.ID); ok && now.BlobID == i.BlobID && now.State != Deleting {
		return nil, fmt.Errorf("image %s has lost its blob %s", i.ID, i.BlobID)
	}
	return nil, missing(i.ID)
}

// Open gives an image's bytes to the cloud itself: to a host that makes a guest from it. An image that was
// deleted while something is still to be made from it can be opened, too.
func (s *Service) Open(ctx context.Context, id resource.ID) (Blob, error) {
	i, ok := images.PeekOne(s.State.Latest(), id)
	if !ok || i.BlobID.IsZero() {
		return nil, missing(id)
	}
	return s.open(ctx, i)
}

// How often the reconciler looks again at what others have to end first.
const (
	inUseAgain   = 5 * time.Second
	runningAgain = 30 * time.Second
)

// settle takes one image a step nearer to rest: it undoes a transfer that nobody carries on,
// judges what is to be imported, and removes what was deleted. A step may run at any time.
func (s *Service) settle(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	return s.settleWith(ctx, id, "The upload was interrupted. Nothing was kept; try again.")
}

func (s *Service) settleWith(ctx context.Context, id resource.ID, why string) (reconcile.Next, error) {
	tx := s.State.Latest()
	i, ok := images.Find(tx, id)
	if !ok {
		return reconcile.Next{}, nil
	}
	s.stop(i)
	switch i.State {
	case Receiving, Staging:
		if s.running(i) {
			return reconcile.Next{After: runningAgain}, nil
		}
		return reconcile.Next{}, s.undo(ctx, i, why)
	case Importing:
		return reconcile.Next{}, s.importStaged(ctx, i)
	case Deleting:
		if s.config.InUse(tx, id) || s.holding() {
			return reconcile.Next{After: inUseAgain}, nil
		}
		return reconcile.Next{}, s.purge(ctx, i)
	}
	return reconcile.Next{}, nil
}

// running reports whether this process brings the image's bytes in.
func (s *Service) running(i *Image) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		if r.image == i.ID && (r.blob.IsZero() || r.blob == i.TransferID) {
			return true
		}
	}
	return false
}

// stop ends the transfers of this process that the image does not want any more.
func (s *Service) stop(i *Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.runs {
		if r.image == i.ID && !r.blob.IsZero() && (r.blob != i.TransferID || i.State == Deleting) {
			r.cancel(errOvertaken)
		}
	}
}

// undo takes an image back to Queued, with nothing left of the attempt.
func (s *Service) undo(ctx context.Context, was *Image, why string) error {
	if err := s.blobs.Remove(ctx, was.TransferID); err != nil {
		return fmt.Errorf("remove what is left of blob %s: %w", was.TransferID, err)
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		i, ok := images.Find(tx, was.ID)
		if !ok || i.TransferID != was.TransferID || i.State != was.State {
			return nil
		}
		return i.requeue(tx, why)
	})
}

// requeue writes an image as Queued, without bytes.
func (i *Image) requeue(tx *state.Tx, why string) error {
	if err := i.move(Queued); err != nil {
		return err
	}
	i.TransferID, i.BlobID, i.Trouble = resource.ID{}, resource.ID{}, why
	i.Bytes, i.VirtualBytes, i.Usable, i.MD5, i.SHA512 = 0, 0, false, "", ""
	if err := end(tx, i.ID, operation.Failed, why); err != nil {
		return err
	}
	return images.Put(tx, i)
}

func (s *Service) importStaged(ctx context.Context, was *Image) error {
	b, err := s.blobs.Open(ctx, was.BlobID)
	if err != nil {
		return fmt.Errorf("open the staged blob of image %s: %w", was.ID, err)
	}
	verdict, refused := judge(was, b, was.Bytes)
	if err := b.Close(); err != nil {
		return fmt.Errorf("close the staged blob of image %s: %w", was.ID, err)
	}
	if refused != nil && fault.From(refused) == nil {
		return refused
	}
	err = s.State.Update(ctx, func(tx *state.Tx) error {
		i, ok := images.Find(tx, was.ID)
		if !ok || i.State != Importing || i.BlobID != was.BlobID {
			return nil
		}
		if refused != nil {
			return i.requeue(tx, trouble(refused))
		}
		if err := i.move(Active); err != nil {
			return err
		}
		i.VirtualBytes, i.Usable = verdict.VirtualBytes, verdict.Usable
		if err := end(tx, i.ID, operation.Succeeded, ""); err != nil {
			return err
		}
		return images.Put(tx, i)
	})
	if err == nil && refused != nil && !s.holding() { // or the next sweep finds it
		return s.blobs.Remove(ctx, was.BlobID)
	}
	return err
}

// purge removes a deleted image's bytes, and then the image.
func (s *Service) purge(ctx context.Context, i *Image) error {
	for _, blob := range []resource.ID{i.BlobID, i.TransferID} {
		if blob.IsZero() {
			continue
		}
		// A transfer that still runs removes its own blob when it finds that the image is gone.
		if err := s.blobs.Remove(ctx, blob); err != nil {
			return fmt.Errorf("remove blob %s: %w", blob, err)
		}
	}
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if now, ok := images.Find(tx, i.ID); !ok || now.State != Deleting {
			return nil
		}
		return images.Delete(tx, i.ID)
	})
}

// Expire is what happens to an image whose operation has run out of time.
func (s *Service) Expire(tx *state.Tx, o *operation.Operation) error {
	i, ok := images.Find(tx, o.TargetID)
	if !ok {
		return nil
	}
	switch i.State {
	case Receiving, Staging, Importing:
		return i.requeue(tx, "It was not done in the time it is given.")
	}
	return nil
}

// Cancel takes back a transfer or an import: the image waits for its bytes again.
func (s *Service) Cancel(ctx context.Context, tx *state.Tx, o *operation.Operation) error {
	i, err := find(ctx, tx, o.TargetID, "image.upload")
	if err != nil {
		return err
	}
	switch i.State {
	case Receiving, Staging, Importing:
	default:
		return operation.NotCancellable("Nothing of it is under way any more.")
	}
	if err := operation.End(tx, o, operation.Cancelled, "It was cancelled."); err != nil {
		return err
	}
	return i.requeue(tx, "The transfer was cancelled.")
}

// Sweep removes blobs that no image has: what a crash left behind between the two. Call it
// at the start, and whenever you like. It gives back what it removed.
func (s *Service) Sweep(ctx context.Context) ([]resource.ID, error) {
	present, err := s.blobs.Present(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the blobs: %w", err)
	}
	// Looked at after the list: whatever was committed before has its image by now, or its transfer runs here.
	held := s.held()
	var removed []resource.ID
	for _, id := range present {
		if held[id] || s.holding() {
			continue
		}
		if err := s.blobs.Remove(ctx, id); err != nil {
			return removed, fmt.Errorf("remove orphaned blob %s: %w", id, err)
		}
		removed = append(removed, id)
	}
	return removed, nil
}

// held is every blob that an image has, or that is being written here.
func (s *Service) held() map[resource.ID]bool {
	held := map[resource.ID]bool{}
	s.mu.Lock()
	for r := range s.runs {
		held[r.blob] = true
	}
	s.mu.Unlock()
	for i := range images.Peek(s.State.Latest(), "", state.Range{}) {
		held[i.BlobID], held[i.TransferID] = true, true
	}
	return held
}

// Audit tells what is not as it should be while nothing is under way: blobs that no image has,
// and images without their blob.
func (s *Service) Audit(ctx context.Context) ([]string, error) {
	tx := s.State.Latest()
	present, err := s.blobs.Present(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the blobs: %w", err)
	}
	held := s.held()
	there := map[resource.ID]bool{}
	var found []string
	for _, id := range present {
		there[id] = true
		if !held[id] {
			found = append(found, fmt.Sprintf("blob %s belongs to no image", id))
		}
	}
	for i := range images.Peek(tx, "", state.Range{}) {
		switch i.State {
		case Staged, Importing, Active, Deactivated:
			if !there[i.BlobID] {
				found = append(found, fmt.Sprintf("image %s is %s, and its blob %s is not there", i.ID, i.State, i.BlobID))
			}
		case Receiving, Staging:
			if operation.Active(tx, i.ID) == nil {
				found = append(found, fmt.Sprintf("image %s is %s, and no operation says why", i.ID, i.State))
			}
		}
	}
	return found, nil
}
