package compute

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Keep is what its owner wants done to keep a server alive.
type Keep struct {
	// It is made anew on another host, from its image, when its own is lost and known to be dead. What was on its disks is
	// lost: they are its host's. In exchange it runs only while its host has its lease; see host.LeaseTime.
	Elsewhere bool
	Priority  int     // those with a higher one are seen to first
	OnCrash   OnCrash // "" as the cloud does
}

// An OnCrash is what is done when a guest's virtual machine ends that nobody ended.
type OnCrash string

const (
	RestartOnCrash OnCrash = "restart" // again and again, later and later, a few times
	StayOnCrash    OnCrash = "stay"
)

// A Stranded is why a server that is to be made anew elsewhere is not yet.
type Stranded struct {
	Since time.Time
	Why   string // in words for the owner
}

// Flavors' demands that say how their servers are kept at first, and scheduler hints with which whoever makes a server
// says otherwise of it.
const (
	elsewhereKey  = "unkai:restart_elsewhere"
	priorityKey   = "unkai:restart_priority"
	elsewhereHint = "unkai_restart_elsewhere"
)

const mostPriority = 100

func (k *Keep) check() error {
	switch {
	case k.Priority < 0 || k.Priority > mostPriority:
		return fault.InvalidField("priority", "must be from 0 to %d", mostPriority)
	case k.OnCrash != "" && k.OnCrash != RestartOnCrash && k.OnCrash != StayOnCrash:
		return fault.InvalidField("on_crash", "must be restart, stay or empty")
	}
	return nil
}

// keep is how a new server is kept, until its owner says otherwise.
func (b *builder) keep() Keep {
	k := Keep{Elsewhere: strings.EqualFold(b.flavor.Extra[elsewhereKey], "true")}
	if n, err := strconv.Atoi(b.flavor.Extra[priorityKey]); err == nil {
		k.Priority = min(max(n, 0), mostPriority)
	}
	switch strings.ToLower(strings.Trim(b.Hints[elsewhereHint], `"`)) {
	case "true":
		k.Elsewhere = true
	case "false":
		k.Elsewhere = false
	}
	return k
}

// SetKeep changes how a server is kept alive.
func (s *Service) SetKeep(ctx context.Context, id resource.ID, change func(*Keep)) (*Server, error) {
	return s.change(ctx, "server.update", id, func(_ *state.Tx, srv *Server) error {
		was := srv.Keep
		change(&srv.Keep)
		if err := srv.Keep.check(); err != nil {
			return err
		}
		if srv.Keep.Elsewhere && !was.Elsewhere { // its host has to know before a lease that ran out means anything
			srv.Wish++
			srv.Sworn = srv.Wish
		}
		if !srv.Keep.Elsewhere {
			srv.Stranded = nil
		}
		return nil
	})
}
