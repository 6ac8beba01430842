package compute

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
)

// A Guest is what one host is to make real for one server: everything its
// driver has to know, and nothing of how a dialect spells it. It travels to the
// host as JSON, is kept on the host's disk, and is compared field by field with
// the one before, so it holds wishes only, no observations.
type Guest struct {
	ID        resource.ID // the server's own; also the guest's SMBIOS UUID
	ProjectID resource.ID
	Name      string

	VCPUs     int
	MemoryMiB int

	Kernel  *ImageRef // direct kernel boot when set; then Initrd and Cmdline count too
	Initrd  *ImageRef
	Cmdline string
	Machine string // "q35", "pc" or "" for the driver's choice
	UEFI    bool

	Disks []Disk // the first one is the root disk
	NICs  []NIC

	ConfigDrive bool // the agent fills Seed when this is set
	Metadata    Metadata

	Power Power // what the owner wants
	// Each of these rises by one for each request of its kind; a driver
	// remembers beside the guest which it has carried out. That keeps a one-time
	// command level-triggered: repeated or late, it is done once.
	HardBoots    int // power-cycle
	SoftBoots    int // ask the guest's operating system, fall back to a power-cycle after GraceSeconds
	Rebuilds     int // throw the root disk away and make it anew from its image
	GraceSeconds int // how long a guest may take over a soft stop or reboot before it is cut off

	// Epoch goes up whenever the guest is given to a host. What a driver still holds of an earlier one is not this guest: it
	// was elsewhere since, and has to be made anew. 0, here or in what is held, says nothing.
	Epoch int `json:",omitempty"`
	// Era goes before Epoch in what hosts tell each other: it goes up when a backup of the state was restored, and numbers are
	// given a second time.
	Era int64 `json:",omitempty"`
	// Storage is that on which the guest's disks are to be, of what several hosts reach, by the name that hosts report for it; ""
	// for the host's own. Kept: they are there already, left by the host that had the guest before, and must not be made anew.
	Storage string `json:",omitempty"`
	Kept    bool   `json:",omitempty"`
	// StayOff leaves a guest off that ended with its host's power, as if it had switched itself off.
	StayOff bool `json:",omitempty"`
	// Leased: it may be started elsewhere when the host is lost, so that the agent runs it only under the host's lease. It
	// says nothing to a driver.
	Leased bool `json:",omitempty"`

	// Leave is set while the host is to send the guest to another one, Arrive while it is to take it in from
	// another; both are told to a Mover only. Without them the guest is this host's, to be as wished: one that had
	// been sent is then run on here, one that has arrived begins to run.
	Leave  *Leave  `json:",omitempty"`
	Arrive *Arrive `json:",omitempty"`

	// Snapshot is set while the host is to copy the guest's root disk and bring the copy into an image; told to a Snapshotter
	// only. Without it the host keeps no copy.
	Snapshot *Snapshot `json:",omitempty"`

	// Wish rises whenever the owner asks for something else. The host's reports name the wish that
	// they answer, so that what was seen under an earlier one is not taken for an answer to a newer
	// one. It says nothing to a driver.
	Wish int

	// Filled in by the agent on the host, never by the control plane.
	Seed string `json:"-"` // path of an ISO 9660 image labelled config-2, or ""
}

// An ImageRef is one image file a guest is made from.
type ImageRef struct {
	ID     resource.ID
	Format string // "raw" or "qcow2"; never probed
	Bytes  int64
	SHA512 string // hex, of the whole file
	Path   string `json:"-"` // where the agent's cache holds it, read-only
}

// A Disk is one block device of a guest.
type Disk struct {
	Name    string    // "root", "ephemeral0", "swap", or a volume's ID
	Serial  string    // what the guest sees as the disk's serial number; "" for none
	SizeMiB int       // 0: as large as the image
	Image   *ImageRef // what it starts as; nil for a blank one
	Bus     string    // "virtio", "scsi", "ide"; "" is virtio
	Label   string    // a blank disk is formatted ext4 with this label ("swap": mkswap) when set
}

// A NIC is one network device of a guest.
type NIC struct {
	PortID resource.ID
	MAC    string
	MTU    int
	Model  string // "virtio", "e1000"; "" is virtio

	// Filled in by the agent from what the network driver answered.
	Tap Tap `json:"-"`
}

// A Tap is where a guest's frames enter the host's network.
type Tap struct {
	Netns string // the path of a network namespace, or "" for the host's own
	Name  string // a tap device in it; the driver opens it and passes the descriptor
}

// Metadata is what a guest may ask about itself, as plain facts. The wire
// formats are a dialect's business.
type Metadata struct {
	Hostname       string
	Zone           string
	Type           string // the flavor's name
	ImageID        resource.ID
	LaunchIndex    int
	ReservationID  string
	CreatedAt      time.Time
	Tags           map[string]string // the owner's key-value pairs
	Keys           []PublicKey
	UserData       []byte
	Files          []File // "personality": put on the config drive
	AdminPassword  string // asked for at creation; "" for none
	Told           string `json:",omitempty"` // the password that the guest has told, encrypted by it
	Devices        []Device
	Links          []Link
	SecurityGroups []string // names
}

// A PublicKey lets its holder log in.
type PublicKey struct{ Name, Type, Key string }

// A File is injected through the config drive.
type File struct {
	Path string
	Data []byte
}

// A Device is a tagged disk or NIC, for the guest to find.
type Device struct {
	Kind   string // "nic" or "disk"
	MAC    string
	Serial string
	Tags   []string
}

// A Link is how one NIC is configured.
type Link struct {
	PortID     resource.ID
	NetworkID  resource.ID
	MAC        string
	MTU        int
	Addresses  []LinkAddress
	DNS        []string
	PublicIPv4 string // the floating address, or ""
}

// A LinkAddress is one address of a link.
type LinkAddress struct {
	Address string // "10.0.0.5"
	Prefix  int    // 24
	Gateway string // or ""
	Mode    string // "dhcp" or "static" for IPv4; "slaac", "dhcpv6-stateful", "dhcpv6-stateless" or "static" for IPv6
	Routes  []LinkRoute
}

// A LinkRoute is one route beside the default one.
type LinkRoute struct{ Destination, NextHop string }

// Power is whether a guest's processors run.
type Power string

const (
	On        Power = "on"
	Off       Power = "off"
	Paused    Power = "paused"    // in memory, its processors stopped
	Suspended Power = "suspended" // memory saved to disk, the process gone
	Crashed   Power = "crashed"   // observed only: it ended by itself, or could not be started
	Unknown   Power = "unknown"   // observed only: the host cannot be heard
)

// An Observation is what a driver saw of one guest.
type Observation struct {
	Power     Power
	HardBoots int // carried out so far
	SoftBoots int
	Rebuilds  int
	Isolating bool      // hardware virtualization separates it from the host; false under emulation
	StartedAt time.Time // of the present process; zero when there is none
	Trouble   string    // why it is not as wished, in words for the owner; "" when all is well or under way
	Busy      bool      // the driver is still working towards the wish: come again soon

	// How long the last start took, for the operator: from Ensure to the
	// process running its first instruction, without and with QEMU's own start.
	OursMs, StartMs float64
}

// A Driver makes guests real on one host. Any call may come again after a crash,
// with the same or another wish, and calls for different guests come together;
// those for one guest come one after the other.
type Driver interface {
	// Ensure takes the guest one step nearer to the wish and says what it saw. It
	// returns within a few seconds: what takes longer goes on by itself and is
	// reported as Busy. A wish that cannot be met is an Observation with Trouble;
	// an error is a fault of the host, and is tried again.
	Ensure(ctx context.Context, want Guest) (Observation, error)
	// Remove ends the guest and takes away everything of it that is this host's own, which disks on shared storage are not. No
	// error if there is none.
	Remove(ctx context.Context, id resource.ID) error
	// Halt ends a guest that nobody wants any more, gently if it listens, and keeps everything
	// else of it: its disks, and its memory if that is saved. busy: it goes on by itself, come again
	// soon. A fault of kind NotFound if there is none, or nothing of it is worth keeping.
	Halt(ctx context.Context, id resource.ID) (busy bool, err error)
	// Present lists every guest of which the host still holds anything.
	Present(ctx context.Context) ([]resource.ID, error)
	// Observe looks without changing anything.
	Observe(ctx context.Context, id resource.ID) (Observation, error)
	// Capabilities tells what this host can do, as it is now.
	Capabilities(ctx context.Context) (Capabilities, error)
}

// Leave is how a guest is to be sent to another host.
type Leave struct {
	Move   int    // its number, for the reports
	Where  string // what the other host's driver answered
	Live   bool   // memory and all, while it runs; else only the disks, of a guest that is off
	Urgent bool   // stop it and be done with it
	Kept   bool   `json:",omitempty"` // the disks stay where they are: the other host reaches them there
}

// Arrive is how a guest is to be taken in.
type Arrive struct {
	Move int
	Live bool
	From resource.ID // the host that sends it
	Kept bool        `json:",omitempty"` // the disks stay where they are
}

// A Mover is a Driver whose guests can go to another host of its kind, and come from one. Both calls return
// within a few seconds, and come again until both hosts have answered that they are Done. What cannot be is the
// answer's Trouble; an error is a fault of the host, and is tried again.
//
// A driver remembers both over its agent's death, and never runs a guest that is Done until Ensure is called
// for it: on the new host because the guest is its now, on the old one because the move was given up.
type Mover interface {
	// Receive takes in the guest that Arrive names, and says where it is to be sent. Whatever the host still holds
	// of the guest from before that move is taken away: the guest was another host's since.
	Receive(ctx context.Context, want Guest) (Transit, error)
	// Send takes the guest a step nearer to being where Leave says. One that is not to go live is switched off
	// before, as its Power then says.
	Send(ctx context.Context, want Guest) (Observation, Transit, error)
}

// A Snapshot is a copy of a guest's root disk as it was at one moment, on its way into an image.
type Snapshot struct {
	Number  int // of the server's; hosts name it in what they report
	ImageID resource.ID
}

// A Snapshotter is a Driver that copies guests' root disks. The call returns within a few seconds, and comes again until the copy
// is there and has been read. It is made at a moment at which the guest is as its wish says, and is complete in itself: it lies over no image.
// A driver remembers it over its agent's death, and drops it when Ensure is called for the guest without one.
type Snapshotter interface {
	Snapshot(ctx context.Context, want Guest) (Observation, Copy, error)
}

// A Copy is how far a driver is with a snapshot.
type Copy struct {
	Done    bool
	Percent int
	Trouble string                        // why there will be none, in words for the owner
	Bytes   int64                         // of one that is done
	Open    func() (io.ReadCloser, error) // reads one that is done
}

// An Eraser is a Driver that keeps disks on storage which other hosts reach too. What is there outlives the guest on any host,
// until it is erased in so many words.
type Eraser interface {
	// Erase takes away what a guest that is gone has left. No error if there is nothing, or the guest has come back since.
	Erase(ctx context.Context, e Erasure) error
}

// An Erasure is the word of the controllers that a guest's disks are nobody's any more.
type Erasure struct {
	GuestID resource.ID
	Storage string
	Era     int64 `json:",omitempty"` // as a Guest's
	Epoch   int   // of the last placement in which it had them
	// No host is left that may not have heard that it has the guest no more, and might begin with it. Until then it is erased
	// once, and is asked for again.
	Final bool `json:",omitempty"`
}

// A Consoler is a Driver whose guests have consoles.
type Consoler interface {
	// ConsoleLog is the newest part of what the guest wrote to its first serial
	// port, at most max bytes, over power-cycles.
	ConsoleLog(ctx context.Context, id resource.ID, max int) ([]byte, error)
	// Console connects to a "vnc" (RFB) or "serial" console.
	Console(ctx context.Context, id resource.ID, kind string) (net.Conn, error)
}

// A Notifier is a Driver that tells when a guest changed by itself.
type Notifier interface {
	// Changed gives IDs of guests to look at. It is closed with the driver.
	Changed() <-chan resource.ID
}

// Capabilities is what a host offers.
type Capabilities struct {
	Driver    string // "qemu", "sim", …
	Version   string // of the hypervisor
	VCPUs     int
	MemoryMiB int
	DiskGiB   int
	Isolating bool   // guests are separated by hardware (KVM)
	Arch      string // "x86_64"
	CPUModel  string
	MaxVCPUs  int    // of one guest
	Moves     bool   // guests can be sent to other hosts, and taken in: the driver is a Mover
	Where     string // where it takes them in, in words for the other host's driver; "" if it does not
	Snapshots string // the format of its copies, "raw" or "qcow2"; "" if the driver is no Snapshotter
	Storage   string // names the storage that guests' disks are on, to hosts that reach the same one; "" for the host's own
}
