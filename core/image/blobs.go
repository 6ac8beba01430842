package image

import (
	"context"
	"io"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Blobs keeps files of bytes. A blob is written once and never changed. Package imagetest
// holds the contract that every Blobs passes.
type Blobs interface {
	// Create begins a blob. expect is how many bytes will come, -1 if nobody knows. A fault
	// of kind Exhausted if there is no room for them.
	Create(ctx context.Context, id resource.ID, expect int64) (Writer, error)
	// Open gives a committed blob; fault.NotFound if there is none. It stays readable until it is
	// closed, whatever is removed meanwhile.
	Open(ctx context.Context, id resource.ID) (Blob, error)
	// Remove lets a blob go; no error if there is none.
	Remove(ctx context.Context, id resource.ID) error
	// Present lists every blob that was committed.
	Present(ctx context.Context) ([]resource.ID, error)
}

// Spread is Blobs of several controllers, of which each gets the others' by and by.
type Spread interface {
	// Elsewhere reports whether another controller that can be reached has a blob.
	Elsewhere(ctx context.Context, id resource.ID) bool
}

// A Writer is a blob in the making. It is no blob before Commit: a crash leaves nothing of it.
type Writer interface {
	io.Writer
	io.ReaderAt // of what was written so far
	// Commit makes the blob durable and only then present.
	Commit() error
	// Close lets the blob go unless it was committed.
	Close() error
}

// A Blob is one that was opened for reading. One that is an *os.File goes to a socket
// without passing through us.
type Blob interface {
	io.ReadSeekCloser
	io.ReaderAt
}
