// Package inspect judges the bytes of a disk image before anything opens them. It reads
// only; what it is given is hostile until it says otherwise.
//
// Nothing here guesses a format in order to use it: the owner says what an image is, and
// Judge says whether the bytes agree. A file that is two things at once, or that makes
// whoever opens it open something else too, is refused.
package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
)

// A Verdict is what Judge found out about bytes that it did not refuse.
type Verdict struct {
	VirtualBytes int64 // what a guest would see; 0 when the format is not one that we read
	// Usable: the bytes were proven to be of their format, and one that we open. What is
	// not usable is kept and given back, and never opened.
	Usable bool
}

// Placeholder is the size below which bytes without any format's mark are taken for what
// clients put where an image will be one day. Such bytes are stored and not usable.
const Placeholder = 64 << 10

// Limits of what we open.
const maxVirtualBytes = 64 << 40

// opened are the formats that a driver may be told to open. Everything else is opaque to us.
var opened = map[string]bool{"raw": true, "qcow2": true, "iso": true, "ami": true, "aki": true, "ari": true}

// Judge reads an image of size bytes that its owner calls format. It answers a fault of kind
// Invalid when the bytes are something else, or something that must not be opened.
func Judge(format string, r io.ReaderAt, size int64) (Verdict, error) {
	marks, err := Marks(r, size)
	if err != nil {
		return Verdict{}, err
	}
	switch format {
	case "qcow2":
		return judgeQcow2(marks, r, size)
	case "iso":
		return judgeISO(marks, size)
	}
	own := map[string]string{"vhd": "vhd", "vhdx": "vhdx", "vmdk": "vmdk", "vdi": "vdi"}[format]
	for _, mark := range marks {
		switch {
		case mark == own || mark == "partitions":
		case mark == "iso" && (slices.Contains(marks, "partitions") || !opened[format]):
			// A hybrid is made to be both, a disc and a disk; read as raw bytes it is harmless.
		default:
			return Verdict{}, mismatch(format, mark)
		}
	}
	if !opened[format] {
		return Verdict{}, nil
	}
	return Verdict{VirtualBytes: size, Usable: size > 0}, nil
}

func judgeQcow2(marks []string, r io.ReaderAt, size int64) (Verdict, error) {
	if !slices.Contains(marks, "qcow2") {
		return unmarked("qcow2", marks, size)
	}
	for _, mark := range marks {
		if mark != "qcow2" && mark != "partitions" {
			return Verdict{}, ambiguous("qcow2", mark)
		}
	}
	virtual, err := qcow2(r, size)
	if err != nil {
		return Verdict{}, err
	}
	return Verdict{VirtualBytes: virtual, Usable: true}, nil
}

func judgeISO(marks []string, size int64) (Verdict, error) {
	if !slices.Contains(marks, "iso") {
		return unmarked("iso", marks, size)
	}
	for _, mark := range marks {
		if mark != "iso" && mark != "partitions" {
			return Verdict{}, ambiguous("iso", mark)
		}
	}
	return Verdict{VirtualBytes: size, Usable: true}, nil
}

// unmarked judges bytes that lack the mark of their format.
func unmarked(format string, marks []string, size int64) (Verdict, error) {
	for _, mark := range marks {
		if mark != "partitions" {
			return Verdict{}, mismatch(format, mark)
		}
	}
	if size < Placeholder {
		return Verdict{}, nil
	}
	return Verdict{}, refuse("The image is said to be %s, and its content is not.", format)
}

func mismatch(format, found string) error {
	return refuse("The image is said to be %s, and its content looks like %s.", format, found)
}

func ambiguous(format, also string) error {
	return refuse("The content of the image is ambiguous: it is %s and looks like %s as well.", format, also)
}

func refuse(why string, args ...any) error {
	return fault.Errorf(fault.Invalid, why, args...).WithCode("image-content")
}

// A mark is where a format shows itself.
type mark struct {
	format string
	offset int64
	bytes  string
}

// heads are found near the beginning of a file.
var heads = []mark{
	{"qcow2", 0, "QFI\xfb"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vhdx", 0, "vhdxfile"},
	{"vhd", 0, "conectix"},
	{"luks", 0, "LUKS\xba\xbe"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"bochs", 0, "Bochs Virtual HD Image"},
	{"cloop", 0, "#!/bin/sh\n#V2.0 Format\nmodprobe cloop"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"luks", 0x4000, "SKUL\xba\xbe"}, // LUKS2 keeps a second header at one of several places
	{"iso", 0x8001, "CD001"},
	{"iso", 0x8801, "CD001"},
	{"iso", 0x8001, "BEA01"},
}

const headBytes = 0x9000

// Marks lists the formats whose marks a file carries, "partitions" (a DOS or GUID
// partition table) among them. Several may be there.
func Marks(r io.ReaderAt, size int64) ([]string, error) {
	head := make([]byte, min(size, headBytes))
	if err := readAt(r, head, 0); err != nil {
		return nil, err
	}
	tail := make([]byte, min(size, 512))
	if err := readAt(r, tail, size-int64(len(tail))); err != nil {
		return nil, err
	}
	var found []string
	add := func(format string) {
		if !slices.Contains(found, format) {
			found = append(found, format)
		}
	}
	for _, m := range heads {
		if int64(len(head)) >= m.offset+int64(len(m.bytes)) && string(head[m.offset:m.offset+int64(len(m.bytes))]) == m.bytes {
			add(m.format)
		}
	}
	if vmdkText(head) {
		add("vmdk")
	}
	if bytes.HasPrefix(tail, []byte("conectix")) || size >= 511 && bytes.HasPrefix(tail[max(0, len(tail)-511):], []byte("conectix")) {
		add("vhd") // Virtual PC 2004 wrote footers one byte short
	}
	if bytes.HasPrefix(tail, []byte("koly")) {
		add("dmg")
	}
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xaa || len(head) >= 520 && string(head[512:520]) == "EFI PART" {
		add("partitions")
	}
	return found, nil
}

// vmdkText finds a VMDK descriptor that hides behind comments, blank lines or odd case:
// readers skip these before they look at the first setting.
func vmdkText(head []byte) bool {
	text := head[:min(len(head), 4096)]
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			key, value, ok := strings.Cut(strings.ToLower(string(line)), "=")
			value = strings.TrimSpace(value)
			return ok && strings.TrimSpace(key) == "version" && len(value) == 1 && value >= "1" && value <= "4"
		}
		if strings.HasPrefix(strings.ToLower(string(line)), "# disk descriptorfile") {
			return true
		}
		text = rest
	}
	return false
}

// readAt fills b from off. A file that is shorter than its size is our own trouble, not the owner's.
func readAt(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %d of an image: %w", len(b), off, err)
}
