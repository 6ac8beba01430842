package host

import (
	"net/netip"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
)

// A Hello is what a host says of itself when it connects. It is not to be trusted further than any guest's owner: it is shown to
// operators, to tenants and to other hosts, and counted with.
type Hello struct {
	Name     string // only heeded when the host is new, as is Zone
	Zone     string
	Capacity Capacity
	Address  netip.Addr
	MTU      int `json:",omitempty"` // of the link that has the address; 0: not known
	Version  string
	Speaks   release.Span `json:",omitzero"`
	Physical []string
	// It can put differences together; see Session.Differences.
	Differences bool `json:",omitempty"`
	Renews      bool `json:",omitempty"` // its lease
	Watchdog    bool `json:",omitempty"` // enforces it
	Mark        Mark // of the newest state that it was told of

	// Until when the certificate is valid that it shows: its controller fills that in, whatever the host says.
	CertificateEnds time.Time `json:",omitzero"`
}

// names are those of hosts: labels that dots part, as in DNS, of letters in either case, digits, dashes and underscores, which other
// systems' host names have. None begins with a dash, so that it is no option of a program that it is handed to.
var names = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?)*$`)

const longestName = 253

// zones are names of zones, which tenants see and write: a colon would part one from a host there.
var zones = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9 ._-]{0,62}[A-Za-z0-9])?$`)

// CheckNew refuses a new host that cannot have this name, or not be in this zone ("" for the default). One that is known was let in under
// its name.
func CheckNew(name, zone string) error {
	if len(name) > longestName || !names.MatchString(name) {
		return fault.Errorf(fault.Invalid, "%.80q is no name for a host: labels of letters, digits, dashes and underscores that begin and end with a letter or digit, "+
			"with dots between them, at most %d characters in all. Give it one with --name.", name, longestName)
	}
	if zone != "" && !zones.MatchString(zone) {
		return fault.Errorf(fault.Invalid, "%.80q is no name for a zone: at most 64 letters, digits, dashes, underscores, dots and spaces, with a letter or digit at both ends.", zone)
	}
	return nil
}

// What a host may say it has, at most: far beyond any machine, and small enough that a cloud of them can be added up.
const (
	mostCPUs     = 1 << 20
	mostMiB      = 1 << 32 // 4 PiB
	mostGiB      = 1 << 32 // 4 EiB
	mostMbps     = 1 << 24 // 16 Tbit/s
	mostMTU      = 1 << 17 // twice what a loopback has
	mostPhysical = 256
	longestWord  = 256
)

// check refuses a host that says of itself what cannot be.
func (h *Hello) check() error {
	c := &h.Capacity
	for _, field := range []struct {
		what    string
		n, most int
	}{
		{"processors", c.VCPUs, mostCPUs}, {"processors of one guest", c.MaxVCPUs, mostCPUs}, {"MiB of memory", c.MemoryMiB, mostMiB},
		{"GiB of disk", c.DiskGiB, mostGiB}, {"megabits a second", c.WireMbps, mostMbps},
		{"bytes in a packet", h.MTU, mostMTU},
	} {
		if field.n < 0 || field.n > field.most {
			return fault.Errorf(fault.Invalid, "The host says that it has %d %s: from 0 to %d are taken.", field.n, field.what, field.most)
		}
	}
	if err := checkPhysical(h.Physical); err != nil {
		return err
	}
	for what, text := range map[string]string{
		"driver": c.Driver, "hypervisor's release": c.Release, "address for guests": c.Where, "format of snapshots": c.Snapshots,
		"architecture": c.Arch, "processor": c.CPUModel, "storage": c.Storage, "version": h.Version, "address": h.Address.Zone(),
	} {
		if err := checkWord(what, text); err != nil {
			return err
		}
	}
	return nil
}

func checkPhysical(names []string) error {
	if len(names) > mostPhysical {
		return fault.Errorf(fault.Invalid, "The host says that it is connected with %d physical networks: at most %d are taken.", len(names), mostPhysical)
	}
	for _, name := range names {
		if err := checkWord("physical network", name); err != nil {
			return err
		}
	}
	return nil
}

// checkWord refuses what cannot be shown on a line.
func checkWord(what, text string) error {
	if len(text) > longestWord {
		return fault.Errorf(fault.Invalid, "The host's %s has %d characters: at most %d are taken.", what, len(text), longestWord)
	}
	if !utf8.ValidString(text) {
		return fault.Errorf(fault.Invalid, "The host's %s is not text.", what)
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return fault.Errorf(fault.Invalid, "The host's %s has a character that cannot be shown: %q.", what, text)
		}
	}
	return nil
}
