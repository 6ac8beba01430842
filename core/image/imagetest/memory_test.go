package imagetest

import (
	"testing"

	"github.com/unkai-cloud/unkai/core/image"
)

func TestMemory(t *testing.T) {
	TestBlobs(t, func(*testing.T) func() image.Blobs {
		m := new(Memory)
		return func() image.Blobs { return m }
	})
}
