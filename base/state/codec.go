package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// asStored is how objects are spelled for the engine: JSON whose fields have their Go names. Zero
// fields are left out, for a start has to read all of it. Whatever else encoding/json does to
// a struct is kept, so that a plain reader finds what was written.
var asStored = jsonv2.JoinOptions(
	jsonv2.OmitZeroStructFields(true),
	jsonv2.Deterministic(true),
	jsonv2.FormatNilMapAsNull(true),
	jsonv2.FormatNilSliceAsNull(true),
	jsonv1.FormatByteArrayAsArray(true),
	jsonv1.FormatDurationAsNano(true),
	jsonv1.OmitEmptyWithLegacySemantics(true), // a pointer to a zero struct is not nothing
)

// encode spells an object for the engine. Text that is not UTF-8 is refused: it would come back as another
// text, and two names that differ might then be one.
func encode(v any) ([]byte, error) {
	value, err := jsonv2.Marshal(v, asStored)
	if err != nil {
		if _, err := jsonv2.Marshal(v, asStored, jsontext.AllowInvalidUTF8(true)); err == nil {
			return nil, fault.Errorf(fault.Invalid, "The request has text that is not UTF-8.").WithCode("not-utf8")
		}
	}
	return value, err
}

// A lower makes of an object's fields those of the version before, until the state is at a level.
type lower struct {
	level int
	down  func(map[string]any) error
}

// spell is encode in the newest version that whoever works at a level can read.
func (d *tableDef) spell(obj any, level int) (value []byte, version int, err error) {
	version = d.version
	if value, err = encode(obj); err != nil {
		return nil, 0, err
	}
	l, ok := d.lowers[version]
	if !ok || level >= l.level {
		return value, version, nil
	}
	fields, err := fieldsOf(value)
	if err != nil {
		return nil, 0, err
	}
	for ; ok && level < l.level; l, ok = d.lowers[version] {
		if err := l.down(fields); err != nil {
			return nil, 0, fmt.Errorf("spell version %d as the one before: %w", version, err)
		}
		version--
	}
	value, err = json.Marshal(fields)
	return value, version, err
}

func fieldsOf(value []byte) (fields map[string]any, err error) {
	whole := json.NewDecoder(bytes.NewReader(value))
	whole.UseNumber() // a float would round a large integer
	return fields, whole.Decode(&fields)
}

// decode reads what the engine kept, upgrading it to the present version.
func (d *tableDef) decode(version int, value []byte) (resource.Object, error) {
	if version > d.version {
		return nil, fmt.Errorf("%w: version %d is of a newer release; this one knows %d", ErrLevel, version, d.version)
	}
	if version < d.version {
		fields, err := fieldsOf(value)
		if err != nil {
			return nil, err
		}
		for ; version < d.version; version++ {
			if err := d.upgrades[version](fields); err != nil {
				return nil, fmt.Errorf("upgrade from version %d: %w", version, err)
			}
		}
		if value, err = json.Marshal(fields); err != nil {
			return nil, err
		}
	}
	obj := reflect.New(d.typ).Interface().(resource.Object)
	return obj, jsonv2.Unmarshal(value, obj, asStored)
}
