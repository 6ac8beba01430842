package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A Key is a place in an index. Keys compare as their parts do, part by part. The
// empty Key is no place: an object whose key is empty is not in that index.
type Key string

// KeyOf joins parts to a Key. A part is a resource.ID, a string (or a type of string), an integer,
// a bool, a time.Time or a netip.Addr. A Key made of the first parts is a prefix of the whole.
func KeyOf(parts ...any) Key {
	var room [96]byte // enough for most, so that only the Key itself is allocated
	b := room[:0]
	for _, part := range parts {
		switch p := part.(type) {
		case resource.ID:
			b = append(b, p[:]...)
		case string:
			b = appendText(b, p)
		case int:
			b = appendInt(b, int64(p))
		case int64:
			b = appendInt(b, p)
		case bool:
			if p {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		case time.Time:
			b = appendInt(b, p.UnixNano())
		case netip.Addr:
			raw := p.As16()
			b = append(b, raw[:]...)
		case fmt.Stringer:
			b = appendText(b, p.String())
		default:
			b = appendText(b, textOf(part))
		}
	}
	return Key(b)
}

// appendText ends a text with 0 1 and doubles a zero byte inside to 0 2, so that
// no text is a prefix of another and order is kept.
func appendText(b []byte, s string) []byte {
	for i := strings.IndexByte(s, 0); i >= 0; i = strings.IndexByte(s, 0) {
		b = append(append(b, s[:i]...), 0, 2)
		s = s[i+1:]
	}
	return append(append(b, s...), 0, 1)
}

func appendInt(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(n)^1<<63)
}
