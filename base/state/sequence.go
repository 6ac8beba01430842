package state

import "github.com/unkai-cloud/unkai/base/resource"

// A Sequence remembers the last number that was given to a kind of thing, for dialects whose names are small numbers: what was
// given once is never given again, though what had it is gone.
type Sequence struct {
	resource.Meta // its name is that of what is numbered

	Last int
}

var sequences = NewTable("sequence", Since[Sequence](2), Unique("name", func(s *Sequence) Key { return KeyOf(s.Name) }))

// NextNumber gives the next number of a sequence; it is above every one before, and above atLeast.
func NextNumber(tx *Tx, name string, atLeast int) (int, error) {
	s, ok := sequences.Lookup(tx, "name", KeyOf(name))
	if !ok {
		s = &Sequence{Meta: resource.Meta{ID: tx.NewID(), Name: name}}
	}
	s.Last = max(s.Last, atLeast) + 1
	return s.Last, sequences.Put(tx, s)
}
