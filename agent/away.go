package agent

import (
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Storage watches whether the storage that a machine shares with others can be reached.
type Storage struct {
	// Look says why it cannot, "" if it can or there is none. It may take a while, and never hangs itself.
	Look func(context.Context) (string, error)
	Host resource.ID

	told time.Time // whatever was told before
}

const lookAtStorage = 5 * time.Second

// Run tells the controllers until ctx ends.
func (s *Storage) Run(ctx context.Context, a *Agent) {
	tick := time.NewTicker(lookAtStorage)
	defer tick.Stop()
	for {
		if why, err := s.Look(ctx); err == nil { // else ctx has ended
			s.tell(a, why, time.Now())
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// tell puts it into the outbox if the controller does not know it; now and then it does so all the same, for while the host counted as lost it
// was not taken in.
func (s *Storage) tell(a *Agent, why string, now time.Time) {
	again := now.Sub(s.told) >= resyncEvery
	if again {
		s.told = now
	}
	seen, err := json.Marshal(onALine(why))
	if err != nil {
		panic(err) // texts are always spelled
	}
	a.tell(host.Key{Kind: host.StorageKind, ID: s.Host}, seen, again)
}

// onALine is a text as a controller takes it: printable, and not long.
func onALine(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	for len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "")
	}
	return text
}
