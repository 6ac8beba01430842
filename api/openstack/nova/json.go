package nova

import (
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A doc is a JSON text being written, for answers that are long or asked for often: it costs a
// tenth of building the same of maps.
type doc struct {
	b     []byte
	lent  *[]byte // the room that b is in, where it is to go back
	comma bool    // something stands before what comes next
}

func (d *doc) sep() {
	if d.comma {
		d.b = append(d.b, ',')
	}
	d.comma = true
}

func (d *doc) open(c byte) { d.b = append(d.b, c); d.comma = false }

func (d *doc) close(c byte) { d.b = append(d.b, c); d.comma = true }

// key begins a member; what follows is its value. name needs no escapes.
func (d *doc) key(name string) {
	d.sep()
	d.b = append(d.b, '"')
	d.b = append(d.b, name...)
	d.b = append(d.b, '"', ':')
	d.comma = false
}

func (d *doc) object(name string) { d.key(name); d.open('{') }
func (d *doc) array(name string)  { d.key(name); d.open('[') }
func (d *doc) item()              { d.sep(); d.open('{') }
func (d *doc) end()               { d.close('}') }
func (d *doc) endArray()          { d.close(']') }

func (d *doc) str(name, value string) {
	d.key(name)
	d.value(value)
}

// opt is a text, or null when it is empty.
func (d *doc) opt(name, value string) {
	d.key(name)
	if value == "" {
		d.b = append(d.b, "null"...)
		d.comma = true
		return
	}
	d.value(value)
}

func (d *doc) value(s string) { d.b = appendString(d.b, s); d.comma = true }

func (d *doc) int(name string, n int) {
	d.key(name)
	d.b = strconv.AppendInt(d.b, int64(n), 10)
	d.comma = true
}

func (d *doc) bool(name string, v bool) {
	d.key(name)
	d.b = strconv.AppendBool(d.b, v)
	d.comma = true
}

func (d *doc) null(name string) {
	d.key(name)
	d.b = append(d.b, "null"...)
	d.comma = true
}

func (d *doc) id(name string, id resource.ID) {
	d.key(name)
	d.b = append(d.b, '"')
	d.b = appendID(d.b, id)
	d.b = append(d.b, '"')
	d.comma = true
}

// hex is an ID without dashes, as Keystone spells projects and users.
func (d *doc) hex(name string, id resource.ID) {
	d.key(name)
	d.b = append(d.b, '"')
	d.b = appendHex(d.b, id[:])
	d.b = append(d.b, '"')
	d.comma = true
}

func (d *doc) time(name string, t time.Time) { d.format(name, t, "2006-01-02T15:04:05Z") }

func (d *doc) format(name string, t time.Time, layout string) {
	d.key(name)
	d.b = append(d.b, '"')
	d.b = t.UTC().AppendFormat(d.b, layout)
	d.b = append(d.b, '"')
	d.comma = true
}

// link is one link, to what path and id name under an address.
func (d *doc) link(rel, base, path string, id resource.ID) {
	d.item()
	d.str("rel", rel)
	d.key("href")
	d.b = appendEscaped(append(d.b, '"'), base)
	d.b = append(d.b, path...)
	d.b = append(appendID(d.b, id), '"')
	d.comma = true
	d.end()
}

const digits = "0123456789abcdef"

func appendHex(b, raw []byte) []byte {
	for _, c := range raw {
		b = append(b, digits[c>>4], digits[c&15])
	}
	return b
}

func appendID(b []byte, id resource.ID) []byte {
	b = append(appendHex(b, id[:4]), '-')
	b = append(appendHex(b, id[4:6]), '-')
	b = append(appendHex(b, id[6:8]), '-')
	b = append(appendHex(b, id[8:10]), '-')
	return appendHex(b, id[10:])
}

// appendString quotes a text as JSON does.
func appendString(b []byte, s string) []byte { return append(appendEscaped(append(b, '"'), s), '"') }

func appendEscaped(b []byte, s string) []byte {
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r != utf8.RuneError || n != 1 {
				i += n
				continue
			}
			b = append(append(b, s[from:i]...), `\ufffd`...)
			i++
			from = i
			continue
		}
		b = append(b, s[from:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
		i++
		from = i
	}
	return append(b, s[from:]...)
}

// room is where texts were written before: a long list of servers is most of what its request allocates.
var room = sync.Pool{New: func() any { return new([]byte) }}

const mostRoom = 4 << 20 // of one text, to be kept for the next

// borrow gives the doc room of an earlier one for its text, at least size bytes; write gives it back.
func (d *doc) borrow(size int) {
	d.lent = room.Get().(*[]byte)
	d.b = slices.Grow((*d.lent)[:0], size)
}

// write sends the text, and ends the doc.
func (d *doc) write(w http.ResponseWriter, status int) error {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(d.b)))
	w.WriteHeader(status)
	_, err := w.Write(d.b) // copies: nobody holds the text afterwards
	if d.lent != nil && cap(d.b) <= mostRoom {
		*d.lent = d.b
		room.Put(d.lent)
	}
	d.b, d.lent = nil, nil
	return err
}
