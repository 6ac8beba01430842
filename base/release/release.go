// Package release says which releases work together.
//
// A level counts what the cloud's state may hold and what its processes may say to each other. A release brings the newest level
// that it knows, and still works at the one before, so that it runs beside the release that it follows, in the same cloud. Which
// level a cloud is at stands in its state (see state.LevelOf) and is raised by its operator alone.
package release

import (
	"fmt"
	"strconv"
)

// What each level added. A level is added with the first change of a release that the release before would not understand.
//
//	1  the first cloud
//	2  several controllers, moves between hosts, traits and custom resource classes, alerts
const (
	oldest = 1
	newest = 2
)

// stamp, when a build sets it, stands for newest: a test's release of the future.
var stamp string

// A Span is the levels that a release works at.
type Span struct{ Oldest, Newest int }

// First is what is known of whoever says nothing: it is of the first release, which had no word for it.
var First = Span{1, 1}

// Own is this release's span.
var Own = own()

func own() Span {
	s := Span{oldest, newest}
	if n, err := strconv.Atoi(stamp); err == nil && n > newest {
		s.Newest = n
		s.Oldest = max(oldest, n-1)
	}
	return s
}

// IsZero reports whether nothing was said.
func (s Span) IsZero() bool { return s == Span{} }

// OrFirst is the span, or First when nothing was said.
func (s Span) OrFirst() Span {
	if s.IsZero() {
		return First
	}
	return s
}

// At reports why a release of this span cannot work at a level.
func (s Span) At(level int) error {
	switch {
	case level > s.Newest:
		return fmt.Errorf("the cloud was finalised at level %d, and this release works at %s: run a newer release", level, s)
	case level < s.Oldest:
		return fmt.Errorf("the cloud is at level %d, and this release works at %s: upgrade through the releases between", level, s)
	}
	return nil
}

// Meets reports why two releases cannot speak with each other.
func (s Span) Meets(other Span) error {
	other = other.OrFirst()
	if s.Oldest > other.Newest || other.Oldest > s.Newest {
		return fmt.Errorf("this release works at levels %s and the other at %s: they are too far apart to work together", s, other)
	}
	return nil
}

func (s Span) String() string {
	if s.Oldest == s.Newest {
		return strconv.Itoa(s.Oldest)
	}
	return fmt.Sprintf("%d to %d", s.Oldest, s.Newest)
}
