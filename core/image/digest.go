package image

import (
	"crypto/md5"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// sums is what is found out about bytes while they pass.
type sums struct {
	bytes       int64
	md5, sha512 string
}

// A lane that runs ahead may do so for this many chunks. They are made as they are needed: a
// source that is slower than the digests makes do with two.
const (
	chunkBytes = 256 << 10
	chunks     = 8
)

var errTooLong = errors.New("more bytes than are accepted")

// A chunk of bytes goes to several consumers at once; the last one frees it.
type chunk struct {
	data    []byte
	waiting atomic.Int32
}

// readError tells trouble with the source from trouble with the destination.
type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

// receive copies src to dst and sums the bytes up on the way. The two digests and
// the writes each run in a goroutine of their own over shared buffers, because one digest after
// the other is what bounds an upload. It takes the same memory for any size. Past most bytes
// it stops with errTooLong; trouble with src is a readError.
func receive(dst io.Writer, src io.Reader, most int64) (sums, error) {
	free := make(chan *chunk, chunks)
	md, sha := md5.New(), sha512.New()
	var failed atomic.Pointer[error]
	write := func(b []byte) {
		if failed.Load() != nil {
			return
		}
		if _, err := dst.Write(b); err != nil {
			failed.Store(&err)
		}
	}
	consumers := []func([]byte){write, digestInto(md), digestInto(sha)}
	lanes := make([]chan *chunk, len(consumers))
	var wg sync.WaitGroup
	for n, consume := range consumers {
		lane := make(chan *chunk, chunks)
		lanes[n] = lane
		wg.Go(func() {
			for c := range lane {
				consume(c.data)
				if c.waiting.Add(-1) == 0 {
					free <- c
				}
			}
		})
	}
	total, err := feed(lanes, free, &failed, src, most)
	for _, lane := range lanes {
		close(lane)
	}
	wg.Wait()
	if problem := failed.Load(); problem != nil {
		err = *problem
	}
	return sums{total, hex.EncodeToString(md.Sum(nil)), hex.EncodeToString(sha.Sum(nil))}, err
}

func digestInto(h hash.Hash) func([]byte) {
	return func(b []byte) { h.Write(b) } // a hash never fails
}

// feed reads src chunk by chunk and hands each to every lane.
func feed(lanes []chan *chunk, free chan *chunk, failed *atomic.Pointer[error], src io.Reader, most int64) (int64, error) {
	var total int64
	made := 0
	next := func() *chunk {
		select {
		case c := <-free:
			return c
		default:
		}
		if made == chunks {
			return <-free
		}
		made++
		return &chunk{data: make([]byte, chunkBytes)}
	}
	for failed.Load() == nil {
		c := next()
		n, err := fill(src, c.data[:chunkBytes])
		total += int64(n)
		if total > most {
			return total, errTooLong
		}
		if n > 0 {
			c.data = c.data[:n]
			c.waiting.Store(int32(len(lanes)))
			for _, lane := range lanes {
				lane <- c
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, readError{err}
		}
	}
	return total, nil
}

// fill is io.ReadFull with the source's own error: a body that was cut short ends with
// io.ErrUnexpectedEOF, a whole one with io.EOF.
func fill(src io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = src.Read(b[n:])
		n += m
	}
	return n, err
}
