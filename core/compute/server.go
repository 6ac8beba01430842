package compute

import (
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Server is a virtual machine that somebody asked for.
type Server struct {
	resource.Meta

	// Asked for by the owner when it was made.
	UserID        resource.ID
	Shape         Shape
	Boot          Boot
	Key           *Key   `json:",omitempty"`
	UserData      []byte `json:",omitempty" secret:"true"`
	Files         []File `json:",omitempty" secret:"true"`
	AdminPassword string `json:",omitempty" secret:"true"`
	ConfigDrive   bool   `json:",omitempty"`
	Zone          string `json:",omitempty"` // "" for any
	GroupID       resource.ID
	Trusted       []string          `json:",omitempty"` // certificates that the image's signature is to be checked with
	Plugs         []Plug            `json:",omitempty"` // its ports, in the order in which it got them
	Hints         map[string]string `json:",omitempty"`
	LaunchIndex   int               `json:",omitempty"` // among those of the same request
	ReservationID string            // of the request
	RequestKey    string            `json:",omitempty"` // by which the owner made the request safe to repeat

	// Asked for by the owner, and changed at will.
	Description string            `json:",omitempty"`
	Hostname    string            // what the guest is told to call itself
	Metadata    map[string]string `json:",omitempty"`
	Tags        []string          `json:",omitempty"`
	AccessIPv4  string            `json:",omitempty"` // what the owner says is the address to reach it at
	AccessIPv6  string            `json:",omitempty"`
	Lock        *Lock             `json:",omitempty"`
	ManualDisk  bool              `json:",omitempty"` // the guest is not to grow its file system by itself
	Power       Power             // On, Off, Paused or Suspended
	HardBoots   int               `json:",omitempty"` // see Guest
	SoftBoots   int               `json:",omitempty"`
	Rebuilds    int               `json:",omitempty"`
	Wish        int               `json:",omitempty"`
	DeletedAt   time.Time         `json:",omitzero"` // since when the owner no longer wants it
	Keep        Keep              `json:",omitzero" since:"2"`
	Before      *Reshaped         `json:",omitempty"`

	// Decided by the control plane.
	HostID      resource.ID
	Storage     string      `json:",omitempty" since:"2"` // that its disks are on, of what several hosts reach; "" for its host's own
	Kept        bool        `json:",omitempty" since:"2"` // they were there before it came to its host
	Unrun       int         `json:",omitempty" since:"2"` // the wish by which its host was to make them, until it says that it has run there; 0: it has
	Task        Task        `json:",omitempty"`           // what is under way
	OperationID resource.ID // of the task
	Move        *Move       `json:",omitempty" since:"2"`      // to another host, under way
	Moves       int         `json:",omitempty" since:"2"`      // begun so far
	Epoch       int         `json:",omitempty" since:"2,soft"` // of its placement: a host that holds something of an earlier one holds nothing of the server
	MigrationID resource.ID `since:"2"`                        // the record of the last change of host or shape
	Snapshot    *Snapshot   `json:",omitempty" since:"2"`      // being taken
	Snapshots   int         `json:",omitempty" since:"2"`      // begun so far
	Shelf       *Shelf      `json:",omitempty" since:"2"`      // it is shelved, or about to be
	Root        *ImageRef   `json:",omitempty" since:"2"`      // what its root disk lies over, if that is not its image
	Failure     *Failure    `json:",omitempty"`
	LaunchedAt  time.Time   `json:",omitzero"`                 // when it ran for the first time
	Sworn       int         `json:",omitempty" since:"2,soft"` // the first wish by which its host knew that it runs it under its lease alone
	Stranded    *Stranded   `json:",omitempty" since:"2,soft"` // while its host is dead, and no other has it yet
	Crash       Crash       `json:",omitzero" since:"2,soft"`

	// Reported by the host.
	Seen     Seen
	Password *Password `json:",omitempty" since:"2,soft"` // told by the guest
}

// A Boot is what a server's root disk is made from: its image as it was then.
type Boot struct {
	Image    *ImageRef `json:",omitempty"`
	Kernel   *ImageRef `json:",omitempty"`
	Initrd   *ImageRef `json:",omitempty"`
	Cmdline  string    `json:",omitempty"`
	Machine  string    `json:",omitempty"`
	UEFI     bool      `json:",omitempty"`
	DiskBus  string    `json:",omitempty"`
	NICModel string    `json:",omitempty"`
}

// ImageID is the image's ID; zero if there is none.
func (b *Boot) ImageID() resource.ID {
	if b.Image == nil {
		return resource.ID{}
	}
	return b.Image.ID
}

// A Key is a key pair's public half as it was when a server was given it.
type Key struct{ Name, Type, Public string }

// A Lock keeps everybody but operators from changing a server.
type Lock struct {
	ByUserID resource.ID
	ByAdmin  bool
	Reason   string
}

// Reshaped is what a server was before it was given another shape, or taken to another host, until its
// owner has confirmed that.
type Reshaped struct {
	Shape  Shape
	Power  Power
	HostID resource.ID `since:"2,soft"` // where it was; the room there is held for it
	At     time.Time
}

// A Failure is why a server is not what its owner asked for.
type Failure struct {
	At      time.Time
	Code    int // in the sense of HTTP's: 4xx for what the owner, 5xx for what the cloud must mend
	Message string
	Details string `json:",omitempty"`                // for operators
	Lost    bool   `json:",omitempty" since:"2,soft"` // only its host is: it ends if that comes back and does what was asked for
}

// Seen is what a host reports of a guest.
type Seen struct {
	Observation
	Wish    int       `json:",omitempty"`          // to which of the guest's wishes this answers
	Transit Transit   `json:",omitzero" since:"2"` // of a move; kept with the move
	Copy    Copying   `json:",omitzero" since:"2"` // of a snapshot; not kept
	Gone    bool      `json:",omitempty"`          // the host holds nothing of it any more
	Since   time.Time `json:",omitzero"`           // when Power became what it is
}

// A Task is what is under way with a server: at most one thing, also the verb of its operation.
type Task string

const (
	Creating      Task = "create"
	Starting      Task = "start"
	Stopping      Task = "stop"
	SoftRebooting Task = "reboot"
	HardRebooting Task = "reboot-hard"
	Pausing       Task = "pause"
	Unpausing     Task = "unpause"
	Suspending    Task = "suspend"
	Resuming      Task = "resume"
	Rebuilding    Task = "rebuild"
	Reshaping     Task = "resize"
	Reverting     Task = "resize-revert"
	Migrating     Task = "migrate"
	LiveMigrating Task = "live-migration"
	Evacuating    Task = "evacuate"
	Imaging       Task = "create-image"
	BackingUp     Task = "create-backup"
	Shelving      Task = "shelve"
	Unshelving    Task = "unshelve"
	Deleting      Task = "delete"
)

// Tasks lists them all.
func Tasks() []Task {
	return []Task{"", Creating, Starting, Stopping, SoftRebooting, HardRebooting, Pausing, Unpausing, Suspending,
		Resuming, Rebuilding, Reshaping, Reverting, Migrating, LiveMigrating, Evacuating,
		Imaging, BackingUp, Shelving, Unshelving, Deleting}
}

// A Stage is how a server stands, whatever is under way with it.
type Stage string

const (
	Building  Stage = "building" // it never ran yet
	Running   Stage = "running"
	Stopped   Stage = "stopped"
	Frozen    Stage = "paused"
	Asleep    Stage = "suspended"
	Failed    Stage = "failed"
	Unsettled Stage = "reshaped"  // it has a new shape or host that its owner has not confirmed
	Shelved   Stage = "shelved"   // it is off, and what it had on its disk is in an image; its host has it still
	Offloaded Stage = "offloaded" // so, and on no host
)

// Stages lists them all.
func Stages() []Stage {
	return []Stage{Building, Running, Stopped, Frozen, Asleep, Failed, Unsettled, Shelved, Offloaded}
}

// A Standing is a server's stage and what is under way: all that a dialect needs to
// name its state.
type Standing struct {
	Stage Stage
	Task  Task
}

// Standing tells how the server stands.
func (s *Server) Standing() Standing { return Standing{s.Stage(), s.Task} }

// stages are the stages of a server that ran before, by what its host saw.
var stages = map[Power]Stage{On: Running, Off: Stopped, Crashed: Stopped, Paused: Frozen, Suspended: Asleep}

// Stage tells how the server stands, as far as is known: of a server that cannot be heard, what
// was last seen.
func (s *Server) Stage() Stage {
	switch {
	case s.Failure != nil:
		return Failed
	case s.LaunchedAt.IsZero():
		return Building
	case s.Shelf != nil && s.Shelf.Offloaded:
		return Offloaded
	case s.Shelf != nil && !s.Shelf.At.IsZero():
		return Shelved
	case s.Before != nil && s.Task == "":
		return Unsettled
	}
	if s.Seen.Power == Crashed && !s.Crash.Restart.IsZero() {
		return Running // in a moment again
	}
	if stage, ok := stages[s.Seen.Power]; ok {
		return stage
	}
	return stages[s.Power]
}

// Locked reports whether the server is locked.
func (s *Server) Locked() bool { return s.Lock != nil }

// Doomed reports whether the owner no longer wants the server.
func (s *Server) Doomed() bool { return !s.DeletedAt.IsZero() }

var servers = state.NewTable("server",
	state.Index("project", func(s *Server) state.Key { return state.KeyOf(s.ProjectID) }),
	state.Index("host", func(s *Server) state.Key {
		if s.HostID.IsZero() {
			return ""
		}
		return state.KeyOf(s.HostID)
	}),
	state.Index("arriving", func(s *Server) state.Key {
		if s.Move == nil {
			return ""
		}
		return state.KeyOf(s.Move.To)
	}),
	// Under its project, and under none for those who look at all projects.
	state.MultiIndex("standing", func(s *Server) []state.Key {
		return bothScopes(s.ProjectID, string(s.Stage()), string(s.Task))
	}),
	state.MultiIndex("image", func(s *Server) []state.Key { return bothScopes(s.ProjectID, s.Boot.ImageID()) }),
	// What else servers are made from.
	state.MultiIndex("part", func(s *Server) []state.Key {
		var keys []state.Key
		for _, ref := range s.parts() {
			keys = append(keys, state.KeyOf(ref.ID))
		}
		return keys
	}),
	state.MultiIndex("flavor", func(s *Server) []state.Key { return bothScopes(s.ProjectID, s.Shape.FlavorID) }),
	state.MultiIndex("name", func(s *Server) []state.Key { return bothScopes(s.ProjectID, s.Name) }),
	state.Text("words", wordsOf),
	state.MultiIndex("updated", func(s *Server) []state.Key { return bothScopes(s.ProjectID, s.UpdatedAt) }),
	state.MultiIndex("key", func(s *Server) []state.Key {
		if s.Key == nil {
			return nil
		}
		return bothScopes(s.ProjectID, s.Key.Name)
	}),
	state.MultiIndex("tag", func(s *Server) []state.Key {
		var keys []state.Key
		for _, tag := range s.Tags {
			keys = append(keys, bothScopes(s.ProjectID, tag)...)
		}
		return keys
	}),
	state.MultiIndex("locked", func(s *Server) []state.Key {
		if s.Lock == nil {
			return nil
		}
		return bothScopes(s.ProjectID)
	}),
	state.MultiIndex("unplaced", func(s *Server) []state.Key {
		if !s.HostID.IsZero() {
			return nil
		}
		return bothScopes(s.ProjectID)
	}),
	state.Index("shelved", func(s *Server) state.Key { // on hosts
		if s.Stage() != Shelved {
			return ""
		}
		return state.KeyOf(s.Shelf.At)
	}),
	// Where it was, and may have to go back to.
	state.Index("came", func(s *Server) state.Key {
		if s.Before == nil || s.Before.HostID == s.HostID {
			return ""
		}
		return state.KeyOf(s.Before.HostID)
	}),
	state.Index("restart", func(s *Server) state.Key {
		if s.Crash.Restart.IsZero() {
			return ""
		}
		return state.KeyOf(s.Crash.Restart)
	}),
	state.Index("stranded", func(s *Server) state.Key {
		if s.Stranded == nil {
			return ""
		}
		return state.KeyOf(s.HostID)
	}),
	state.Index("reservation", func(s *Server) state.Key { return state.KeyOf(s.ReservationID) }),
	state.Index("tail", func(s *Server) state.Key { return state.KeyOf(s.ID.Tail()) }),
	state.Index("group", func(s *Server) state.Key {
		if s.GroupID.IsZero() {
			return ""
		}
		return state.KeyOf(s.GroupID)
	}),
	// By group and host: see company.
	state.Index("company", func(s *Server) state.Key {
		if s.GroupID.IsZero() || s.bound().IsZero() {
			return ""
		}
		return state.KeyOf(s.GroupID, s.bound())
	}),
	state.MultiTally("apart", keptApart),
	state.Tally("use", func(s *Server) (state.Key, state.Amounts) { return state.KeyOf(s.ProjectID), s.taken() }),
	state.Tally("user", func(s *Server) (state.Key, state.Amounts) {
		return state.KeyOf(s.ProjectID, s.UserID), s.taken()
	}),
	state.Tally("load", func(s *Server) (state.Key, state.Amounts) {
		if s.HostID.IsZero() {
			return "", state.Amounts{}
		}
		return state.KeyOf(s.HostID), s.taken()
	}),
	state.MultiTally("claims", claimShares),
	state.MultiTally("storage", storageShares),
	// What is held on another host than its own: see beside.
	state.Tally("beside", func(s *Server) (state.Key, state.Amounts) {
		h := s.beside()
		if h.IsZero() {
			return "", state.Amounts{}
		}
		return state.KeyOf(h), s.taken()
	}),
)

// taken is what the server takes of its host, and of its owner's quota. While a new shape is
// unconfirmed the larger of both is held, so that there is a way back.
func (s *Server) taken() state.Amounts {
	load := s.Shape.load()
	hold := func(shape *Shape) {
		for i, n := range shape.load() {
			load[i] = max(load[i], n)
		}
	}
	if s.Before != nil {
		hold(&s.Before.Shape)
	}
	if s.Move != nil {
		hold(&s.Move.Was)
	}
	return load
}

func bothScopes(project resource.ID, parts ...any) []state.Key {
	return []state.Key{
		state.KeyOf(append([]any{project}, parts...)...),
		state.KeyOf(append([]any{resource.ID{}}, parts...)...),
	}
}

var _ = identity.Rules(map[string]identity.Rule{
	"server.get": identity.Reader, "server.list": identity.Reader, "server.list-all": identity.Admin,
	"server.create": identity.Member, "server.create-on-host": identity.Admin, "server.create-zero-disk": identity.Admin,
	"server.update": identity.Member, "server.delete": identity.Member, "server.operate": identity.Member,
	"server.lock": identity.Member, "server.override-lock": identity.Admin, "server.console": identity.Member,
	"server.reset": identity.Admin, "server.diagnose": identity.Admin,
})

// Servers gives other domains, the native API and the auditor a look at every server.
func Servers() *state.Table[Server] { return servers }

// UsesImage reports whether a server is made from an image: its host may need the bytes again.
func UsesImage(tx *state.Tx, id resource.ID) bool {
	for range servers.Peek(tx, "image", state.Range{Prefix: state.KeyOf(resource.ID{}, id)}) {
		return true
	}
	for range servers.Peek(tx, "part", state.Range{Prefix: state.KeyOf(id)}) {
		return true
	}
	return false
}

// fail says why the server is not what was asked for.
func (s *Server) fail(tx *state.Tx, code int, message string) {
	s.Failure = &Failure{At: tx.Now(), Code: code, Message: message}
}

// hostnameFor makes a name that a guest may have out of any name (RFC 1123).
func hostnameFor(name string, id resource.ID) string {
	var b strings.Builder
	for _, r := range strings.ToLower(name) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.':
			b.WriteRune(r)
		case r == ' ' || r == '_':
			b.WriteByte('-')
		}
	}
	host := strings.Trim(b.String(), "-.")
	if len(host) > 63 {
		host = strings.TrimRight(host[:63], "-.")
	}
	if host == "" {
		return "server-" + id.String()
	}
	return host
}

// Bounds of what owners may write.
const (
	MaxName     = 255
	MaxUserData = 65535 // bytes in base64, of the encoded text
	MaxTags     = 50
)

func checkTags(tags []string) error {
	if len(tags) > MaxTags {
		return fault.Errorf(fault.Invalid, "The number of tags exceeded the per-server limit %d", MaxTags)
	}
	for i, tag := range tags {
		if tag == "" || len([]rune(tag)) > 60 || strings.ContainsAny(tag, ",/") {
			return fault.Errorf(fault.Invalid, "Invalid tag %q: it must be of 1 to 60 characters without '/' and ','.", tag)
		}
		if slices.Contains(tags[:i], tag) {
			return fault.Errorf(fault.Invalid, "Tag %q stands twice.", tag)
		}
	}
	return nil
}

func checkMetadata(metadata map[string]string) error {
	for k, v := range metadata {
		if k == "" || len([]rune(k)) > 255 {
			return fault.InvalidField("metadata", "must have keys of 1 to 255 characters")
		}
		if len([]rune(v)) > 255 {
			return fault.InvalidField("metadata", "must have values of at most 255 characters")
		}
	}
	return nil
}
