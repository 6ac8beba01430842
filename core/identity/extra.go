package identity

import (
	"encoding/json"

	"github.com/unkai-cloud/unkai/base/fault"
)

// An Extra holds what owners keep with a thing for themselves, as JSON by name. It means nothing to us.
type Extra map[string]json.RawMessage

// Bounds of an Extra.
const (
	extraFields = 64
	extraBytes  = 16 << 10
)

func (e Extra) check() error {
	if len(e) > extraFields {
		return fault.Errorf(fault.Invalid, "More than %d additional attributes cannot be kept.", extraFields)
	}
	size := 0
	for name, value := range e {
		if len(name) > 255 {
			return fault.Errorf(fault.Invalid, "The name of an additional attribute must be at most 255 bytes.")
		}
		size += len(name) + len(value)
	}
	if size > extraBytes {
		return fault.Errorf(fault.Invalid, "Additional attributes must be at most %d bytes together.", extraBytes)
	}
	return nil
}
