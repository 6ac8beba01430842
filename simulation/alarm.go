package simulation

import "time"

// alarm is something to be called at a time.
type alarm struct {
	at time.Time
	f  func()
}

// after is time.AfterFunc on the world's clock.
func (w *world) after(d time.Duration, f func()) {
	w.alarms = append(w.alarms, alarm{w.clock.Add(d), f})
}

// ring calls what is due.
func (w *world) ring() {
	var later []alarm
	for _, a := range w.alarms {
		if a.at.After(w.clock) {
			later = append(later, a)
		} else {
			a.f()
		}
	}
	w.alarms = later
}
