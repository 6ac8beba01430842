package state

import "fmt"

// Verify computes every index and tally of every table anew from the objects and compares:
// the recount that proves that nothing has drifted. It says what differs.
func Verify(tx *Tx) []string {
	var wrong []string
	for _, def := range tableDefs() {
		have := tx.tables[def.slot]
		want := newTableData(def)
		have.rows.Scan(func(r row) bool {
			if err := want.conflict(def, r.id, r.obj); err != nil {
				wrong = append(wrong, fmt.Sprintf("%s %s: %v", def.kind, r.id, err))
			}
			want.apply(def, r.id, nil, r.obj)
			return true
		})
		for i, index := range def.indexes {
			if index.tally != nil {
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
