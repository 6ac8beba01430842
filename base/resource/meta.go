// Package resource names things: the identity every stored object has, whatever
// it is. It knows no domain and no storage.
package resource

import "time"

// Meta is what every stored object has in common. Embed it first.
type Meta struct {
	ID        ID
	ProjectID ID // the owner; zero for what belongs to the cloud itself
	Name      string

	CreatedAt time.Time // set by the first Put
	UpdatedAt time.Time // set by each Put
	Revision  int64     // of the transaction that wrote it last; set by each Put
}

// GetMeta gives the meta itself, to whoever holds only an Object.
func (m *Meta) GetMeta() *Meta { return m }

// An Object is a pointer to a struct that embeds Meta.
type Object interface{ GetMeta() *Meta }
