// Package backup spells a whole cloud as one stream of bytes, as of one revision of its state, and reads it back: what a release,
// an image's bytes and the first accounts' secrets are is told to it, where they come from and go to is not its business. What
// hosts have, guests' disks above all, is not in it.
//
// A stream is a row of parts. Each begins with a line, its name and how many bytes follow, and ends with the end of a line, so that a
// person can look into it:
//
//	unkai-backup 1
//	header 201
//	{"Release":…
//	secrets 312
//	…
//	records 40211
//	{"Kind":"domain","ID":…          a line for each object
//	image 0190… 1048576
//	…
//	end 64
//	8d3f…                            the SHA-256 of all that stands before the line "end"
//
// There is no stream without its end: one that was cut off is none. A part "failed" ends one, too, with the reason.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/image"
)

// Format is the newest that this release writes and reads.
const Format = 1

const (
	magic = "unkai-backup"

	recordsAtOnce = 1 << 20   // bytes of a part of records, but for the last of them
	mostText      = 256 << 20 // of a part that is read as a whole: an engine's largest batch, twice
	mostLine      = 128
)

// A Header says what a backup is of.
type Header struct {
	Release  string    // that wrote it
	Revision int64     // of the state
	Time     time.Time // of the newest change in it
	Made     time.Time // when it was written
	Records  int
	Images   int // that have bytes, at most: one that is being deleted may have lost them
}

// A Source is a cloud to be written.
type Source struct {
	Tx      *state.Tx
	Images  *image.Service // which holds its bytes since before Tx
	Secrets []byte
	Release string
	Now     time.Time
}

// Write writes a backup. When that fails the stream says so where the reader is to find it, if it can still be written to.
func Write(ctx context.Context, w io.Writer, src Source) error {
	out := &writer{w: bufio.NewWriterSize(w, 256<<10), sum: sha256.New()}
	err := out.cloud(ctx, src)
	if err != nil && out.err == nil {
		out.part("failed", []byte(err.Error()))
		return errors.Join(err, out.w.Flush())
	}
	return err
}

type writer struct {
	w   *bufio.Writer
	sum hash.Hash
	err error // of w
}

func (w *writer) Write(b []byte) (int, error) {
	w.sum.Write(b)
	n, err := w.w.Write(b)
	if err != nil {
		w.err = err
	}
	return n, err
}

func (w *writer) line(words ...any) error {
	_, err := io.WriteString(w, strings.TrimSuffix(fmt.Sprintln(words...), "\n")+"\n")
	return err
}

// part writes one whose bytes are at hand.
func (w *writer) part(name string, content []byte) error {
	if err := w.line(name, len(content)); err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	return w.line()
}

func (w *writer) cloud(ctx context.Context, src Source) error {
	stored := image.StoredAt(src.Tx)
	h := Header{Release: src.Release, Revision: src.Tx.Revision(), Time: src.Tx.Now(), Made: src.Now.UTC(), Images: len(stored)}
	for kind, n := range state.Kinds(src.Tx) {
		if !ofMachines[kind] {
			h.Records += n
		}
	}
	header, err := json.Marshal(h)
	if err != nil {
		return err
	}
	if err := errors.Join(w.line(magic, Format), w.part("header", header), w.part("secrets", src.Secrets)); err != nil {
		return err
	}
	if err := w.records(ctx, src.Tx); err != nil {
		return err
	}
	for _, i := range stored {
		if err := w.image(ctx, src.Images, i); err != nil {
			return err
		}
	}
	sum := hex.EncodeToString(w.sum.Sum(nil))
	if err := w.part("end", []byte(sum)); err != nil {
		return err
	}
	w.err = w.w.Flush()
	return w.err
}

// ofMachines are the kinds that are left out: a cloud that is made again begins with one controller, and others join it.
var ofMachines = map[string]bool{host.Controllers().Kind(): true}

// A record is one object's line.
type record struct {
	Kind    string
	ID      resource.ID
	Version int
	Value   json.RawMessage
}

func (w *writer) records(ctx context.Context, tx *state.Tx) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	flush := func() error {
		if b.Len() == 0 {
			return nil
		}
		err := errors.Join(ctx.Err(), w.part("records", b.Bytes()))
		b.Reset()
		return err
	}
	for r, err := range state.Records(tx) {
		if err != nil {
			return err
		}
		if ofMachines[r.Kind] {
			continue
		}
		if err := e.Encode(record{r.Kind, r.ID, r.Version, r.Value}); err != nil {
			return fmt.Errorf("spell %s %s: %w", r.Kind, r.ID, err)
		}
		if b.Len() >= recordsAtOnce {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (w *writer) image(ctx context.Context, images *image.Service, i image.Stored) (err error) {
	b, err := images.Bytes(ctx, i.BlobID)
	if fault.Is(err, fault.NotFound) && !i.Needed {
		return nil // it was removed on the way to being deleted
	}
	if err != nil {
		return fmt.Errorf("the bytes of image %s: %w", i.ImageID, err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	size, err := b.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = b.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = w.line("image", i.BlobID, size)
	}
	if err != nil {
		return fmt.Errorf("the bytes of image %s: %w", i.ImageID, err)
	}
	n, err := io.Copy(w, contextual{ctx, io.LimitReader(b, size)})
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err == nil {
		err = w.line()
	}
	if err != nil {
		// The reader waits for bytes: nothing that we say would be heard as such.
		w.err = fmt.Errorf("the bytes of image %s: %w", i.ImageID, err)
		return w.err
	}
	return nil
}

// contextual ends with its context.
type contextual struct {
	ctx context.Context
	io.Reader
}

func (c contextual) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.Reader.Read(b)
}

// A Taker is told what a backup holds, in this order. What it is told counts only once Read has ended well.
type Taker interface {
	Header(Header) error
	Secrets([]byte) error
	Record(state.Record) error
	Image(blob resource.ID, bytes int64, r io.Reader) error
}

// ErrDamaged: a stream was cut off, or is not as it was written.
var ErrDamaged = errors.New("the backup is damaged")

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDamaged, fmt.Sprintf(format, args...))
}

// Read reads a backup to its end and checks it; only then is it known to be whole.
func Read(r io.Reader, to Taker) (Header, error) {
	in := &reader{r: bufio.NewReaderSize(r, 256<<10), sum: sha256.New()}
	return in.cloud(to)
}

type reader struct {
	r   *bufio.Reader
	sum hash.Hash
}

// line reads the words of one line. The caller adds it to the sum.
func (r *reader) line() (line []byte, words []string, err error) {
	for {
		c, err := r.r.ReadByte()
		if errors.Is(err, io.EOF) {
			return nil, nil, damaged("it was cut off")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read the backup: %w", err)
		}
		if line = append(line, c); c == '\n' {
			return line, strings.Split(strings.TrimSuffix(string(line), "\n"), " "), nil
		}
		if len(line) > mostLine {
			return nil, nil, damaged("a part has no name")
		}
	}
}

// body is the bytes of a part, which are added to the sum as they are read.
func (r *reader) body(size int64) io.Reader { return io.TeeReader(io.LimitReader(r.r, size), r.sum) }

func (r *reader) text(size int64) ([]byte, error) {
	if size > mostText {
		return nil, damaged("a part claims %d bytes", size)
	}
	text, err := io.ReadAll(r.body(size))
	if err != nil {
		return nil, fmt.Errorf("read the backup: %w", err)
	}
	if int64(len(text)) < size {
		return nil, damaged("it was cut off")
	}
	return text, nil
}

func (r *reader) begin() error {
	line, words, err := r.line()
	if err != nil || len(words) != 2 || words[0] != magic {
		return errors.New("this is no backup of unkai")
	}
	format, err := strconv.Atoi(words[1])
	if err != nil || format < 1 {
		return damaged("its format is %.20q", words[1])
	}
	if format > Format {
		return fmt.Errorf("the backup has format %d, and this release knows those up to %d: use the release that wrote it, or a newer one", format, Format)
	}
	r.sum.Write(line)
	return nil
}

func (r *reader) cloud(to Taker) (h Header, err error) {
	if err := r.begin(); err != nil {
		return h, err
	}
	var seen struct{ headers, secrets, records, images int }
	for {
		line, words, err := r.line()
		if err != nil {
			return h, err
		}
		size, err := strconv.ParseInt(words[len(words)-1], 10, 64)
		if err != nil || size < 0 {
			return h, damaged("a part has no size: %.40q", line)
		}
		sum := hex.EncodeToString(r.sum.Sum(nil))
		r.sum.Write(line)
		name := words[0]
		if name != "header" && name != "failed" && seen.headers == 0 {
			return h, damaged("it does not begin with its header")
		}
		switch {
		case len(words) == 3 && name == "image":
			seen.images++
			err = r.image(to, words[1], size)
		case len(words) != 2:
			err = damaged("a part is %.40q", line)
		case name == "header":
			if seen.headers++; seen.headers > 1 {
				return h, damaged("it has two headers")
			}
			if h, err = r.header(size); err == nil {
				err = to.Header(h)
			}
		case name == "secrets":
			seen.secrets++
			var text []byte
			if text, err = r.text(size); err == nil {
				err = to.Secrets(text)
			}
		case name == "records":
			var n int
			n, err = r.records(to, size)
			seen.records += n
		case name == "failed":
			var text []byte
			if text, err = r.text(size); err == nil {
				err = fmt.Errorf("it could not be written: %s", text)
			}
		case name == "end":
			if err = r.end(sum, size); err == nil && (seen.records != h.Records || seen.images > h.Images || seen.secrets != 1) {
				err = damaged("it holds %d records and %d images, and says that there are %d and %d", seen.records, seen.images, h.Records, h.Images)
			}
			return h, err
		default:
			err = damaged("a part is %.40q", line)
		}
		if err == nil {
			err = r.endLine()
		}
		if err != nil {
			return h, err
		}
	}
}

// endLine is what follows the bytes of a part.
func (r *reader) endLine() error {
	line, _, err := r.line()
	if err == nil && len(line) != 1 {
		err = damaged("a part is longer than it says")
	}
	r.sum.Write(line)
	return err
}

func (r *reader) header(size int64) (h Header, err error) {
	text, err := r.text(size)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil {
		return h, damaged("its header is none: %v", err)
	}
	if h.Revision <= 0 || h.Time.IsZero() {
		return h, damaged("its header names no revision")
	}
	return h, nil
}

func (r *reader) records(to Taker, size int64) (n int, err error) {
	text, err := r.text(size)
	if err != nil {
		return 0, err
	}
	for d := json.NewDecoder(bytes.NewReader(text)); ; n++ {
		var rec record
		err := d.Decode(&rec)
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return n, damaged("a record is none: %v", err)
		}
		if err := to.Record(state.Record{Kind: rec.Kind, ID: rec.ID, Version: rec.Version, Value: rec.Value}); err != nil {
			return n, err
		}
	}
}

func (r *reader) image(to Taker, name string, size int64) error {
	blob, err := resource.ParseID(name)
	if err != nil {
		return damaged("an image is named %.40q", name)
	}
	body := &counted{r: r.body(size)}
	err = to.Image(blob, size, body)
	if err == nil {
		_, err = io.Copy(io.Discard, body) // what the taker did not want
	}
	if body.failed != nil {
		return fmt.Errorf("read the backup: %w", body.failed)
	}
	if body.ended && body.n < size {
		return damaged("it was cut off")
	}
	return err
}

// counted tells why a reader ended, whatever whoever read made of it.
type counted struct {
	r      io.Reader
	n      int64
	ended  bool
	failed error
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	if errors.Is(err, io.EOF) {
		c.ended = true
	} else if err != nil {
		c.failed = err
	}
	return n, err
}

// end compares the digest; nothing may follow it.
func (r *reader) end(sum string, size int64) error {
	text, err := r.text(size)
	if err != nil {
		return err
	}
	if string(text) != sum {
		return damaged("its digest is not that of what it holds: it was altered")
	}
	if err := r.endLine(); err != nil {
		return err
	}
	switch _, err := r.r.ReadByte(); {
	case err == nil:
		return damaged("something follows its end")
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("read the backup: %w", err)
	}
	return nil
}

// Check reads a backup and keeps nothing of it.
func Check(r io.Reader) (Header, error) { return Read(r, nothing{}) }

type nothing struct{}

func (nothing) Header(Header) error                             { return nil }
func (nothing) Secrets([]byte) error                            { return nil }
func (nothing) Record(state.Record) error                       { return nil }
func (nothing) Image(_ resource.ID, _ int64, _ io.Reader) error { return nil }
