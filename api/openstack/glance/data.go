package glance

import (
	"context"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// stalled is how long a client may send nothing of a body it has begun.
const stalled = 60 * time.Second

func (s *server) upload(w http.ResponseWriter, r *http.Request) error {
	return receive(w, r, s.images.Upload)
}

func (s *server) stage(w http.ResponseWriter, r *http.Request) error {
	return receive(w, r, s.images.Stage)
}

func receive(w http.ResponseWriter, r *http.Request, into func(ctx context.Context, id resource.ID, src io.Reader, expect int64) error) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/octet-stream" {
		return fault.Errorf(fault.Invalid, "The data of an image must come as application/octet-stream.").WithCode("media-type")
	}
	if at := r.Header.Get("X-Image-Meta-Store"); at != "" && at != store {
		return fault.Errorf(fault.Invalid, "Store '%.64s' is not known.", at)
	}
	expect := r.ContentLength
	if said := r.Header.Get("X-OpenStack-Image-Size"); said != "" {
		n, err := strconv.ParseInt(said, 10, 64)
		if err != nil || n < 0 || expect >= 0 && n != expect {
			return fault.InvalidField("X-OpenStack-Image-Size", "must be the number of bytes that follow")
		}
		expect = n
	}
	body := &patient{r.Body, http.NewResponseController(w)}
	err = into(r.Context(), id, body, expect)
	if e := body.done(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	return noContent(w)
}

// A patient reader waits for the next bytes of a body, but not for ever.
type patient struct {
	body io.Reader
	conn *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.within(time.Now().Add(stalled)); err != nil {
		return 0, err
	}
	return p.body.Read(b)
}

func (p *patient) done() error { return p.within(time.Time{}) }

func (p *patient) within(t time.Time) error {
	if err := p.conn.SetReadDeadline(t); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

func (s *server) download(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	i, blob, err := s.images.Download(r.Context(), id)
	if err != nil {
		return err
	}
	if blob == nil {
		return noContent(w)
	}
	defer blob.Close()
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Md5", i.MD5) // in hexadecimal, unlike RFC 1864: so Glance does, and clients compare it
	// A file goes from the disk's cache to the socket inside of the kernel.
	http.ServeContent(w, r, "", time.Time{}, blob)
	return nil
}
