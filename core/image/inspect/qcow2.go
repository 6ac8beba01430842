package inspect

import (
	"encoding/binary"
	"io"
)

// Limits of qcow2 (QEMU's docs/interop/qcow2.txt; where it leaves a bound open, the one that
// QEMU itself refuses beyond).
const (
	minClusterBits    = 9
	maxClusterBits    = 21
	maxL1Bytes        = 32 << 20
	maxRefTableBytes  = 8 << 20
	maxSnapshots      = 65536
	maxSnapshotsBytes = 64 << 20
	maxSnapshotExtra  = 1024
	maxBitmaps        = 65535
)

// Incompatible features of version 3.
const (
	featureDirty       = 1 << 0
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3
	featureExtendedL2  = 1 << 4
)

// Header extensions.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extEncryption    = 0x0537be77
	extDataFile      = 0x44415441
	extBitmaps       = 0x23852875
)

// qcow2Header is what the first cluster says.
type qcow2Header struct {
	version       uint32
	backingOffset uint64
	backingSize   uint32
	clusterBits   uint32
	size          uint64
	crypt         uint32
	l1Entries     uint32
	l1Offset      uint64
	refOffset     uint64
	refClusters   uint32
	snapshots     uint32
	snapOffset    uint64

	// Version 3.
	incompatible uint64
	refOrder     uint32
	length       uint32
	compression  byte
}

// qcow2 checks an image's metadata and gives the size of the disk in it.
func qcow2(r io.ReaderAt, fileBytes int64) (int64, error) {
	raw := make([]byte, min(fileBytes, 112))
	if err := readAt(r, raw, 0); err != nil {
		return 0, err
	}
	h, err := parseQcow2(raw)
	if err != nil {
		return 0, err
	}
	f := &qcow2File{h, r, uint64(fileBytes), 1 << h.clusterBits}
	for _, check := range []func() error{f.features, f.extensions, f.tables, f.l1, f.snapshotTable} {
		if err := check(); err != nil {
			return 0, err
		}
	}
	return int64(h.size), nil
}

// parseQcow2 reads the header's fields, and refuses what no image may have.
func parseQcow2(b []byte) (*qcow2Header, error) {
	be := binary.BigEndian
	if len(b) < 72 {
		return nil, refuse("The qcow2 header is cut short.")
	}
	h := &qcow2Header{
		version: be.Uint32(b[4:]), backingOffset: be.Uint64(b[8:]), backingSize: be.Uint32(b[16:]),
		clusterBits: be.Uint32(b[20:]), size: be.Uint64(b[24:]), crypt: be.Uint32(b[32:]),
		l1Entries: be.Uint32(b[36:]), l1Offset: be.Uint64(b[40:]), refOffset: be.Uint64(b[48:]),
		refClusters: be.Uint32(b[56:]), snapshots: be.Uint32(b[60:]), snapOffset: be.Uint64(b[64:]),
		refOrder: 4, length: 72,
	}
	switch {
	case h.version != 2 && h.version != 3:
		return nil, refuse("The image is qcow version %d; versions 2 and 3 are accepted.", h.version)
	case h.backingOffset != 0 || h.backingSize != 0:
		return nil, refuse("The qcow2 image has a backing file. Flatten it first (qemu-img convert).")
	case h.crypt != 0:
		return nil, refuse("The qcow2 image is encrypted.")
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return nil, refuse("The qcow2 image has clusters of 2^%d bytes; 2^%d to 2^%d are accepted.", h.clusterBits, minClusterBits, maxClusterBits)
	case h.size == 0 || h.size > maxVirtualBytes:
		return nil, refuse("The qcow2 image holds a disk of %d bytes; 1 to %d are accepted.", h.size, uint64(maxVirtualBytes))
	}
	if h.version == 2 {
		return h, nil
	}
	if len(b) < 104 {
		return nil, refuse("The qcow2 header is cut short.")
	}
	h.incompatible, h.refOrder, h.length = be.Uint64(b[72:]), be.Uint32(b[96:]), be.Uint32(b[100:])
	switch {
	case h.length < 104 || h.length%8 != 0 || uint64(h.length) > 1<<h.clusterBits:
		return nil, refuse("The qcow2 header says that it is %d bytes long.", h.length)
	case h.refOrder > 6:
		return nil, refuse("The qcow2 image has reference counts of 2^%d bits.", h.refOrder)
	}
	if h.length >= 112 {
		if len(b) < 112 {
			return nil, refuse("The qcow2 header is cut short.")
		}
		h.compression = b[104]
	}
	return h, nil
}

// A qcow2File is an image whose header was read.
type qcow2File struct {
	*qcow2Header
	r       io.ReaderAt
	bytes   uint64
	cluster uint64
}

func (f *qcow2File) features() error {
	in := f.incompatible
	switch {
	case in&featureDataFile != 0:
		return refuse("The qcow2 image keeps its data in an external file.")
	case in&featureCorrupt != 0:
		return refuse("The qcow2 image is marked as corrupt. Repair it first (qemu-img check -r all).")
	case in&featureDirty != 0:
		return refuse("The qcow2 image was not closed cleanly. Repair it first (qemu-img check -r all).")
	case in&^(featureCompression|featureExtendedL2) != 0:
		return refuse("The qcow2 image needs features that are not known here (%#x).", in)
	case in&featureCompression != 0 && f.compression != 1 || in&featureCompression == 0 && f.compression != 0:
		return refuse("The qcow2 image is compressed in a way that is not known here.")
	case in&featureExtendedL2 != 0 && f.clusterBits < 14:
		return refuse("The qcow2 image has extended tables, and clusters too small for them.")
	}
	return nil
}

// extensions walks the list that follows the header, which ends within the first cluster.
func (f *qcow2File) extensions() error {
	end := min(f.cluster, f.bytes)
	at := uint64(f.length)
	for at+8 <= end {
		var b [8]byte
		if err := readAt(f.r, b[:], int64(at)); err != nil {
			return err
		}
		kind, length := binary.BigEndian.Uint32(b[:]), uint64(binary.BigEndian.Uint32(b[4:]))
		at += 8
		if kind == extEnd {
			return nil
		}
		if length > end-at {
			return refuse("A header extension of the qcow2 image is longer than its cluster.")
		}
		switch kind {
		case extBackingFormat:
			return refuse("The qcow2 image names the format of a backing file.")
		case extDataFile:
			return refuse("The qcow2 image names an external data file.")
		case extEncryption:
			return refuse("The qcow2 image is encrypted.")
		case extBitmaps:
			if err := f.bitmaps(at, length); err != nil {
				return err
			}
		}
		at += (length + 7) &^ 7
	}
	return nil
}

func (f *qcow2File) bitmaps(at, length uint64) error {
	if length < 24 {
		return refuse("The list of bitmaps of the qcow2 image is cut short.")
	}
	var b [24]byte
	if err := readAt(f.r, b[:], int64(at)); err != nil {
		return err
	}
	n, size, offset := binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:])
	if n > maxBitmaps || size > maxBitmaps*1024 || !f.holds(offset, size) {
		return refuse("The bitmaps of the qcow2 image lie outside of it.")
	}
	return nil
}

// holds reports whether a table lies on a cluster's boundary after the header and ends inside of the file.
func (f *qcow2File) holds(offset, size uint64) bool {
	return offset >= f.cluster && offset%f.cluster == 0 && offset <= f.bytes && size <= f.bytes-offset
}

// tables checks where the L1 and reference count tables lie, and that the first is long
// enough for the disk.
func (f *qcow2File) tables() error {
	if need := f.l1Need(f.size); uint64(f.l1Entries) < need || uint64(f.l1Entries)*8 > maxL1Bytes {
		return refuse("The qcow2 image has an L1 table of %d entries; a disk of its size needs %d.", f.l1Entries, need)
	}
	if !f.holds(f.l1Offset, uint64(f.l1Entries)*8) {
		return refuse("The L1 table of the qcow2 image lies outside of it.")
	}
	size := uint64(f.refClusters) * f.cluster
	if size == 0 || size > maxRefTableBytes || f.refOffset < f.cluster || f.refOffset%f.cluster != 0 || f.refOffset >= f.bytes {
		return refuse("The table of reference counts of the qcow2 image lies outside of it.")
	}
	return nil
}

// l1Need is how many L1 entries a disk of some size takes.
func (f *qcow2File) l1Need(size uint64) uint64 {
	entry := uint64(8)
	if f.incompatible&featureExtendedL2 != 0 {
		entry = 16
	}
	covers := f.cluster * (f.cluster / entry)
	return (size + covers - 1) / covers
}

// l1 reads the L1 table: each L2 table that it names begins inside of the file. A file that was cut short
// shows itself here.
func (f *qcow2File) l1() error { return f.l1At(f.l1Offset, uint64(f.l1Entries)) }

func (f *qcow2File) l1At(offset, entries uint64) error {
	const offsetBits = 0x00fffffffffffe00
	b := make([]byte, min(entries*8, 64<<10))
	for left := entries * 8; left > 0; {
		part := b[:min(left, uint64(len(b)))]
		if err := readAt(f.r, part, int64(offset)); err != nil {
			return err
		}
		for i := 0; i < len(part); i += 8 {
			l2 := binary.BigEndian.Uint64(part[i:]) & offsetBits
			if l2 != 0 && (l2%f.cluster != 0 || l2 >= f.bytes) {
				return refuse("A table of the qcow2 image lies outside of it; is the file cut short?")
			}
		}
		offset += uint64(len(part))
		left -= uint64(len(part))
	}
	return nil
}

// snapshotTable walks the list of internal snapshots.
func (f *qcow2File) snapshotTable() error {
	if f.snapshots == 0 {
		return nil
	}
	outside := refuse("The snapshots of the qcow2 image lie outside of it.")
	if f.snapshots > maxSnapshots || !f.holds(f.snapOffset, 40) {
		return outside
	}
	at := f.snapOffset
	for range f.snapshots {
		var b [40]byte
		if at+40 > f.bytes || at-f.snapOffset > maxSnapshotsBytes {
			return outside
		}
		if err := readAt(f.r, b[:], int64(at)); err != nil {
			return err
		}
		be := binary.BigEndian
		offset, entries := be.Uint64(b[:]), uint64(be.Uint32(b[8:]))
		id, name, extra := uint64(be.Uint16(b[12:])), uint64(be.Uint16(b[14:])), uint64(be.Uint32(b[36:]))
		if entries*8 > maxL1Bytes || extra > maxSnapshotExtra || entries > 0 && !f.holds(offset, entries*8) {
			return outside
		}
		if err := f.l1At(offset, entries); err != nil {
			return err
		}
		at = (at + 40 + extra + id + name + 7) &^ 7
		if at > (f.bytes+7)&^7 {
			return outside
		}
	}
	return nil
}
