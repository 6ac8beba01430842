package host

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
)

// What a host is to make of a network or a group may name ten thousand others, and one more of them is a
// line more. Such a body travels as what is different from the one before. The sender does not keep that
// one, for it would have to for each host; it keeps what tells its pieces apart. Pieces end where the
// text itself says so, so that those behind a change are the same as before.

// A Difference makes a body of the one that was sent before.
type Difference struct {
	Parts []Part
	Sum   []byte // of what comes out, to be sure
}

// A Part of a body is a piece of the one before, or new.
type Part struct {
	From, Size int    `json:",omitempty"`
	New        []byte `json:",omitempty"`
}

const (
	leastDiffered = 16 << 10 // a shorter body travels whole
	leastPiece    = 128
	mostPiece     = 4096
	pieceMask     = 1<<9 - 1 // a piece ends where so many bits of a running sum are zero: after 512 bytes on average
)

// A piece is a part of a body that was sent.
type piece struct {
	sum  digest
	size int32
}

// weights are what each byte adds to the running sum (SplitMix64).
var weights = func() (w [256]uint64) {
	for i := range w {
		z := uint64(i+1) * 0x9e3779b97f4a7c15
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		w[i] = z ^ z>>31
	}
	return w
}()

// split cuts a body into pieces. Where it cuts depends on the 64 bytes before alone.
func split(body []byte) []piece {
	var pieces []piece
	begin, running := 0, uint64(0)
	for at, b := range body {
		running = running<<1 + weights[b]
		size := at + 1 - begin
		if size == mostPiece || at == len(body)-1 || size >= leastPiece && running>>55&pieceMask == 0 {
			pieces = append(pieces, piece{digestOf(body[begin : at+1]), int32(size)})
			begin = at + 1
		}
	}
	return pieces
}

// differ says how a body, cut into pieces, is made of one that was cut into others.
func differ(was, now []piece, body []byte) *Difference {
	from := make(map[digest]int, len(was))
	at := 0
	for _, p := range was {
		from[p.sum] = at
		at += int(p.size)
	}
	d := &Difference{}
	at = 0
	for _, p := range now {
		size := int(p.size)
		text := body[at : at+size]
		at += size
		last := len(d.Parts) - 1
		begin, known := from[p.sum]
		switch {
		case known && last >= 0 && d.Parts[last].New == nil && d.Parts[last].From+d.Parts[last].Size == begin:
			d.Parts[last].Size += size
		case known:
			d.Parts = append(d.Parts, Part{From: begin, Size: size})
		case last >= 0 && d.Parts[last].New != nil:
			d.Parts[last].New = append(d.Parts[last].New, text...)
		default:
			d.Parts = append(d.Parts, Part{New: append([]byte(nil), text...)})
		}
	}
	sum := sha256.Sum256(body)
	d.Sum = sum[:]
	return d
}

// lighten turns an item with a long body into a difference, if the host has the one before.
func (s *Session) lighten(item Item) Item {
	was := s.pieces[item.Key]
	delete(s.pieces, item.Key)
	if !s.differences || len(item.Body) < leastDiffered {
		return item
	}
	now := split(item.Body)
	s.pieces[item.Key] = now
	if was == nil {
		return item
	}
	return Item{Key: item.Key, Difference: differ(was, now, item.Body)}
}

// Differences lets the session send differences. It is called before anything is sent, for a host that said
// that it can put them together.
func (s *Session) Differences() { s.differences = true }

// An Assembler puts together, on the host, what a session sends. The zero value is ready for one session.
type Assembler struct {
	bodies map[Key]json.RawMessage // those that a difference may come to
}

var errNotFitting = errors.New("a difference does not fit the body before it")

// Take replaces differences by whole bodies. After an error the session is of no more use.
func (a *Assembler) Take(d *Delivery) error {
	if d.Full || a.bodies == nil {
		a.bodies = map[Key]json.RawMessage{}
	}
	for i := range d.Items {
		item := &d.Items[i]
		if item.Difference != nil {
			body, err := item.Difference.apply(a.bodies[item.Key])
			if err != nil {
				return fmt.Errorf("%s %s: %w", item.Kind, item.ID, err)
			}
			item.Body, item.Difference = body, nil
		}
		if len(item.Body) >= leastDiffered {
			a.bodies[item.Key] = item.Body
		} else {
			delete(a.bodies, item.Key)
		}
	}
	return nil
}

func (d *Difference) apply(was []byte) ([]byte, error) {
	var body []byte
	for _, p := range d.Parts {
		if p.New != nil {
			body = append(body, p.New...)
			continue
		}
		if p.From < 0 || p.Size < 0 || p.From > len(was) || p.Size > len(was)-p.From {
			return nil, errNotFitting
		}
		body = append(body, was[p.From:p.From+p.Size]...)
	}
	if sum := sha256.Sum256(body); string(sum[:]) != string(d.Sum) {
		return nil, errNotFitting
	}
	return body, nil
}
