package simulation

import (
	"encoding/json"
	"maps"
	"sort"

	"github.com/unkai-cloud/unkai/agent"
	"github.com/unkai-cloud/unkai/core/host"
)

// memoryStore is an agent's disk.
type memoryStore struct {
	items map[host.Key]json.RawMessage
	held  map[host.Key]agent.Held
	mark  host.Mark
}

func newMemoryStore() *memoryStore {
	return &memoryStore{items: map[host.Key]json.RawMessage{}, held: map[host.Key]agent.Held{}}
}

func (m *memoryStore) Load() (agent.Kept, error) {
	k := agent.Kept{Held: maps.Clone(m.held), Mark: m.mark}
	for key, body := range m.items {
		k.Items = append(k.Items, host.Item{Key: key, Body: body})
	}
	sort.Slice(k.Items, func(i, j int) bool { return k.Items[i].ID.String() < k.Items[j].ID.String() })
	return k, nil
}

func (m *memoryStore) Save(c agent.Change) error {
	for _, item := range c.Items {
		if item.Body == nil {
			delete(m.items, item.Key)
		} else {
			m.items[item.Key] = item.Body
		}
	}
	for key, h := range c.Held {
		if h == nil {
			delete(m.held, key)
		} else {
			m.held[key] = *h
		}
	}
	if c.Mark != (host.Mark{}) {
		m.mark = c.Mark
	}
	return nil
}
