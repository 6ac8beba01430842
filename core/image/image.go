// Package image keeps what servers are made from: disk images, kernels and discs, who may
// see and use them, and how their bytes come in and go out. Where the bytes lie is a
// Blobs' business; what they mean is judged by package inspect before anything opens them.
package image

import (
	"context"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// An Image is a file that servers can be made from, and what is known about it.
type Image struct {
	resource.Meta
	Spec

	// Set in one that another domain made as one of a server's backups.
	Backup *Backup `json:",omitempty" since:"2,soft"`

	Stray   bool     // an admin gave it to an owner that was no project of this cloud
	Members []Member // the projects that a Shared image is offered to

	// Found out as the bytes come in.
	State        State
	Trouble      string      // why the last attempt to bring bytes in failed, for the owner; "" if it did not
	BlobID       resource.ID // which blob holds the bytes; zero while there are none
	Bytes        int64
	VirtualBytes int64 // of the disk that a guest will see; 0: not known
	Usable       bool  // the bytes were proven to be of their format, and it is one that is opened
	MD5, SHA512  string
	Imported     bool        // Import or Copy was asked for
	TransferID   resource.ID // of the blob that is being written; zero if none is
}

// A Spec is what an image's owner asked for, and may change.
type Spec struct {
	Format       string // of the bytes: one of Formats, or "" while the owner has not said
	Container    string // what is wrapped around them: one of Containers, or ""
	Visibility   Visibility
	Protected    bool // it cannot be deleted
	Hidden       bool // left out of lists that do not ask for it
	MinDiskGiB   int
	MinMemoryMiB int
	Tags         []string // in order, each once
	Boot         Boot
	Properties   map[string]string // what a dialect or the owner keeps here; they mean nothing to us
}

// Boot is how a guest made from the image likes its machine. Empty fields leave the choice to the driver.
type Boot struct {
	KernelID resource.ID // an image to boot as the kernel, and the disk as its root
	InitrdID resource.ID
	Cmdline  string
	Firmware string // "bios" or "uefi"
	Machine  string // "pc" or "q35"
	DiskBus  string // "virtio", "scsi" or "ide"
	NICModel string // "virtio" or "e1000"
}

// Formats that an image may have. Only raw, qcow2, iso, ami, aki and ari are ever opened.
var Formats = []string{"ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"}

// Containers that may be wrapped around an image's bytes. Only of bare and the three of
// EC2's first days do we look inside.
var Containers = []string{"ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"}

var bare = map[string]bool{"bare": true, "ami": true, "ari": true, "aki": true}

// Visibility is who may see and use an image besides its owner.
type Visibility string

const (
	Private   Visibility = "private"
	Shared    Visibility = "shared"    // the projects it was offered to
	Community Visibility = "community" // everybody who knows it; it is in nobody's list unasked
	Public    Visibility = "public"    // everybody
)

// A State says how far an image's bytes are.
type State string

const (
	Queued      State = "queued"      // no bytes yet
	Receiving   State = "receiving"   // bytes are coming in; once complete it is Active
	Staging     State = "staging"     // bytes are coming in; once complete it is Staged
	Staged      State = "staged"      // the bytes are here and wait for Import
	Importing   State = "importing"   // the staged bytes are being judged
	Active      State = "active"      // ready for use
	Deactivated State = "deactivated" // not to be used or given out until reactivated
	Deleting    State = "deleting"    // gone for everybody; its bytes are being removed
)

// moves are the states that an image may go to from each.
var moves = map[State][]State{
	Queued:      {Receiving, Staging, Deleting},
	Receiving:   {Active, Queued, Deleting},
	Staging:     {Staged, Queued, Deleting},
	Staged:      {Importing, Deleting},
	Importing:   {Active, Queued, Deleting},
	Active:      {Deactivated, Deleting},
	Deactivated: {Active, Deleting},
}

// move changes the state, or says why it cannot.
func (i *Image) move(to State) error {
	if !slices.Contains(moves[i.State], to) {
		return fault.Errorf(fault.Conflict, "Image %s is %s; that cannot be done to it now.", i.ID, i.State).WithCode("image-state")
	}
	i.State = to
	return nil
}

// Opened is the format that a driver is to open the bytes as: "qcow2" or "raw".
func (i *Image) Opened() string {
	if i.Format == "qcow2" {
		return "qcow2"
	}
	return "raw"
}

var images = state.NewTable[Image]("image",
	state.Index("created", func(i *Image) state.Key { return i.listed(i.CreatedAt) }),
	state.Index("owner", func(i *Image) state.Key { return i.listed(i.ProjectID, i.CreatedAt) }),
	state.Index("visibility", func(i *Image) state.Key { return i.listed(i.Visibility, i.CreatedAt) }),
	state.Index("name", func(i *Image) state.Key { return i.listed(i.Name, i.CreatedAt) }),
	state.Index("tail", func(i *Image) state.Key { return state.KeyOf(i.ID.Tail()) }),
	state.Index("backup", func(i *Image) state.Key {
		if i.Backup == nil {
			return ""
		}
		return i.listed(i.Backup.ServerID, i.Backup.Type, i.CreatedAt)
	}),
	state.MultiIndex("member", func(i *Image) []state.Key {
		if i.Visibility != Shared {
			return nil
		}
		keys := make([]state.Key, len(i.Members))
		for n, m := range i.Members {
			keys[n] = i.listed(m.ProjectID, i.CreatedAt)
		}
		return keys
	}),
	state.MultiIndex("tag", func(i *Image) []state.Key {
		keys := make([]state.Key, len(i.Tags))
		for n, tag := range i.Tags {
			keys[n] = i.listed(tag, i.CreatedAt)
		}
		return keys
	}),
	// What is not settled, for the reconciler.
	state.Index("unsettled", func(i *Image) state.Key {
		switch i.State {
		case Receiving, Staging, Importing, Deleting:
			return state.KeyOf(i.State)
		}
		return ""
	}),
	// How many images a project has, the bytes in them, and how many are coming in.
	state.Tally("use", func(i *Image) (state.Key, state.Amounts) {
		return i.listed(i.ProjectID), state.Amounts{i.Bytes, i.transfers()}
	}),
)

// listed is the key of an image in an index of what can be seen; none for one that is being deleted.
func (i *Image) listed(parts ...any) state.Key {
	if i.State == Deleting {
		return ""
	}
	return state.KeyOf(parts...)
}

func (i *Image) transfers() int64 {
	if i.State == Receiving || i.State == Staging {
		return 1
	}
	return 0
}

// Table gives the native API and the auditor a look at every image.
func Table() *state.Table[Image] { return images }

var _ = identity.Rules(map[string]identity.Rule{
	"image.get":         identity.Reader,
	"image.list":        identity.Reader,
	"image.create":      identity.Member,
	"image.update":      identity.Member,
	"image.delete":      identity.Member,
	"image.upload":      identity.Member,
	"image.download":    identity.Reader,
	"image.publicize":   identity.Admin,
	"image.communitize": identity.Member,
	"image.share":       identity.Member,
	"image.deactivate":  identity.Member,
	"image.give":        identity.Admin,
	"image.copy":        identity.Admin,
	"image.diagnose":    identity.Admin,
})

// ShownTo reports whether an image is there for an actor although it may not be its own.
func (i *Image) ShownTo(a *identity.Actor) bool {
	switch i.Visibility {
	case Public, Community:
		return true
	case Shared:
		return i.member(a.ProjectID) != nil
	}
	return false
}

// find gives an image that the actor may take the action on.
func find(ctx context.Context, tx *state.Tx, id resource.ID, action string) (*Image, error) {
	i, ok := images.Find(tx, id)
	if !ok || i.State == Deleting {
		return nil, missing(id)
	}
	if err := identity.AllowShared(ctx, action, i.Meta, i.ShownTo(identity.ActorOf(ctx))); err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, missing(id)
		}
		return nil, err
	}
	return i, nil
}

func missing(id resource.ID) error { return fault.Missing("Image", id) }

// Lookup gives an image that the actor may make servers from: one that is active, and whose
// bytes are safe to open.
func Lookup(ctx context.Context, tx *state.Tx, id resource.ID) (*Image, error) {
	i, err := find(ctx, tx, id, "image.get")
	if err != nil {
		return nil, err
	}
	switch {
	case i.State != Active:
		return nil, fault.Errorf(fault.Invalid, "Image %s is not active.", id).WithCode("image-not-active")
	case !i.Usable:
		return nil, fault.Errorf(fault.Invalid, "Image %s cannot be used: its content is not a disk of format %s that can be opened.", id, i.Format).WithCode("image-not-usable")
	}
	return i, nil
}
