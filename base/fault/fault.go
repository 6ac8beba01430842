// Package fault holds the errors that are for the person who asked. Each has a
// Kind, which a dialect turns into its own status and code, and a message that
// the person may read: it never holds another error's text, a path or a secret.
// Any other error is for us, and a dialect shows it only as "internal error".
package fault

import (
	"errors"
	"fmt"
)

// A Kind says what sort of thing went wrong. Dialects map kinds to statuses.
type Kind int

const (
	Internal     Kind = iota // not the caller's doing
	Invalid                  // the request can never succeed as it is
	Unauthorized             // who are you?
	Forbidden                // we know you, and you may not
	NotFound                 // no such thing, or none that you may see
	Conflict                 // the thing's present state, or another thing, is in the way
	Exists                   // a Conflict: the name or value is taken
	Exhausted                // no room: capacity, addresses
	OverQuota                // the owner's limit is reached
	TooLarge                 // the body or the thing is too large
	Unsupported              // understood, and not offered here
	Precondition             // a condition of the request did not hold
	Unavailable              // try again soon
	Gone                     // was there, is there no more; also: history no longer kept
)

// An Error is a fault. Make it with Errorf or InvalidField.
type Error struct {
	Kind    Kind
	Field   string // the request's field that is wrong, in the core's words; "" if none is
	Code    string // a stable word for dialects that distinguish more than Kind does, e.g. "subnet-in-use"; "" mostly
	Message string
	Details map[string]string // facts a dialect may show in its own form, e.g. "quota": "instances"
}

func (e *Error) Error() string { return e.Message }

// Errorf makes a fault of a kind with a message for the person who asked.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// InvalidField is a fault about one field; the message reads on from its name.
func InvalidField(field, format string, args ...any) *Error {
	return &Error{Kind: Invalid, Field: field, Message: field + " " + fmt.Sprintf(format, args...)}
}

// Missing is the fault for a thing that is not there, or that the caller may not see.
func Missing(noun string, name any) *Error {
	return Errorf(NotFound, "%s %v could not be found.", noun, name)
}

// WithCode gives the fault a code and returns it.
func (e *Error) WithCode(code string) *Error { e.Code = code; return e }

// With adds a detail and returns the fault.
func (e *Error) With(key, value string) *Error {
	if e.Details == nil {
		e.Details = map[string]string{}
	}
	e.Details[key] = value
	return e
}

// From finds the fault in an error's chain; nil if it holds none.
func From(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// KindOf is the kind of the fault in err's chain, or Internal.
func KindOf(err error) Kind {
	if e := From(err); e != nil {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is a fault of this kind.
func Is(err error, kind Kind) bool {
	e := From(err)
	return e != nil && e.Kind == kind
}
