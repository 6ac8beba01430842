// Package alert tells operators what needs them: rules look at the state and at a few facts of the machine, an alert is raised when one
// begins to hold and resolved when it ends, and each target is told of both. Alerts are stored, so that a restart raises
// none again. How a target is reached is its driver's business.
package alert

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// An Alert is one thing that needs an operator, or did. Its name is its rule's; CreatedAt is when it was raised.
type Alert struct {
	resource.Meta

	Subject  string    // what it is about: a host's name, say; "" for the cloud as a whole
	Text     string    // in words for the operator: how it is now, or was when it was resolved
	Worded   time.Time // when that last came to say something else; zero: it says what it was raised with
	Severity Severity
	Resolved time.Time // zero while it holds
	Told     []Told    // in the order of targets
}

// A Severity says how soon somebody should look.
type Severity string

const (
	Warning  Severity = "warning"  // this week
	Critical Severity = "critical" // now
)

// A Told is what one target has been told of one alert.
type Told struct {
	TargetID resource.ID
	Raised   bool
	Resolved bool
	Failures int       // in a row, of what is to be told next
	Next     time.Time // when that is tried again
	Trouble  string    // why it failed the last time
}

// Open reports whether the alert still holds.
func (a *Alert) Open() bool { return a.Resolved.IsZero() }

var alerts = state.NewTable[Alert]("alert",
	state.Since[Alert](2),
	state.Unique("open", func(a *Alert) state.Key {
		if !a.Open() {
			return ""
		}
		return state.KeyOf(a.Name, a.Subject)
	}),
	state.Index("resolved", func(a *Alert) state.Key {
		if a.Open() {
			return ""
		}
		return state.KeyOf(a.Resolved)
	}))

// A Target is where operators are told. What is secret of it is never shown.
type Target struct {
	resource.Meta

	Kind string // "webhook" or "mail"

	URL    string `secret:"true"` // of a webhook; many have a key in it
	Secret string `secret:"true"` // signs what a webhook is told

	Server   string // of mail: smtp://host:587 or smtps://host:465
	From     string
	To       []string
	Username string
	Password string `secret:"true"`
}

var targets = state.NewTable[Target]("alert-target", state.Since[Target](2), state.Unique("name", func(t *Target) state.Key { return state.KeyOf(t.Name) }))

var _ = identity.Rules(map[string]identity.Rule{"alert.get": identity.Admin, "alert.list": identity.Admin, "alert.manage": identity.Admin})

// Table gives the native API a look at every alert.
func Table() *state.Table[Alert] { return alerts }

// Opened lists the alerts that hold, the worst and oldest first.
func Opened(tx *state.Tx) []*Alert {
	all := slices.Collect(alerts.Each(tx, "open", ""))
	slices.SortStableFunc(all, func(a, b *Alert) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), a.CreatedAt.Compare(b.CreatedAt)) // "critical" comes before "warning"
	})
	return all
}

// Targets lists where operators are told, by name.
func Targets(tx *state.Tx) []*Target { return slices.Collect(targets.Each(tx, "name", "")) }

// Named finds a target.
func Named(tx *state.Tx, name string) (*Target, error) {
	t, ok := targets.Lookup(tx, "name", state.KeyOf(name))
	if !ok {
		return nil, fault.Errorf(fault.NotFound, "There is no alert target %s.", name)
	}
	return t, nil
}

// A Service keeps the targets.
type Service struct{ State *state.State }

const mostTargets = 32

var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// Add begins to tell one more target, also of what holds already.
func (s *Service) Add(ctx context.Context, t Target) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "alert.manage", resource.Meta{}); err != nil {
			return err
		}
		if err := t.check(); err != nil {
			return err
		}
		if targets.Len(tx) >= mostTargets {
			return fault.Errorf(fault.Exhausted, "There are %d alert targets; no more are told.", mostTargets)
		}
		t.ID = tx.NewID()
		return targets.Put(tx, &t)
	})
}

// Remove tells a target nothing more.
func (s *Service) Remove(ctx context.Context, name string) error {
	return s.State.Update(ctx, func(tx *state.Tx) error {
		if err := identity.Allow(ctx, "alert.manage", resource.Meta{}); err != nil {
			return err
		}
		t, err := Named(tx, name)
		if err != nil {
			return err
		}
		return targets.Delete(tx, t.ID)
	})
}

// check holds a target against the rules.
func (t *Target) check() error {
	if !names.MatchString(t.Name) {
		return fault.InvalidField("name", "must be 1 to 63 letters, digits, dots, dashes or underscores")
	}
	switch t.Kind {
	case "webhook":
		at, err := url.Parse(t.URL)
		if err != nil || at.Scheme != "https" && at.Scheme != "http" || at.Host == "" {
			return fault.InvalidField("url", "must be an address such as https://example.org/hook")
		}
		if len(t.Secret) < 16 {
			return fault.InvalidField("secret", "must have at least 16 characters")
		}
	case "mail":
		at, err := url.Parse(t.Server)
		if err != nil || at.Scheme != "smtp" && at.Scheme != "smtps" || at.Hostname() == "" || at.User != nil || at.Path != "" {
			return fault.InvalidField("server", "must be an address such as smtp://mail.example.org:587, or smtps:// for TLS from the start")
		}
		if len(t.To) == 0 || len(t.To) > 32 {
			return fault.InvalidField("to", "must be 1 to 32 addresses")
		}
		for _, address := range append([]string{t.From}, t.To...) {
			if !addresses.MatchString(address) {
				return fault.InvalidField("address", "%.80q is no address such as ops@example.org", address)
			}
		}
		if t.Username == "" && t.Password != "" {
			return fault.InvalidField("username", "is needed for a password")
		}
	default:
		return fault.InvalidField("kind", "must be webhook or mail")
	}
	return nil
}

var addresses = regexp.MustCompile(`^[^\s<>"@,;:\\]{1,64}@[A-Za-z0-9.-]{1,253}$`)

// A Notice is what a target is told. The same notice may come again: ID and Event name it.
type Notice struct {
	ID       resource.ID
	Event    string // "raised", "resolved" or "test"
	Rule     string
	Subject  string `json:",omitempty"`
	Text     string
	Severity Severity
	Raised   time.Time
	Resolved time.Time `json:",omitzero"`
	Cloud    string    // which one it is, in words
}

// Title is the notice in a line.
func (n Notice) Title() string {
	about := ""
	if n.Subject != "" {
		about = " " + n.Subject
	}
	return fmt.Sprintf("[unkai] %s: %s%s", n.Event, n.Rule, about)
}

// A Sender tells a target; it returns once that has taken the notice.
type Sender interface {
	Send(ctx context.Context, t *Target, n Notice) error
}
