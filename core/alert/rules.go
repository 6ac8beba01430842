package alert

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/operation"
)

// Facts are what the rules need to know and the state does not say.
type Facts struct {
	Now          time.Time
	Store        state.Room
	Machines     []Machine // of the controllers that answer
	Certificates []Certificate
	Silences     []Silence
}

// A Machine is how one is on which a controller runs.
type Machine struct {
	Controller   string        `json:",omitempty"` // "" for the only one
	Ahead        time.Duration // of the machine's clock, that the cloud's is
	Off          time.Duration `json:",omitempty"` // its clock's, from that of the machine that leads; positive if it is ahead of that
	Disk         Disk          // where the data directory lies
	Certificates []Certificate // that the controller shows
}

// about is the subject of an alert about the machine, or about something of it.
func (m *Machine) about(what string) string { return strings.TrimSpace(m.Controller + " " + what) }

// where names the machine in a text.
func (m *Machine) where() string {
	if m.Controller == "" {
		return "this machine"
	}
	return "controller " + m.Controller
}

// ofMachines are the rules whose alerts are about a Machine. While it does not say how it is, they stay as they are.
var ofMachines = []string{"disk-full", "disk-filling", "certificate-ended", "certificate-ends", "clock-ahead", "clock-off"}

// unknown reports whether an alert is about the machine of a controller that there is and that does not answer.
func (f *Facts) unknown(tx *state.Tx, a *Alert) bool {
	if !slices.Contains(ofMachines, a.Name) || len(f.Machines) == 1 && f.Machines[0].Controller == "" {
		return false
	}
	name, of, _ := strings.Cut(a.Subject, " ")
	if of != "" && !strings.HasPrefix(a.Name, "certificate-") {
		return false // a host's, or a storage's
	}
	if slices.ContainsFunc(f.Machines, func(m Machine) bool { return m.Controller == name }) {
		return false
	}
	_, is := host.Controllers().Lookup(tx, "name", state.KeyOf(name))
	return is
}

// A Silence is for how long a controller has not answered the one that leads.
type Silence struct {
	Controller string
	For        time.Duration
}

// A Disk says how full a file system is, in bytes.
type Disk struct{ Free, Size int64 }

// A Certificate is one that must be good.
type Certificate struct {
	Name string
	Ends time.Time
	Mend string // what makes a new one, in words
}

// A finding is that a rule holds now.
type finding struct {
	rule, subject, text string
	severity            Severity
}

// Bounds of the rules. What holds already holds on until it is a little better than what raised it, so that
// nothing is raised and resolved again and again.
const (
	filling, filled, drained   = 80, 100, 70 // percent of the store's quota
	diskLow, diskOut, diskFine = 10, 3, 15   // percent of the disk that is free
	renewWithin                = 21 * 24 * time.Hour
	clockAhead, clockFine      = 2 * time.Minute, time.Minute
	clockOff, clockNear        = 5 * time.Second, 2 * time.Second
	overdueBy                  = 2 * time.Minute
	failingSpan                = 15 * time.Minute
	failingMany                = 10 // operations in that time…
	failingPart                = 4  // …and one in so many
	failingMoves               = 1  // of moves, whatever their part: only operators and the cloud itself ask for them, and each was to spare a guest something
	failingLooked              = 5000
	slowPart                   = 2 // operations are slow that take longer than one part in so many of their time limit
	silentFor                  = time.Minute
	changingSpan               = time.Hour
	changingMany, changingFine = 6, 3 // times that another led, in that time
)

// mutedFor is how long a host that is mute is in any case none for an operator: it counts as lost before, or is heard again.
const mutedFor = time.Minute

// awayFor is how long a host may be without its shared storage: a file server that is started anew, or whose place another takes, is back by then.
const awayFor = time.Minute

// wrongFor is how long a host's clock may be wrong: one that has just been switched on is set right by then.
const wrongFor = time.Minute

// A looker is one round of all rules. It is pure.
type looker struct {
	tx    *state.Tx
	facts Facts
	found []finding
}

// look finds what holds now.
func look(tx *state.Tx, f Facts) []finding {
	l := &looker{tx: tx, facts: f}
	l.hosts()
	l.disks()
	l.keeping()
	for _, h := range host.CertificatesEnding(l.tx, l.facts.Now.Add(renewWithin)) {
		l.certificate("host "+h.Name, Certificate{Ends: h.CertificateEnds, Mend: "Its agent makes a new one a month ahead, and as soon as it runs again: see its log. " +
			"A machine that has lost its own joins again: unkai controller token --as " + h.Name + "."})
	}
	l.store()
	for _, c := range l.facts.Certificates {
		l.certificate(c.Name, c)
	}
	for i := range l.facts.Machines {
		l.machine(&l.facts.Machines[i])
	}
	l.operations()
	l.controllers()
	return l.found
}

// holds reports whether an alert is open.
func (l *looker) holds(rule, subject string) bool {
	_, open := alerts.Lookup(l.tx, "open", state.KeyOf(rule, subject))
	return open
}

func (l *looker) find(s Severity, rule, subject, format string, args ...any) {
	l.found = append(l.found, finding{rule, subject, fmt.Sprintf(format, args...), s})
}

func (l *looker) hosts() {
	fit := host.FitOf(l.tx)
	for h := range host.Table().Peek(l.tx, "name", state.Range{}) {
		if !h.Up() && compute.Missed(l.tx, h) {
			l.find(Critical, "host-lost", h.Name, "The host %s cannot be heard since %s. Its guests may run on.", h.Name, h.Lost.UTC().Format(time.RFC3339))
		}
		if h.Up() && !h.Mute.IsZero() && !h.Maintenance && l.facts.Now.Sub(h.Mute) >= mutedFor {
			l.find(Warning, "host-mute", h.Name, "The machine of host %s answers nothing since %s, though its agent can be heard: no router goes out through it. Something is wrong with its network.",
				h.Name, h.Mute.UTC().Format(time.RFC3339))
		}
		if since := h.Away.Since; h.Up() && !since.IsZero() && !h.Maintenance && l.facts.Now.Sub(since) >= awayFor {
			l.find(Critical, "storage-hangs", h.Name, "The host %s cannot reach the storage that it shares with others, since %s: %s. What its guests write waits, and their disks may fail. "+
				"Look at the file server, and at the mount on the host.", h.Name, since.UTC().Format(time.RFC3339), h.Away.Why)
		}
		if why := h.Clock.Words(); why != "" && h.Up() && !h.Maintenance && (l.facts.Now.Sub(h.Clock.Since) >= wrongFor || l.holds("clock-off", "host "+h.Name)) {
			l.find(Warning, "clock-off", "host "+h.Name, "The clock of host %s %s, beside that of the controller that it is in session with. Keep both with NTP: certificates are judged by it, "+
				"and guests that start there begin with it.", h.Name, why)
		}
		closed := ""
		if !fit.Has(h) {
			closed = " Until then no new guest is placed there."
		}
		if why := h.Apart(l.tx); why != "" {
			l.find(Critical, "host-apart", h.Name, "%s Until then guests there and elsewhere do not reach each other.%s", why, closed)
		}
		if why := h.Narrow(l.tx); why != "" {
			l.find(Warning, "host-wire", h.Name, "%s%s", why, closed)
		}
		if h.Ahead != (host.Mark{}) {
			l.find(Critical, "host-refuses", h.Name, "The host %s was told of a newer state, at %v, and refuses this one. After a restore, run unkai controller restored.", h.Name, h.Ahead)
		}
	}
}

// disks: of each host those that are its own, and of each storage that hosts share what the one says of it that finds the least room left.
func (l *looker) disks() {
	type storage struct {
		by   []string // who says so
		says host.Shortage
	}
	shared := map[string]*storage{}
	var order []string
	for h := range host.Table().Peek(l.tx, "name", state.Range{}) {
		if !h.Up() || h.Maintenance {
			continue
		}
		l.room("host "+h.Name, fmt.Sprintf("A disk of host %s, with its data directory or its guests' disks,", h.Name), h.Disk)
		id := h.Capacity.Storage
		if id == "" || h.SharedDisk.Room == host.Enough {
			continue
		}
		s := shared[id]
		if s == nil {
			s = &storage{}
			shared[id], order = s, append(order, id)
		}
		if s.by = append(s.by, h.Name); s.says.Room != host.Critical {
			s.says = h.SharedDisk
		}
	}
	for _, id := range order {
		s := shared[id]
		who := s.by[0]
		if n := len(s.by); n > 1 {
			who = fmt.Sprintf("%s and %d more", who, n-1)
		}
		l.room("storage "+id, fmt.Sprintf("The storage %s that hosts share (%s say so)", id, who), s.says)
	}
}

func (l *looker) room(subject, what string, s host.Shortage) {
	const mend = "Take guests, or what else lies there, elsewhere, or make it larger."
	switch s.Room {
	case host.Critical:
		l.find(Critical, "disk-full", subject, "%s %s. When it is full guests that write to it stand still. %s", what, s.Words(), mend)
	case host.Low:
		l.find(Warning, "disk-filling", subject, "%s %s. %s", what, s.Words(), mend)
	}
}

// keeping: what keeps guests from coming back, or a host from its work.
func (l *looker) keeping() {
	if lost, of, is := compute.Storm(l.tx); is {
		l.find(Critical, "storm", "", "%d of %d hosts cannot be heard, so that it looks as if this controller was cut off: nothing is fenced and nothing restarted elsewhere by itself. "+
			"Of a host that is surely off say so: unkai host fenced.", lost, of)
	}
	for h := range host.Table().Peek(l.tx, "name", state.Range{}) {
		if !h.Up() && !h.Dead() && h.Fencing.Trouble != "" {
			l.find(Critical, "fencing-failed", h.Name, "The lost host %s could not be fenced, so that nothing of it is restarted elsewhere: %s", h.Name, h.Fencing.Trouble)
		}
		if d := h.Drain; d != nil && d.Over() {
			l.find(Warning, "host-drained", h.Name, "The host %s is in maintenance and drained since %s, and %d servers stayed. When it is done: unkai host enable %s",
				h.Name, d.Drained.UTC().Format(time.RFC3339), len(d.Left), h.Name)
		}
	}
	if ids := compute.StrandedServers(l.tx); len(ids) > 0 {
		why := ""
		if srv, ok := compute.Servers().PeekOne(l.tx, ids[0]); ok && srv.Stranded != nil {
			why = srv.Stranded.Why
		}
		l.find(Critical, "restart-pending", "", "%d servers of dead hosts are to be restarted elsewhere and are not, the first is %s: %s", len(ids), ids[0], why)
	}
}

// over judges a percentage that is bad when it is high.
func (l *looker) over(rule, subject string, value, bound, fine int64) bool {
	return value >= bound || value >= fine && l.holds(rule, subject)
}

func (l *looker) store() {
	r := l.facts.Store
	if r.Quota <= 0 {
		return
	}
	used := r.Used * 100 / r.Quota
	switch {
	case l.over("store-full", "", used, filled, filled-5):
		l.find(Critical, "store-full", "", "The state's store is full, %d of %d MiB: users can make nothing new until something is deleted.", r.Used>>20, r.Quota>>20)
	case l.over("store-filling", "", used, filling, drained):
		l.find(Warning, "store-filling", "", "The state's store uses %d of %d MiB.", r.Used>>20, r.Quota>>20)
	}
}

func (l *looker) machine(m *Machine) {
	subject := m.about("")
	if d := m.Disk; d.Size > 0 {
		taken := 100 - d.Free*100/d.Size
		switch {
		case l.over("disk-full", subject, taken, 100-diskOut, 100-diskOut-2):
			l.find(Critical, "disk-full", subject, "The disk of the data directory of %s has %d MiB left. When it is full, no more changes can be stored there.", m.where(), d.Free>>20)
		case l.over("disk-filling", subject, taken, 100-diskLow, 100-diskFine):
			l.find(Warning, "disk-filling", subject, "The disk of the data directory of %s has %d of %d MiB left.", m.where(), d.Free>>20, d.Size>>20)
		}
	}
	for _, c := range m.Certificates {
		l.certificate(m.about(c.Name), c)
	}
	if a := m.Ahead; a >= clockAhead || a >= clockFine && l.holds("clock-ahead", subject) {
		l.find(Warning, "clock-ahead", subject, "The clock of %s was set back, or was ahead when changes were stored: the cloud's own is %v ahead of it, and goes a tenth slower until it has caught up.",
			m.where(), a.Truncate(time.Minute))
	}
	if off := m.Off.Abs(); off >= clockOff || off >= clockNear && l.holds("clock-off", subject) {
		l.find(Warning, "clock-off", subject, "The clock of %s is off by %v from that of the controller that leads. Keep both with NTP: if it leads next, the cloud's time goes on from there.",
			m.where(), m.Off.Truncate(time.Second/10))
	}
}

func (l *looker) certificate(subject string, c Certificate) {
	switch left := c.Ends.Sub(l.facts.Now); {
	case left <= 0:
		l.find(Critical, "certificate-ended", subject, "The certificate for %s was valid until %s. %s", subject, c.Ends.UTC().Format(time.RFC3339), c.Mend)
	case left <= renewWithin:
		l.find(Warning, "certificate-ends", subject, "The certificate for %s is valid until %s. %s", subject, c.Ends.UTC().Format(time.RFC3339), c.Mend)
	}
}

func (l *looker) controllers() {
	for _, s := range l.facts.Silences {
		if s.For >= silentFor || l.holds("controller-silent", s.Controller) {
			l.find(Critical, "controller-silent", s.Controller, "The controller %s has not answered for %v. If one more is lost nothing can be changed. Mend it, or dismiss it and let another join.",
				s.Controller, s.For.Truncate(time.Second))
		}
	}
	n, last := host.Leads(l.tx, l.facts.Now.Add(-changingSpan))
	if n >= changingMany || n >= changingFine && l.holds("leader-changes", "") {
		l.find(Warning, "leader-changes", "", "The lead has changed %d times within %v; %s leads now. Each time nothing can be changed for a second or two. Look for a slow disk, an overloaded machine, or a network that fails.",
			n, changingSpan, last)
	}
}

func (l *looker) operations() {
	late, first := 0, ""
	for o := range operation.Table().Peek(l.tx, "deadline", state.Range{}) {
		if l.facts.Now.Sub(o.Deadline) < overdueBy {
			break // those that follow end later
		}
		if late++; late == 1 {
			first = fmt.Sprintf("%s of %s %s", o.Verb, o.TargetKind, o.TargetID)
		}
	}
	if late > 0 {
		l.find(Critical, "operations-overdue", "", "%d operations go on though their time is over, the first is %s. There should be none: it is a mistake of ours.", late, first)
	}
	type what struct{ verb, target string }
	ended, failed, slow := map[what]int{}, map[what]int{}, map[what]int{}
	var order []what
	looked := 0
	for o := range operation.Table().Peek(l.tx, "ended", state.Range{Reverse: true}) {
		if looked++; looked > failingLooked || l.facts.Now.Sub(o.EndedAt) > failingSpan {
			break
		}
		w := what{o.Verb, o.TargetKind}
		if ended[w]++; ended[w] == 1 {
			order = append(order, w)
		}
		if o.Outcome == operation.Failed {
			failed[w]++
		}
		if o.Outcome == operation.Succeeded && o.EndedAt.Sub(o.CreatedAt)*slowPart > o.Deadline.Sub(o.CreatedAt) {
			slow[w]++
		}
	}
	for _, w := range order {
		subject := w.verb + " " + w.target
		bound := func(rule string) int {
			if l.holds(rule, subject) {
				return failingMany / 2
			}
			return failingMany
		}
		if slow[w] >= bound("operations-slow") && slow[w]*failingPart >= ended[w] {
			l.find(Warning, "operations-slow", subject, "Of %d operations %s that ended within %v, %d took more than half of the time that they had. What each waited for is at GET /v1/operations.",
				ended[w], subject, failingSpan, slow[w])
		}
		many, part := bound("operations-failing"), failingPart
		if movesServers(w.verb) {
			many, part = min(many, failingMoves), ended[w]
		}
		if failed[w] >= many && failed[w]*part >= ended[w] {
			l.find(Warning, "operations-failing", subject, "Of %d operations %s that ended within %v, %d failed. GET /v1/operations says why.", ended[w], subject, failingSpan, failed[w])
		}
	}
}

// movesServers reports whether operations of a verb take servers to other hosts.
func movesServers(verb string) bool {
	switch compute.Task(verb) {
	case compute.Migrating, compute.LiveMigrating, compute.Evacuating:
		return true
	}
	return false
}
