package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"

	"github.com/unkai-cloud/unkai/core/host"
)

// spellings are room for reports: most say again what the controller knows.
var spellings = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// observed reports what was seen of a thing.
func (a *Agent) observed(ctx context.Context, key host.Key, seen any) {
	room := spellings.Get().(*bytes.Buffer)
	defer spellings.Put(room)
	room.Reset()
	if err := json.NewEncoder(room).Encode(seen); err != nil {
		slog.ErrorContext(ctx, "could not encode a report", "kind", key.Kind, "id", key.ID, "err", err)
		return
	}
	a.tell(key, bytes.TrimSuffix(room.Bytes(), []byte{'\n'}), false)
}

// tell puts a report into the outbox unless the controller knows it, or even then. The text is copied.
func (a *Agent) tell(key host.Key, seen json.RawMessage, again bool) {
	a.mu.Lock()
	_, waiting := a.seen[key]
	if !waiting && !again && bytes.Equal(a.told[key], seen) {
		a.mu.Unlock()
		return
	}
	if !waiting {
		a.outbox = append(a.outbox, key)
	}
	a.seen[key] = bytes.Clone(seen)
	a.mu.Unlock()
	select {
	case a.report <- struct{}{}:
	default:
	}
}

// Reports takes up to max reports out of the outbox. Give them to Sent once the controller has
// them, or to Unsent if it could not be reached.
func (a *Agent) Reports(max int) []host.Observation {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := min(max, len(a.outbox))
	var reports []host.Observation
	for _, key := range a.outbox[:n] {
		reports = append(reports, host.Observation{Key: key, Seen: a.seen[key]})
		delete(a.seen, key)
	}
	a.outbox = slices.Delete(a.outbox, 0, n)
	return reports
}

// Sent remembers what the controller knows now.
func (a *Agent) Sent(reports []host.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range reports {
		if bytes.Equal(r.Seen, host.Gone) {
			delete(a.told, r.Key)
		} else {
			a.told[r.Key] = r.Seen
		}
	}
}

// Unsent puts reports back, unless newer ones wait.
func (a *Agent) Unsent(reports []host.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range reports {
		if _, newer := a.seen[r.Key]; !newer {
			a.seen[r.Key] = r.Seen
			a.outbox = append(a.outbox, r.Key)
		}
	}
}
