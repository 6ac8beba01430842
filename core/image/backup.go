package image

import (
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Backup says of which of a server's backups an image is one, and how many of them are kept once it is whole.
type Backup struct {
	ServerID resource.ID
	Type     string // as its owner calls it: "daily", "weekly"
	Keep     int
}

// Whole reports whether an image has all its bytes.
func (i *Image) Whole() bool { return i.State == Active || i.State == Deactivated }

// Rotate takes a project's backups of a server away, of one type, but for the newest that are kept. What is not whole does not count
// and stays, and so does what its owner protects.
func Rotate(tx *state.Tx, project resource.ID, b Backup) error {
	var older []resource.ID
	whole := 0
	for i := range images.Peek(tx, "backup", state.Range{Prefix: state.KeyOf(b.ServerID, b.Type), Reverse: true}) {
		if i.ProjectID != project || !i.Whole() {
			continue
		}
		if whole++; whole > b.Keep {
			older = append(older, i.ID)
		}
	}
	for _, id := range older {
		if err := Drop(tx, id, "A newer backup took its place."); err != nil {
			return err
		}
	}
	return nil
}
