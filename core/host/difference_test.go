package host

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// crowded is a rig whose thing is as many lines as its size.
func crowded(t *testing.T) (*Hub, *clock, resource.ID) {
	h, c, id := rig(t, 0)
	h.Sources[0].Want = func(tx *state.Tx, host, id resource.ID) (any, bool) {
		th, ok := things.Find(tx, id)
		if !ok || th.HostID != host || th.Doomed {
			return nil, ok && th.Doomed
		}
		return lines(th.Size), true
	}
	return h, c, id
}

func lines(n int) []string {
	list := make([]string, n)
	for i := range list {
		sum := digestOf(fmt.Append(nil, i))
		list[i] = fmt.Sprintf("%x: line %d of many, each of which says something else", sum[:4], i)
	}
	slices.Sort(list) // one that is new does not stand last
	return list
}

// travel gives what is sent now as it is on the wire, and puts it together.
func travel(t *testing.T, s *Session, a *Assembler) (length int, body []byte) {
	t.Helper()
	<-s.Wake()
	d, err := s.Poll()
	if err != nil || d == nil {
		t.Fatalf("nothing is sent: %v", err)
	}
	text, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var arrived Delivery
	if err := json.Unmarshal(text, &arrived); err != nil {
		t.Fatal(err)
	}
	if err := a.Take(&arrived); err != nil {
		t.Fatal(err)
	}
	if len(arrived.Items) == 0 {
		return len(text), nil
	}
	return len(text), arrived.Items[0].Body
}

func TestALongBodyTravelsAsADifference(t *testing.T) {
	h, c, id := crowded(t)
	s := h.Connect(id)
	s.Differences()
	var a Assembler
	travel(t, s, &a)
	th := thing{Meta: resource.Meta{ID: resource.NewID(c.now, nil)}, HostID: id}
	for _, step := range []struct {
		what  string
		size  int
		bound int
	}{
		{"a short one", 10, 2_000},
		{"the first long one goes whole", 10_000, 1_000_000},
		{"one line more", 10_001, 12_000},
		{"and one", 10_002, 12_000},
		{"ten lines less", 9_992, 90_000},
		{"short again", 20, 2_000},
		{"long again, and whole", 5_000, 500_000},
	} {
		th.Size = step.size
		put(t, h, th)
		length, body := travel(t, s, &a)
		want, err := json.Marshal(lines(step.size))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(body, want) {
			t.Fatalf("%s: what arrives is not what was sent", step.what)
		}
		if length > step.bound {
			t.Errorf("%s: %d bytes were sent", step.what, length)
		}
		t.Logf("%s: %d bytes of %d", step.what, length, len(want))
	}
	th.Doomed = true
	put(t, h, th)
	if _, body := travel(t, s, &a); body != nil {
		t.Errorf("to be taken away: %s", body)
	}

	// A new session begins with everything, and one that cannot do better is sent everything.
	th.Doomed, th.Size = false, 9_000
	put(t, h, th)
	for _, able := range []bool{true, false} {
		s := h.Connect(id)
		if able {
			s.Differences()
		}
		var a Assembler
		if length, _ := travel(t, s, &a); length < 400_000 {
			t.Errorf("a session began with %d bytes", length)
		}
		th.Size++
		put(t, h, th)
		if length, _ := travel(t, s, &a); able != (length < 12_000) {
			t.Errorf("a host (able: %v) was sent %d bytes", able, length)
		}
	}
}

func TestADifferenceMakesTheBody(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	body := make([]byte, 50_000)
	for i := range body {
		body[i] = byte(r.IntN(256))
	}
	for range 200 {
		next := slices.Clone(body)
		for range r.IntN(4) {
			at := r.IntN(len(next))
			switch r.IntN(3) {
			case 0:
				next = slices.Insert(next, at, bytes.Repeat([]byte{byte(r.IntN(4))}, r.IntN(9000))...)
			case 1:
				next = slices.Delete(next, at, min(at+r.IntN(3000), len(next)))
			default:
				next[at]++
			}
		}
		d := differ(split(body), split(next), next)
		got, err := d.apply(body)
		if err != nil || !bytes.Equal(got, next) {
			t.Fatalf("%v: %d bytes, want %d", err, len(got), len(next))
		}
		if len(next) > 0 {
			body = next
		}
	}
}

func TestADifferenceThatDoesNotFitIsRefused(t *testing.T) {
	was := []byte("what was there before")
	for name, d := range map[string]Difference{
		"beyond the end":       {Parts: []Part{{From: 10, Size: 1000}}},
		"before the beginning": {Parts: []Part{{From: -1, Size: 2}}},
		"less than nothing":    {Parts: []Part{{From: 3, Size: -1}}},
		"of another body":      {Parts: []Part{{Size: 4}}, Sum: []byte("no")},
		"too far for a number": {Parts: []Part{{From: 1<<63 - 1, Size: 1<<63 - 1}}},
	} {
		var a Assembler
		key := Key{"thing", resource.NewID(time.Now(), nil)}
		a.bodies = map[Key]json.RawMessage{key: was}
		if err := a.Take(&Delivery{Items: []Item{{Key: key, Difference: &d}}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
