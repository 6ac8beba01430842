package inspect

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/fault"
)

// An edit changes one thing of a good image.
type edit func(b []byte) []byte

func put32(at int, v uint32) edit {
	return func(b []byte) []byte { binary.BigEndian.PutUint32(b[at:], v); return b }
}

func put64(at int, v uint64) edit {
	return func(b []byte) []byte { binary.BigEndian.PutUint64(b[at:], v); return b }
}

func putText(at int, s string) edit {
	return func(b []byte) []byte {
		if len(b) < at+len(s) {
			b = append(b, make([]byte, at+len(s)-len(b))...)
		}
		copy(b[at:], s)
		return b
	}
}

func cut(n int) edit { return func(b []byte) []byte { return b[:n] } }

// extension puts a header extension first in the list.
func extension(kind uint32, data []byte) edit {
	return func(b []byte) []byte {
		at := int(binary.BigEndian.Uint32(b[100:]))
		binary.BigEndian.PutUint32(b[at:], kind)
		binary.BigEndian.PutUint32(b[at+4:], uint32(len(data)))
		copy(b[at+8:], data)
		return b
	}
}

const cluster = 64 << 10

// good is an empty version 3 image of 1 GiB: header, reference counts, L1 table, and an
// L2 table that the first L1 entry names.
func good(edits ...edit) []byte {
	b := make([]byte, 5*cluster)
	copy(b, "QFI\xfb")
	for _, e := range append([]edit{
		put32(4, 3), put32(20, 16), put64(24, 1<<30), put32(36, 2), put64(40, 3*cluster),
		put64(48, cluster), put32(56, 1), put32(96, 4), put32(100, 112),
		put64(cluster, 2*cluster), put64(3*cluster, 4*cluster|1<<63),
	}, edits...) {
		b = e(b)
	}
	return b
}

func version2(edits ...edit) []byte {
	return good(append([]edit{put32(4, 2), func(b []byte) []byte { clear(b[72:112]); return b }}, edits...)...)
}

// snapshots gives an image one internal snapshot whose L1 table is the image's own.
func snapshots(l1 uint64, entries uint32) edit {
	return func(b []byte) []byte {
		b = append(b, make([]byte, cluster)...)
		at := 5 * cluster
		binary.BigEndian.PutUint64(b[at:], l1)
		binary.BigEndian.PutUint32(b[at+8:], entries)
		binary.BigEndian.PutUint16(b[at+12:], 1)
		binary.BigEndian.PutUint16(b[at+14:], 4)
		binary.BigEndian.PutUint32(b[60:], 1)
		binary.BigEndian.PutUint64(b[64:], uint64(at))
		return b
	}
}

func zeros(n int, edits ...edit) []byte {
	b := make([]byte, n)
	for _, e := range edits {
		b = e(b)
	}
	return b
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return b
}

type judgeTest struct {
	format  string
	bytes   []byte
	refused string // a part of the fault's message; "": accepted
	usable  bool
	virtual int64
}

const mib = 1 << 20

var judgeTests = map[string]judgeTest{
	"an empty disk":                        {"qcow2", good(), "", true, 1 << 30},
	"a version 2 disk":                     {"qcow2", version2(), "", true, 1 << 30},
	"zstd, said in both places":            {"qcow2", good(put64(72, 8), putText(104, "\x01")), "", true, 1 << 30},
	"extended L2 entries":                  {"qcow2", good(put64(72, 16), put32(36, 4)), "", true, 1 << 30},
	"a snapshot":                           {"qcow2", good(snapshots(3*cluster, 2)), "", true, 1 << 30},
	"an unknown header extension":          {"qcow2", good(extension(0x12345678, []byte("x"))), "", true, 1 << 30},
	"a raw disk":                           {"raw", noise(mib), "", true, mib},
	"a partitioned raw disk":               {"raw", zeros(mib, putText(510, "\x55\xaa"), putText(512, "EFI PART")), "", true, mib},
	"a hybrid disc as a raw disk":          {"raw", zeros(mib, putText(510, "\x55\xaa"), putText(0x8001, "CD001")), "", true, mib},
	"a hybrid disc as a disc":              {"iso", zeros(mib, putText(510, "\x55\xaa"), putText(0x8001, "CD001")), "", true, mib},
	"a kernel":                             {"aki", noise(5000), "", true, 5000},
	"an empty raw image":                   {"raw", nil, "", false, 0},
	"a placeholder said to be qcow2":       {"qcow2", noise(4096), "", false, 0},
	"a placeholder said to be a disc":      {"iso", noise(4096), "", false, 0},
	"a format that is never opened":        {"vhd", noise(mib), "", false, 0},
	"a VMDK as VMDK":                       {"vmdk", zeros(mib, putText(0, "KDMV")), "", false, 0},
	"noise said to be qcow2":               {"qcow2", noise(Placeholder), "is not", false, 0},
	"zeros said to be a disc":              {"iso", zeros(mib), "is not", false, 0},
	"qcow2 said to be raw":                 {"raw", good(), "looks like qcow2", false, 0},
	"qcow2 said to be a kernel":            {"aki", good(), "looks like qcow2", false, 0},
	"qcow2 said to be VHD":                 {"vhd", good(), "looks like qcow2", false, 0},
	"a tiny qcow2 said to be raw":          {"raw", []byte("QFI\xfb"), "looks like qcow2", false, 0},
	"qcow2 said to be a disc":              {"iso", good(), "looks like qcow2", false, 0},
	"a disc said to be raw":                {"raw", zeros(mib, putText(0x8001, "CD001")), "looks like iso", false, 0},
	"a disc said to be qcow2":              {"qcow2", zeros(mib, putText(0x8001, "CD001")), "looks like iso", false, 0},
	"VMDK said to be raw":                  {"raw", zeros(mib, putText(0, "KDMV")), "looks like vmdk", false, 0},
	"a VMDK descriptor said to be raw":     {"raw", []byte("# Disk DescriptorFile\nversion=1\n"), "looks like vmdk", false, 0},
	"a VMDK descriptor behind comments":    {"raw", []byte("# hello\n\n  # x\n version = 3\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/passwd\" 0\n"), "looks like vmdk", false, 0},
	"VHDX said to be raw":                  {"raw", zeros(mib, putText(0, "vhdxfile")), "looks like vhdx", false, 0},
	"VDI said to be raw":                   {"raw", zeros(mib, putText(0x40, "\x7f\x10\xda\xbe")), "looks like vdi", false, 0},
	"a VHD footer said to be raw":          {"raw", zeros(mib, putText(mib-512, "conectix")), "looks like vhd", false, 0},
	"a short VHD footer said to be raw":    {"raw", zeros(mib, putText(mib-511, "conectix")), "looks like vhd", false, 0},
	"LUKS said to be raw":                  {"raw", zeros(mib, putText(0, "LUKS\xba\xbe")), "looks like luks", false, 0},
	"QED said to be raw":                   {"raw", zeros(mib, putText(0, "QED\x00")), "looks like qed", false, 0},
	"a disk that is a VHD, too":            {"qcow2", good(putText(5*cluster-512, "conectix")), "ambiguous", false, 0},
	"a disk that is a disc, too":           {"qcow2", good(putText(0x8001, "CD001")), "ambiguous", false, 0},
	"a disc that is a VMDK, too":           {"iso", zeros(mib, putText(0, "KDMV"), putText(0x8001, "CD001")), "ambiguous", false, 0},
	"version 1":                            {"qcow2", good(put32(4, 1)), "version 1", false, 0},
	"version 4":                            {"qcow2", good(put32(4, 4)), "version 4", false, 0},
	"a backing file":                       {"qcow2", good(put64(8, 512), put32(16, 11), putText(512, "/etc/shadow")), "backing file", false, 0},
	"a backing file in version 2":          {"qcow2", version2(put64(8, 512), put32(16, 11)), "backing file", false, 0},
	"a backing file's length alone":        {"qcow2", good(put32(16, 1)), "backing file", false, 0},
	"a backing file's format alone":        {"qcow2", good(extension(extBackingFormat, []byte("raw"))), "backing file", false, 0},
	"an external data file by flag":        {"qcow2", good(put64(72, featureDataFile)), "external", false, 0},
	"an external data file by name":        {"qcow2", good(extension(extDataFile, []byte("/etc/shadow"))), "external", false, 0},
	"an external data file behind another": {"qcow2", good(extension(1, make([]byte, 16)), func(b []byte) []byte { return extension2(b, 24, extDataFile) }), "external", false, 0},
	"AES":                                  {"qcow2", good(put32(32, 1)), "encrypted", false, 0},
	"LUKS inside":                          {"qcow2", good(put32(32, 2)), "encrypted", false, 0},
	"an encryption header":                 {"qcow2", good(extension(extEncryption, make([]byte, 16))), "encrypted", false, 0},
	"marked corrupt":                       {"qcow2", good(put64(72, featureCorrupt)), "corrupt", false, 0},
	"marked dirty":                         {"qcow2", good(put64(72, featureDirty)), "closed cleanly", false, 0},
	"an unknown feature":                   {"qcow2", good(put64(72, 1<<5)), "not known", false, 0},
	"the highest unknown feature":          {"qcow2", good(put64(72, 1<<63)), "not known", false, 0},
	"a compression type without its flag":  {"qcow2", good(putText(104, "\x01")), "compressed", false, 0},
	"an unknown compression type":          {"qcow2", good(put64(72, 8), putText(104, "\x02")), "compressed", false, 0},
	"clusters too small":                   {"qcow2", good(put32(20, 8)), "clusters", false, 0},
	"clusters too large":                   {"qcow2", good(put32(20, 63)), "clusters", false, 0},
	"no size":                              {"qcow2", good(put64(24, 0)), "0 bytes", false, 0},
	"the largest size":                     {"qcow2", good(put64(24, 1<<64-1)), "bytes", false, 0},
	"a size beyond its L1 table":           {"qcow2", good(put64(24, 1<<40)), "L1 table", false, 0},
	"an L1 table too large":                {"qcow2", good(put32(36, 1<<31)), "L1 table", false, 0},
	"an L1 table at the header":            {"qcow2", good(put64(40, 0)), "L1 table", false, 0},
	"an L1 table off its boundary":         {"qcow2", good(put64(40, cluster+8)), "L1 table", false, 0},
	"an L1 table past the end":             {"qcow2", good(put64(40, 5*cluster)), "L1 table", false, 0},
	"an L1 table whose end wraps around":   {"qcow2", good(put64(40, 1<<64-cluster)), "L1 table", false, 0},
	"an L2 table past the end":             {"qcow2", good(put64(3*cluster+8, 9*cluster)), "cut short", false, 0},
	"a file cut short":                     {"qcow2", good(cut(4 * cluster)), "cut short", false, 0},
	"a header cut short":                   {"qcow2", good(cut(80)), "cut short", false, 0},
	"a version 2 header cut short":         {"qcow2", version2(cut(71)), "cut short", false, 0},
	"a header of no length":                {"qcow2", good(put32(100, 0)), "header", false, 0},
	"a header longer than a cluster":       {"qcow2", good(put32(100, cluster+8)), "header", false, 0},
	"an extension longer than its cluster": {"qcow2", good(func(b []byte) []byte { binary.BigEndian.PutUint32(b[116:], 1<<31); b[112] = 1; return b }), "extension", false, 0},
	"reference counts too wide":            {"qcow2", good(put32(96, 7)), "reference", false, 0},
	"no reference counts":                  {"qcow2", good(put32(56, 0)), "reference", false, 0},
	"reference counts past the end":        {"qcow2", good(put64(48, 1<<40)), "reference", false, 0},
	"too many snapshots":                   {"qcow2", good(snapshots(3*cluster, 2), put32(60, 1<<20)), "snapshots", false, 0},
	"more snapshots than there are":        {"qcow2", good(snapshots(3*cluster, 2), put32(60, 60000)), "snapshots", false, 0},
	"a snapshot table past the end":        {"qcow2", good(put32(60, 1), put64(64, 1<<50)), "snapshots", false, 0},
	"a snapshot's L1 table past the end":   {"qcow2", good(snapshots(1<<50, 2)), "snapshots", false, 0},
	"a snapshot's L1 table too large":      {"qcow2", good(snapshots(3*cluster, 1<<30)), "snapshots", false, 0},
	"bitmaps past the end":                 {"qcow2", good(extension(extBitmaps, append(make([]byte, 16), 0, 1, 0, 0, 0, 0, 0, 0))), "bitmaps", false, 0},
	"a list of bitmaps cut short":          {"qcow2", good(extension(extBitmaps, make([]byte, 8))), "bitmaps", false, 0},
}

// extension2 puts an extension so many bytes after the first one.
func extension2(b []byte, after int, kind uint32) []byte {
	at := int(binary.BigEndian.Uint32(b[100:])) + after
	binary.BigEndian.PutUint32(b[at:], kind)
	binary.BigEndian.PutUint32(b[at+4:], 8)
	return b
}

func TestJudge(t *testing.T) {
	for name, c := range judgeTests {
		t.Run(name, func(t *testing.T) {
			got, err := Judge(c.format, bytes.NewReader(c.bytes), int64(len(c.bytes)))
			if c.refused != "" {
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %+v, %v; want a fault with %q", got, err, c.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := (Verdict{c.virtual, c.usable}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

// TestJudgeQemu holds the parser against what QEMU itself writes.
func TestJudgeQemu(t *testing.T) {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skip("qemu-img is not installed")
	}
	dir := t.TempDir()
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
		}
	}
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, noise(mib), 0o600); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, c := range map[string]struct {
		args    []string
		refused string
	}{
		"default":   {[]string{"convert", "-O", "qcow2", raw, at("default")}, ""},
		"v2":        {[]string{"convert", "-O", "qcow2", "-o", "compat=0.10", raw, at("v2")}, ""},
		"zstd":      {[]string{"convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", raw, at("zstd")}, ""},
		"small":     {[]string{"convert", "-O", "qcow2", "-o", "cluster_size=512", raw, at("small")}, ""},
		"extended":  {[]string{"convert", "-O", "qcow2", "-o", "extended_l2=on", raw, at("extended")}, ""},
		"huge":      {[]string{"create", "-f", "qcow2", at("huge"), "60T"}, ""},
		"backed":    {[]string{"create", "-f", "qcow2", "-b", raw, "-F", "raw", at("backed")}, "backing"},
		"data-file": {[]string{"create", "-f", "qcow2", "-o", "data_file=" + at("data"), at("data-file"), "1M"}, "external"},
		"luks":      {[]string{"create", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", at("luks"), "1M"}, "encrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			run(c.args...)
			f, err := os.Open(at(name))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Judge("qcow2", f, info.Size())
			if c.refused != "" {
				if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("got %v, want a fault with %q", err, c.refused)
				}
				return
			}
			want := int64(mib)
			if name == "huge" {
				want = 60 << 40
			}
			if err != nil || got != (Verdict{want, true}) {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
	t.Run("snapshot", func(t *testing.T) {
		run("convert", "-O", "qcow2", raw, at("snapshot"))
		run("snapshot", "-c", "s1", at("snapshot"))
		f, err := os.Open(at("snapshot"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Judge("qcow2", f, info.Size()); err != nil || !got.Usable {
			t.Errorf("got %+v, %v", got, err)
		}
	})
	for _, format := range []string{"vmdk", "vdi", "vhdx", "vpc", "qed", "parallels"} {
		t.Run(format+" said to be raw", func(t *testing.T) {
			run("convert", "-O", format, raw, at(format))
			b, err := os.ReadFile(at(format))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Judge("raw", bytes.NewReader(b), int64(len(b))); !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzJudge(f *testing.F) {
	for _, c := range judgeTests {
		if len(c.bytes) <= 6*cluster {
			f.Add(c.format, c.bytes)
		}
	}
	f.Fuzz(func(t *testing.T, format string, b []byte) {
		got, err := Judge(format, bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("not a fault of the owner's: %v", err)
			}
			return
		}
		if got.VirtualBytes < 0 || got.VirtualBytes > maxVirtualBytes {
			t.Fatalf("virtual size %d", got.VirtualBytes)
		}
		if got.Usable && format == "raw" && bytes.HasPrefix(b, []byte("QFI\xfb")) {
			t.Fatal("qcow2 passed as raw")
		}
		if got.Usable && format == "qcow2" && (len(b) < 72 || binary.BigEndian.Uint64(b[8:]) != 0) {
			t.Fatal("a backing file passed")
		}
	})
}
