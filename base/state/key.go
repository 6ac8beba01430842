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
	var b strings.Builder
	for _, part := range parts {
		switch p := part.(type) {
		case resource.ID:
			b.Write(p[:])
		case string:
			writeText(&b, p)
		case int:
			writeInt(&b, int64(p))
		case int64:
			writeInt(&b, p)
		case bool:
			if p {
				b.WriteByte(1)
			} else {
				b.WriteByte(0)
			}
		case time.Time:
			writeInt(&b, p.UnixNano())
		case netip.Addr:
			raw := p.As16()
			b.Write(raw[:])
		case fmt.Stringer:
			writeText(&b, p.String())
		default:
			writeText(&b, textOf(part))
		}
	}
	return Key(b.String())
}

// writeText ends a text with 0 1 and doubles a zero byte inside to 0 2, so that
// no text is a prefix of another and order is kept.
func writeText(b *strings.Builder, s string) {
	for strings.IndexByte(s, 0) >= 0 {
		i := strings.IndexByte(s, 0)
		b.WriteString(s[:i])
		b.WriteString("\x00\x02")
		s = s[i+1:]
	}
	b.WriteString(s)
	b.WriteString("\x00\x01")
}

func writeInt(b *strings.Builder, n int64) {
	var raw [8]byte
	binary.BigEndian.PutUint64(raw[:], uint64(n)^1<<63)
	b.Write(raw[:])
}
