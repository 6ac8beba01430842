package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"

	"github.com/unkai-cloud/unkai/base/resource"
)

// Verify computes every index and tally of every table anew from the objects and compares:
// the recount that proves that nothing has drifted. It also spells every object for the engine and
// reads it back, for what a restart would change has drifted, too. It says what differs.
func Verify(tx *Tx) []string { return new(Verifier).Verify(tx) }

// A Verifier verifies a state again and again. Objects never change, so each is spelled once.
type Verifier struct {
	survived map[resource.Object]bool // as of the last time
}

// Verify is Verify of the state as tx shows it.
func (v *Verifier) Verify(tx *Tx) []string {
	var wrong []string
	survived := make(map[resource.Object]bool, len(v.survived))
	defer func() { v.survived = survived }()
	for _, def := range tableDefs() {
		have := tx.tables[def.slot]
		want := newTableData(def)
		have.rows.Scan(func(r row) bool {
			if err := want.conflict(def, r.id, r.obj); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s %s: %v", def.kind, r.id, err))
			}
			want.apply(def, r.id, nil, r.obj)
			if v.survived[r.obj] {
				survived[r.obj] = true
			} else if err := survives(def, r.obj); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s %s: %v", def.kind, r.id, err))
			} else {
				survived[r.obj] = true
			}
			return true
		})
		for i, index := range def.indexes {
			if have.tallies[i] != nil {
				wrong = append(wrong, differences(def.kind, index.name, have.tallies[i].Len(), want.tallies[i].Len(), func(each func(string, any)) {
					have.tallies[i].Scan(func(key string, s sum) bool {
						if is, ok := want.tallies[i].Get(key); !ok || is != s {
							each(key, fmt.Sprintf("has %v, a recount gives %v", s, is))
						}
						return true
					})
				})...)
				continue
			}
			if index.text != nil {
				wrong = append(wrong, differences(def.kind, index.name, have.texts[i].len(), want.texts[i].len(), func(each func(string, any)) {
					next, stop := iter.Pull2(func(yield func(resource.ID, string) bool) { want.texts[i].scan(resource.ID{}, false, yield) })
					defer stop()
					have.texts[i].scan(resource.ID{}, false, func(id resource.ID, text string) bool {
						if whose, is, _ := next(); whose != id || is != text {
							each(id.String(), fmt.Sprintf("has %q, a recount gives %q of %s", text, is, whose))
						}
						return true
					})
				})...)
				continue
			}
			wrong = append(wrong, differences(def.kind, index.name, have.places[i].Len(), want.places[i].Len(), func(each func(string, any)) {
				have.places[i].Scan(func(key string, _ struct{}) bool {
					if _, ok := want.places[i].Get(key); !ok {
						each(key, "stands in the index, but no object does")
					}
					return true
				})
			})...)
		}
	}
	return wrong
}

// survives checks that a restart would give the same object back. It compares by another
// spelling than the stored one, which names zero fields, too.
func survives(def *tableDef, obj resource.Object) error {
	value, err := encode(obj)
	if err != nil {
		return fmt.Errorf("cannot be stored: %w", err)
	}
	back, err := def.decode(def.version, value)
	if err != nil {
		return fmt.Errorf("cannot be read back: %w", err)
	}
	was, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("cannot be spelled: %w", err)
	}
	is, err := json.Marshal(back)
	if err != nil {
		return fmt.Errorf("cannot be spelled when read back: %w", err)
	}
	if !bytes.Equal(was, is) {
		at := 0
		for at < min(len(was), len(is)) && was[at] == is[at] {
			at++
		}
		at = max(0, at-40) // secrets may stand further on: show the place, not the object
		return fmt.Errorf("would come back different after a restart, near %.60q", was[at:])
	}
	return nil
}

func differences(kind, index string, have, want int, scan func(func(string, any))) []string {
	var wrong []string
	if have != want {
		wrong = append(wrong, fmt.Sprintf("%s: index %s has %d entries, a recount gives %d", kind, index, have, want))
	}
	scan(func(key string, what any) {
		wrong = append(wrong, fmt.Sprintf("%s: index %s, key %q %v", kind, index, key, what))
	})
	return wrong
}
