package host

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A host says what its clock shows whenever it asks for its lease, and the controller that is asked, which has its session, compares that with its own. A
// clock that is wrong says so at every time; written down is how large the mistake is, in steps.

// A ClockOff is that a host's clock is off from that of the controller that has its session.
type ClockOff struct {
	By    time.Duration // or more; positive if the host's is ahead
	Since time.Time     // when that was found
}

// clockSteps are how much a clock is off at least. A step ends when that is less than clockNear of it, in percent, so that it does not come and go.
var clockSteps = []time.Duration{5 * time.Second, 30 * time.Second, 5 * time.Minute, time.Hour, 24 * time.Hour}

const clockNear = 40

// ClockStep is the step at which a clock is off by so much, give or take some, when it was at another before; 0: it is right. Nothing is concluded from what may be
// the time that a question was under way.
func ClockStep(was, off, give time.Duration) time.Duration {
	surely, sign := off.Abs()-give, time.Duration(1)
	if off < 0 {
		sign = -1
	}
	wasSign := time.Duration(1)
	if was < 0 {
		wasSign = -1
	}
	still := off*wasSign + give // as it may yet be off the way that it was
	for _, step := range slices.Backward(clockSteps) {
		switch {
		case surely >= step:
			return step * sign
		case was.Abs() >= step && still >= step*clockNear/100:
			return step * wasSign
		}
	}
	return 0
}

// A Clock compares a host's clock with a controller's, from what a request says that follows an answer.
type Clock struct {
	Answered time.Time     // as the controller's clock was when it answered before
	Held     time.Duration // from when the host had that answer until it asked
	Asked    time.Time     // as the host's clock was then
	Received time.Time     // as the controller's clock was when it had the question
}

// Off is by how much the host's clock is off, give or take what the answer and the question were under way. false: what is said cannot be.
func (c Clock) Off() (off, give time.Duration, ok bool) {
	way := c.Received.Sub(c.Answered) - c.Held // of the two together
	if way < 0 && -way <= c.Held/100 {
		way = 0 // no two clocks go at the same pace
	}
	if c.Asked.IsZero() || c.Answered.IsZero() || c.Held < 0 || way < 0 {
		return 0, 0, false
	}
	return c.Asked.Sub(c.Received) + way/2, (way + 1) / 2, true
}

// ClockKind is the kind of the report that a host's clock is off, by which step, or right again. The controller that has its session makes it, in the host's name.
const ClockKind = "host-clock"

// ClockReport reports it.
func ClockReport(id resource.ID, by time.Duration) []Observation {
	seen, err := json.Marshal(by)
	if err != nil {
		panic(err) // numbers are always spelled
	}
	return []Observation{{Key: Key{ClockKind, id}, Seen: seen}}
}

// clocks takes such reports in.
func clocks() Source {
	return Reports(ClockKind, func(tx *state.Tx, host, _ resource.ID, seen json.RawMessage) error {
		var by time.Duration
		if err := json.Unmarshal(seen, &by); err != nil {
			return fmt.Errorf("decode how the clock of host %s is: %w", host, err)
		}
		return SetClock(tx, host, by)
	})
}

// SetClock records by which step a host's clock is off, or with 0 that it is right. One that is lost is not asked.
func SetClock(tx *state.Tx, id resource.ID, by time.Duration) error {
	if by != 0 && !slices.Contains(clockSteps, by.Abs()) {
		return fault.Errorf(fault.Invalid, "No clock is said to be off by %v.", by)
	}
	h, ok := hosts.Find(tx, id)
	if !ok || !h.Up() || h.Clock.By == by {
		return nil
	}
	if h.Clock = (ClockOff{}); by != 0 {
		h.Clock = ClockOff{by, tx.Now()}
	}
	return hosts.Put(tx, h)
}

// Words say it to an operator, to be put after the name of the clock, as it was when that was found; "" when it is right.
func (c ClockOff) Words() string {
	if c.By == 0 {
		return ""
	}
	way := "ahead"
	if c.By < 0 {
		way = "behind"
	}
	return fmt.Sprintf("is off: %s or more %s at %s", clockText(c.By.Abs()), way, c.Since.UTC().Format(time.RFC3339))
}

// clockText is a step without what is zero of it.
func clockText(step time.Duration) string {
	switch {
	case step%time.Hour == 0:
		return fmt.Sprintf("%d h", step/time.Hour)
	case step%time.Minute == 0:
		return fmt.Sprintf("%d min", step/time.Minute)
	}
	return fmt.Sprintf("%d s", step/time.Second)
}
