package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A watch is a stream of lines of JSON, one for each change. What comes into sight is created and
// what leaves it is deleted, whatever happened to it. Lines of one transaction follow each other; a
// line's "resume" is the revision from which a client that has read it can go on without a gap: it
// may then see changes again, and each line of "created" or "updated" has the whole object, so that
// this does no harm. Lines of type "alive" come while nothing changes, and a last one of type "end".

// watchAll watches several kinds at once, or all that the actor may read.
func (s *Server) watchAll(w http.ResponseWriter, r *http.Request) error {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return fault.Errorf(fault.Invalid, "The query cannot be read.").WithCode("invalid-query")
	}
	l := listing{since: -1}
	var wanted []*kind
	for name, values := range query {
		switch name {
		case "kinds":
			if wanted, err = s.kindsNamed(values); err != nil {
				return err
			}
		case "since", "all_projects":
			if len(values) > 1 {
				return fault.InvalidField(name, "must be given once").WithCode("invalid-value")
			}
			if err := l.set(nil, name, values[0], everybody); err != nil {
				return err
			}
		default:
			return fault.InvalidField(name, "is no parameter of this").WithCode("unknown-field")
		}
	}
	named := wanted != nil
	if !named {
		wanted = s.kinds
	}
	var kinds []*kind
	see := sight{}
	for _, k := range wanted {
		sees, err := k.maySee(r, l.all)
		if err == nil {
			kinds, see = append(kinds, k), sees
		} else if named || l.all && !identity.ActorOf(r.Context()).Admin() {
			return err
		}
	}
	if len(kinds) == 0 {
		return fault.Errorf(fault.Forbidden, "You may read nothing here: the token needs a project, and the role reader in it.")
	}
	return s.watch(w, r, kinds, see, l)
}

func (s *Server) kindsNamed(values []string) ([]*kind, error) {
	var named []*kind
	for _, list := range values {
		for _, path := range strings.Split(list, ",") {
			k := s.byPath[path]
			if k == nil {
				return nil, fault.InvalidField("kinds", "must name kinds by their paths, and %q is none", path).WithCode("unknown-kind")
			}
			if !slices.Contains(named, k) {
				named = append(named, k)
			}
		}
	}
	return named, nil
}

// A stream writes one watch.
type stream struct {
	*Server
	kinds []*kind
	see   sight
	where []condition // there is one kind, then
	out   *http.ResponseController
	w     http.ResponseWriter
	b     bytes.Buffer
	at    int64
	past  *state.Past // while it follows from far behind: the state at the event before the next
}

const writeWithin = 30 * time.Second

// watch streams until the client goes, its token ends, or it cannot follow.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, kinds []*kind, see sight, l listing) error {
	ctx := r.Context()
	present := s.State.Latest().Revision()
	switch {
	case r.Header.Get(wire.AsOfHeader) != "":
		return fault.Errorf(fault.Invalid, "The past cannot be watched: give since, and leave the as-of header out.").WithCode("invalid-value")
	case len(l.sort) > 0 || !l.marker.IsZero():
		return fault.Errorf(fault.Invalid, "A watch has no sort and no marker.").WithCode("invalid-value")
	case l.since > present:
		return fault.InvalidField("since", "is in the future; the newest revision is %d", present).WithCode("invalid-value")
	}
	if l.since < 0 {
		l.since = present
	}
	if err := s.State.Restored(ctx, l.since); err != nil {
		return err
	}
	watcher := s.State.Watch(l.since)
	events, err := watcher.Poll()
	if errors.Is(err, state.ErrCompacted) {
		setRevision(w, present)
		return compacted(present)
	} else if err != nil {
		return err
	}
	t := &stream{Server: s, kinds: kinds, see: see, where: l.where, out: http.NewResponseController(w), w: w, at: l.since}
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no")
	setRevision(w, present)
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	t.run(ctx, r, watcher, events)
	return nil
}

func compacted(present int64) error {
	return fault.Errorf(fault.Gone, "The changes since then are no longer kept. List again, and watch from there; the present revision is %d.", present).
		WithCode("compacted").With("revision", fmt.Sprint(present))
}

// run writes events until something ends it. An error of writing means that the client is gone.
func (t *stream) run(ctx context.Context, r *http.Request, watcher *state.Watcher, events []state.Event) {
	checked, said := t.Now(), time.Time{}
	for {
		if err := t.events(ctx, events); err != nil {
			if !errors.Is(err, errGone) {
				slog.ErrorContext(ctx, "watch failed", "request", wire.RequestID(ctx), "err", err)
				t.end("internal", "Something went wrong here.")
			}
			return
		}
		t.at = max(t.at, watcher.Revision())
		if now := t.Now(); t.b.Len() == 0 && now.Sub(said) >= t.Alive {
			fmt.Fprintf(&t.b, `{"type":"alive","revision":%d,"resume":%d}`+"\n", t.at, t.at)
		}
		if t.b.Len() > 0 {
			said = t.Now()
			if t.flush() != nil {
				return
			}
		}
		expires := t.see.actor.ExpiresAt
		wait := max(t.Alive-t.Now().Sub(said), 0)
		if left := expires.Sub(t.Now()); !expires.IsZero() && left < wait {
			wait = max(left, 0)
		}
		idle, stop := context.WithTimeout(ctx, wait)
		stays := context.AfterFunc(wire.Leaving(ctx), stop)
		next, err := watcher.Next(idle)
		stays()
		stop()
		switch {
		case ctx.Err() != nil:
			return
		case wire.Leaving(ctx).Err() != nil: // also when there is always more: what is next comes after resume
			t.end("stopping", "This controller stops. Watch again, from resume on.")
			return
		case errors.Is(err, state.ErrCompacted):
			t.end("compacted", "You were too slow to follow, and the changes are no longer kept. List again.")
			return
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			t.end("internal", "Something went wrong here.")
			return
		}
		// A token is good for as long as it would be with any other request: it can be revoked,
		// and its roles can change. What came before that was noticed has been in sight.
		if now := t.Now(); now.Sub(checked) >= time.Second || err != nil {
			checked = now
			a, err := t.actor(r)
			if err != nil || !sameRights(a, t.see.actor) || !expires.IsZero() && !now.Before(expires) {
				t.end("unauthorized", "The token has ended, or its roles have changed.")
				return
			}
		}
		events = next
	}
}

func sameRights(a, b *identity.Actor) bool {
	x, y := slices.Sorted(slices.Values(a.Roles)), slices.Sorted(slices.Values(b.Roles))
	return slices.Equal(x, y) && a.ProjectID == b.ProjectID
}

// end writes the last line. Who does not get it is gone.
func (t *stream) end(code, message string) {
	fmt.Fprintf(&t.b, `{"type":"end","revision":%d,"resume":%d,"code":%q,"message":%q}`+"\n", t.at, t.at, code, message)
	if err := t.flush(); err != nil {
		slog.Debug("the client of a watch is gone", "err", err)
	}
}

// errGone is that nothing can be written any more.
var errGone = errors.New("the client is gone")

func (t *stream) flush() error {
	// Not every writer has deadlines; those of tests have none.
	if err := t.out.SetWriteDeadline(time.Now().Add(writeWithin)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	_, err := t.w.Write(t.b.Bytes())
	t.b.Reset()
	if err == nil {
		err = t.out.Flush()
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errGone, err)
	}
	return nil
}

// events writes what of a batch is in sight.
func (t *stream) events(ctx context.Context, batch []state.Event) error {
	views := views{state: t.State, now: t.State.Latest(), past: t.past}
	if len(batch) > 0 {
		views.before = batch[0].Revision - 1
	}
	defer func(all []state.Event) {
		// Close behind the present a new one is cheaper than to keep one.
		if t.past = views.past; t.past != nil {
			if len(all) == 0 || views.now.Revision()-all[len(all)-1].Revision < nearby {
				t.past = nil
			} else {
				t.past.Redo(all)
			}
		}
	}(batch)
	for len(batch) > 0 {
		n := 1
		for n < len(batch) && batch[n].Revision == batch[0].Revision {
			n++
		}
		if err := t.transaction(ctx, batch[:n], &views); err != nil {
			return err
		}
		t.at = batch[0].Revision
		batch = batch[n:]
		if t.b.Len() > 64<<10 {
			if err := t.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// nearby is how many transactions behind the present a view of the past is made anew with each batch; more in tests.
var nearby int64 = 256

// A seen is one line to write.
type seen struct {
	kind    *kind
	what    string
	id      resource.ID
	object  resource.Object // nil: it is gone, or out of sight
	changed []string
}

// transaction writes the lines of one transaction: only the last lets a client resume after it.
func (t *stream) transaction(ctx context.Context, events []state.Event, v *views) error {
	var lines []seen
	for _, e := range events {
		for _, k := range t.kinds {
			if e.Kind == k.name {
				if line, ok := t.event(ctx, k, e, v); ok {
					lines = append(lines, line)
				}
			}
			lines = append(lines, t.movings(k, e, v)...)
		}
	}
	for i, line := range lines {
		resume := events[0].Revision
		if i < len(lines)-1 {
			resume--
		}
		if err := t.write(events[0], line, resume); err != nil {
			return err
		}
	}
	return nil
}

// event tells what a change is to whoever watches: an object is there for them if it is in sight
// and meets the conditions.
func (t *stream) event(ctx context.Context, k *kind, e state.Event, v *views) (seen, bool) {
	line := seen{kind: k, id: e.ID}
	was := e.Before != nil && k.holds(t.see, t.where, e.Before) && v.saw(ctx, k, t.see, e.Before)
	is := e.After != nil && k.holds(t.see, t.where, e.After) && k.sees(v.now, t.see, e.After)
	switch {
	case was && is:
		line.what, line.object = "updated", e.After
		line.changed = k.shape.changed(e.Before, e.After, k.levelOf(t.see, e.After))
	case is:
		line.what, line.object = "created", e.After
	case was:
		line.what = "deleted"
	default:
		return line, false
	}
	return line, true
}

// movings tells what comes into sight, or leaves it, because another object changed.
func (t *stream) movings(k *kind, e state.Event, v *views) []seen {
	if k.moved == nil || t.see.all {
		return nil
	}
	var lines []seen
	for _, m := range k.moved(e, t.see.plain, v.now) {
		o, there := k.find(v.now, m.id)
		if there && k.mine(t.see.plain, o) {
			continue // it was in sight, and is
		}
		in := there && k.sees(v.now, t.see, o)
		switch {
		case m.comes && in && k.holds(t.see, t.where, o):
			lines = append(lines, seen{kind: k, what: "created", id: m.id, object: o})
		case !m.comes && there && !in:
			lines = append(lines, seen{kind: k, what: "deleted", id: m.id})
		}
	}
	return lines
}

// views are the states before and after a batch of events, for kinds that one object shows
// another's of. Both are what the actor could have read itself.
type views struct {
	state  *state.State
	now    *state.Tx
	before int64
	past   *state.Past // made when it is needed; nil also when it is no longer kept
	tried  bool
}

// saw reports whether an object that is no more, or is no more like this, was in sight.
func (v *views) saw(ctx context.Context, k *kind, s sight, o resource.Object) bool {
	if k.sees(v.now, s, o) {
		return true
	}
	if k.moved == nil || s.all || k.mine(s.plain, o) {
		return false
	}
	if v.past == nil && !v.tried {
		v.tried = true
		if past, err := v.state.Past(ctx, v.before); err == nil {
			v.past = past
		}
	}
	return v.past != nil && k.sees(v.past.View(), s, o)
}

// write writes one line. The cause is told to those whose own project caused it.
func (t *stream) write(e state.Event, line seen, resume int64) error {
	b := &t.b
	fmt.Fprintf(b, `{"type":%q,"revision":%d,"resume":%d,"time":%q,"kind":%q,"id":%q,"object":`,
		line.what, e.Revision, resume, e.Time.UTC().Format(time.RFC3339Nano), line.kind.name, line.id)
	if line.object == nil {
		b.WriteString("null")
	} else if err := line.kind.shape.encode(b, line.object, line.kind.levelOf(t.see, line.object)); err != nil {
		return fmt.Errorf("encode %s %s: %w", line.kind.name, line.id, err)
	}
	if line.changed != nil {
		b.WriteString(`,"changed":`)
		if err := appendJSON(b, line.changed); err != nil {
			return err
		}
	}
	b.WriteString(`,"cause":`)
	if err := appendJSON(b, t.causeOf(e.Cause)); err != nil {
		return err
	}
	b.WriteString("}\n")
	return nil
}

// A cause is who caused a change, as far as it is told.
type cause struct {
	UserID    *resource.ID `json:"user_id"`
	ProjectID *resource.ID `json:"project_id"`
	RequestID *string      `json:"request_id"`
	Via       string       `json:"via"`
}

func (t *stream) causeOf(c state.Cause) cause {
	told := cause{Via: c.Via}
	a := t.see.actor
	if !a.Admin() && (c.ProjectID.IsZero() || c.ProjectID != a.ProjectID) {
		return told
	}
	if !c.UserID.IsZero() {
		told.UserID = &c.UserID
	}
	if !c.ProjectID.IsZero() {
		told.ProjectID = &c.ProjectID
	}
	if c.RequestID != "" {
		told.RequestID = &c.RequestID
	}
	return told
}
