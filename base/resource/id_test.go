package resource

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"
)

type source struct{ *rand.Rand }

func (s source) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(s.Uint32())
	}
	return len(b), nil
}

// valid reports whether an ID is a UUID of version 7 that reads back as itself.
func valid(id ID) bool {
	again, err := ParseID(id.String())
	return err == nil && again == id && id[6]>>4 == 7 && id[8]>>6 == 2
}

func TestIDsKeepTheirOrder(t *testing.T) {
	random := source{rand.New(rand.NewPCG(1, 2))}
	at := time.UnixMilli(1_700_000_000_000)
	var last ID
	tails := map[string]bool{}
	for n := range 100_000 {
		now := at.Add(time.Duration(n/70_000) * time.Millisecond)
		if n%10 == 0 {
			now = now.Add(-time.Second) // the clock was set back
		}
		id := NextID(last, now, random)
		switch {
		case !valid(id):
			t.Fatalf("%s is no UUID of version 7", id)
		case bytes.Compare(id[:], last[:]) <= 0:
			t.Fatalf("%s does not sort after %s", id, last)
		case tails[id.Tail()]:
			t.Fatalf("%s ends as another ID does", id)
		}
		tails[id.Tail()] = true
		last = id
	}
	if ahead := last.Time().Sub(at); ahead > 2*time.Millisecond {
		t.Errorf("100,000 IDs run %v ahead of the clock", ahead)
	}
}

func TestAFullCounterGoesOnInTheNextMillisecond(t *testing.T) {
	random := source{rand.New(rand.NewPCG(1, 2))}
	at := time.UnixMilli(1_700_000_000_000)
	full := NewID(at, random)
	for i := range full[6:] {
		full[6+i] = 0xff
	}
	full[6], full[8] = 0x7f, 0xbf
	next := NextID(full, at, random)
	if !valid(next) || !next.Time().Equal(at.Add(time.Millisecond)) {
		t.Errorf("after %s comes %s", full, next)
	}
}

func TestParseID(t *testing.T) {
	id := NewID(time.Now(), nil)
	for _, text := range []string{id.String(), id.Hex()} {
		if got, err := ParseID(text); err != nil || got != id {
			t.Errorf("%s reads as %s, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "x", id.String()[1:], id.String() + "0", id.Hex()[:31] + "g", "0" + id.String()[1:8] + "0" + id.String()[9:]} {
		if _, err := ParseID(text); err == nil {
			t.Errorf("%q is taken for an ID", text)
		}
	}
}
