package resource

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"time"
)

// An ID names one object for ever, in every dialect. It is a UUID of version 7
// (RFC 9562, section 5.7): its first 48 bits are milliseconds, so IDs sort by
// the time they were made. The zero ID names nothing.
type ID [16]byte

// ErrID is what ParseID answers to anything that is not a UUID.
var ErrID = errors.New("not a UUID")

// NewID makes an ID for the moment now with 74 bits from random. Inside a
// transaction take IDs from the transaction instead, so that it can be replayed.
func NewID(now time.Time, random io.Reader) ID {
	var id ID
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, id[6:]); err != nil {
		panic("resource: random source failed: " + err.Error())
	}
	ms := uint64(now.UnixMilli())
	for i := range 6 {
		id[i] = byte(ms >> (40 - 8*i))
	}
	id[6] = id[6]&0x0f | 0x70
	id[8] = id[8]&0x3f | 0x80
	return id
}

// NextID makes an ID like NewID that also sorts after last, so that IDs made one after the other
// keep that order within a millisecond too (RFC 9562, section 6.2, method 2: the random bits
// are a counter that begins anywhere in its lower half and is raised by a random amount).
func NextID(last ID, now time.Time, random io.Reader) ID {
	id := NewID(now, random)
	id[6] &^= 0x08 // room to count
	if bytes.Compare(last[:6], id[:6]) < 0 {
		return id
	}
	// Up to 57 random bits a step: too many to guess, and few enough for 65,536 steps in the upper half.
	low := binary.BigEndian.Uint64(last[8:])&(1<<62-1) + binary.BigEndian.Uint64(id[8:])&(1<<57-1) + 1
	high := uint64(last[6]&0x0f)<<8 | uint64(last[7])
	high += low >> 62
	var ms [8]byte
	copy(ms[2:], last[:6])
	// A counter that is full goes on in the next millisecond.
	binary.BigEndian.PutUint64(ms[:], binary.BigEndian.Uint64(ms[:])+high>>12)
	copy(id[:6], ms[2:])
	id[6], id[7] = byte(high>>8)&0x0f|0x70, byte(high)
	binary.BigEndian.PutUint64(id[8:], low)
	id[8] = id[8]&0x3f | 0x80
	return id
}

// ParseID reads a UUID with or without its dashes, in either case.
func ParseID(s string) (ID, error) { return parse(s) }

func parse[T string | []byte](s T) (ID, error) {
	var digits [32]byte
	switch len(s) {
	case 32:
		copy(digits[:], s)
	case 36:
		if s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
			return ID{}, ErrID
		}
		copy(digits[:8], s)
		copy(digits[8:12], s[9:])
		copy(digits[12:16], s[14:])
		copy(digits[16:20], s[19:])
		copy(digits[20:], s[24:])
	default:
		return ID{}, ErrID
	}
	var id ID
	if _, err := hex.Decode(id[:], digits[:]); err != nil {
		return ID{}, ErrID
	}
	return id, nil
}

// MustID is ParseID for constants.
func MustID(s string) ID {
	id, err := ParseID(s)
	if err != nil {
		panic("resource: " + s + ": " + err.Error())
	}
	return id
}

// IsZero reports whether the ID names nothing.
func (id ID) IsZero() bool { return id == ID{} }

// String is the usual spelling, 36 characters in lower case.
func (id ID) String() string {
	b := id.spell()
	return string(b[:])
}

func (id ID) spell() (b [36]byte) {
	hex.Encode(b[0:8], id[0:4])
	b[8] = '-'
	hex.Encode(b[9:13], id[4:6])
	b[13] = '-'
	hex.Encode(b[14:18], id[6:8])
	b[18] = '-'
	hex.Encode(b[19:23], id[8:10])
	b[23] = '-'
	hex.Encode(b[24:], id[10:])
	return b
}

// Hex is the spelling without dashes, 32 characters.
func (id ID) Hex() string { return hex.EncodeToString(id[:]) }

// Tail is the last 17 hexadecimal digits: short enough for dialects that allow
// no more, and made of random bits, so that it still tells objects apart.
func (id ID) Tail() string { return hex.EncodeToString(id[7:])[1:] }

// Time is the moment the ID was made for, in whole milliseconds.
func (id ID) Time() time.Time {
	var ms int64
	for i := range 6 {
		ms = ms<<8 | int64(id[i])
	}
	return time.UnixMilli(ms).UTC()
}

// MarshalText spells the ID; the zero ID is the empty text.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return nil, nil
	}
	b := id.spell()
	return b[:], nil
}

// AppendText is MarshalText onto what is there already.
func (id ID) AppendText(to []byte) ([]byte, error) {
	if id.IsZero() {
		return to, nil
	}
	b := id.spell()
	return append(to, b[:]...), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*id = ID{}
		return nil
	}
	parsed, err := parse(text)
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}
