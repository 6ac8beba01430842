package agent

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
)

// Mark tells which state the agent took in last.
func (a *Agent) Mark() host.Mark {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mark
}

// Deliver takes in what a controller wants. It is on disk when Deliver returns. What a full
// delivery does not name is held, or removed if it is nobody's. One of an older state than was
// taken in before is refused: its controller has forgotten what it had ordered.
func (a *Agent) Deliver(d host.Delivery, now time.Time) error {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	mark, c := a.mark, a.changeOf(d, now)
	a.mu.Unlock()
	if d.Full && d.Mark.Before(mark) {
		return fmt.Errorf("the controller's state is at %v, older than %v, which this host has taken in: "+
			"was a backup restored? `unkai controller restored` says so to the hosts", d.Mark, mark)
	}
	if a.store != nil && (len(c.Items) > 0 || len(c.Held) > 0 || c.Mark != (host.Mark{})) {
		if err := a.store.Save(c); err != nil {
			return fmt.Errorf("keep what is wanted: %w", err)
		}
	}
	a.install(d, c, now)
	a.poke()
	if d.Full && a.Word != nil {
		if err := a.Word.keep(); err != nil {
			slog.Warn("guests wait again for a controller's word if this agent starts anew", "err", err)
		}
	}
	return nil
}

// install has a delivery heeded.
func (a *Agent) install(d host.Delivery, c Change, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, item := range d.Items {
		if item.Request != "" {
			a.requests[item.Key] = item.Request
		}
		if item.Body == nil {
			delete(a.wants, item.Key)
			a.removing[item.Key] = true
		} else {
			a.wants[item.Key] = item.Body
			delete(a.removing, item.Key)
		}
		if !d.Full {
			a.queue.Add(item.Key, now)
		}
	}
	for _, item := range c.Items { // and what a full delivery does not name
		if item.Body == nil {
			delete(a.wants, item.Key)
			if !a.holds(item.Kind) {
				a.removing[item.Key] = true
			}
		}
	}
	a.hold(c.Held)
	if a.mark.Before(d.Mark) {
		a.mark = d.Mark
	}
	if d.Full {
		a.confirmed, a.current, a.arrival = true, true, d.Arrival
		clear(a.told)
		gone := slices.Collect(maps.Keys(a.removing))
		a.sort(gone)
		slices.Reverse(gone)
		for _, key := range gone {
			a.queue.Add(key, now)
		}
		a.all(now)
		if a.Word != nil {
			a.Word.give() // with what it is about, in one
		}
	}
}

// changeOf is what a delivery changes of what is kept. The caller holds mu.
func (a *Agent) changeOf(d host.Delivery, now time.Time) Change {
	c := Change{Held: map[host.Key]*Held{}}
	if a.mark.Before(d.Mark) {
		c.Mark = d.Mark
	}
	named := map[host.Key]bool{}
	for _, item := range d.Items {
		named[item.Key] = true
		was, wanted := a.wants[item.Key]
		if wanted != (item.Body != nil) || !bytes.Equal(was, item.Body) {
			c.Items = append(c.Items, item)
		}
		if _, held := a.held[item.Key]; held && item.Body != nil {
			c.Held[item.Key] = nil
		}
	}
	if !d.Full {
		return c
	}
	for key, body := range a.wants {
		if named[key] {
			continue
		}
		c.Items = append(c.Items, host.Item{Key: key})
		if a.holds(key.Kind) {
			c.Held[key] = &Held{Since: now, Body: body}
		}
	}
	return c
}

// Begin takes in that a session with a controller begins: what it wants is not known before its first delivery.
func (a *Agent) Begin() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = false
}

// Current reports whether a controller has told everything in the present session: only then is it known what is
// this host's, and the lease asked for.
func (a *Agent) Current() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Arrival is which of this host's arrivals what is wanted was told after.
func (a *Agent) Arrival() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.arrival
}
