// Package qcow2 writes empty qcow2 images, which is all that making a guest's
// disk takes, and reads how large one is. Everything else is QEMU's business;
// whether a user's image is safe to open is asked before, elsewhere.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// The numbers are from QEMU's docs/interop/qcow2.txt.
const (
	magic         = 0x514649fb // "QFI\xfb"
	formatBacking = 0xe2792aca // header extension: the backing file's format
	headerBytes   = 104        // version 3 without the compression byte
	clusterBits   = 16
	clusterBytes  = 1 << clusterBits
	refcountOrder = 4 // 16-bit reference counts

	maxNameBytes = 1023
	// One cluster of the first-level table maps 4 TiB, and one refcount block
	// counts 32,768 clusters: the metadata of the largest image needs only one.
	maxBytes = 1 << 50
)

// Write makes path an empty image of size bytes that reads through to backing,
// a file in backingFormat ("raw" or "qcow2"), or reads as zeros if backing is "".
// The file must not be there yet.
func Write(path string, size int64, backing, backingFormat string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = errors.Join(Fill(f, size, backing, backingFormat), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Fill makes the same of an empty file that is open.
func Fill(f *os.File, size int64, backing, backingFormat string) error {
	image, err := layOut(size, backing, backingFormat)
	if err != nil {
		return err
	}
	if _, err := f.Write(image); err != nil {
		return err
	}
	return f.Sync()
}

// layOut builds the file: the header, the table of refcount blocks, the one
// refcount block, and the first-level table, which holds nothing yet.
func layOut(size int64, backing, backingFormat string) ([]byte, error) {
	if size <= 0 || size > maxBytes || size%512 != 0 {
		return nil, fmt.Errorf("qcow2: impossible size %d", size)
	}
	if len(backing) > maxNameBytes {
		return nil, fmt.Errorf("qcow2: name of the backing file has %d bytes, more than %d", len(backing), maxNameBytes)
	}
	if backing != "" && backingFormat != "raw" && backingFormat != "qcow2" {
		return nil, fmt.Errorf("qcow2: unknown backing format %q", backingFormat)
	}
	const mappedByL1Entry = clusterBytes / 8 * clusterBytes
	l1Entries := (size + mappedByL1Entry - 1) / mappedByL1Entry
	l1Clusters := (l1Entries*8 + clusterBytes - 1) / clusterBytes
	const refcountTable, refcountBlock, l1Table = 1 * clusterBytes, 2 * clusterBytes, 3 * clusterBytes

	image := make([]byte, l1Table+l1Clusters*clusterBytes)
	be := binary.BigEndian
	be.PutUint32(image[0:], magic)
	be.PutUint32(image[4:], 3) // version
	be.PutUint32(image[20:], clusterBits)
	be.PutUint64(image[24:], uint64(size))
	be.PutUint32(image[36:], uint32(l1Entries))
	be.PutUint64(image[40:], l1Table)
	be.PutUint64(image[48:], refcountTable)
	be.PutUint32(image[56:], 1) // clusters of the refcount table
	be.PutUint32(image[96:], refcountOrder)
	be.PutUint32(image[100:], headerBytes)
	if backing != "" {
		at := headerBytes
		be.PutUint32(image[at:], formatBacking)
		be.PutUint32(image[at+4:], uint32(len(backingFormat)))
		copy(image[at+8:], backingFormat)
		at += 8 + (len(backingFormat)+7)&^7 // extensions are padded to 8 bytes
		at += 8                             // and end with one of type 0
		be.PutUint64(image[8:], uint64(at))
		be.PutUint32(image[16:], uint32(len(backing)))
		copy(image[at:], backing)
	}
	be.PutUint64(image[refcountTable:], refcountBlock)
	for cluster := range len(image) / clusterBytes {
		be.PutUint16(image[refcountBlock+2*cluster:], 1)
	}
	return image, nil
}

// ErrFormat is what Size answers to a file that is no qcow2 image.
var ErrFormat = errors.New("qcow2: not a qcow2 image")

// Size reads how many bytes the disk has that the image holds.
func Size(r io.ReaderAt) (int64, error) {
	var header [32]byte
	if _, err := r.ReadAt(header[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return 0, ErrFormat
		}
		return 0, err
	}
	version := binary.BigEndian.Uint32(header[4:])
	size := binary.BigEndian.Uint64(header[24:])
	if binary.BigEndian.Uint32(header[0:]) != magic || version < 2 || version > 3 || size > 1<<62 {
		return 0, ErrFormat
	}
	return int64(size), nil
}
