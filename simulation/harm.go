package simulation

import (
	"errors"
	"time"

	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/driver/sim"
)

// harm lets something go wrong.
func (w *world) harm() error {
	node := w.nodes[w.rng.IntN(len(w.nodes))]
	switch w.rng.IntN(14) {
	case 0:
		w.fault("agent crashed")
		node.restart()
	case 1:
		w.fault("controller crashed")
		return w.startControl()
	case 2:
		w.fault("link cut")
		node.cutUntil = w.clock.Add(time.Duration(1+w.rng.IntN(60)) * time.Second)
		if node.session != nil && w.rng.IntN(2) == 0 { // its kernel owes an answer before the session is over
			if err := w.control.hub.Observe(w.ctx, node.id, host.MuteReport(node.id, true)); err != nil {
				w.trace("%s: mute: %v", node.name, err)
			}
		}
		node.drop()
	case 3:
		w.fault("driver failing")
		node.failing, node.failUntil = 100+w.rng.IntN(900), w.clock.Add(time.Duration(1+w.rng.IntN(30))*time.Second)
	case 4:
		w.fault("driver slow")
		node.slow, node.slowUntil = time.Duration(w.rng.IntN(20))*time.Second, w.clock.Add(time.Minute)
	case 5:
		w.fault("machine rebooted")
		node.reboot()
	case 6:
		w.fault("link cut for long")
		node.cutUntil = w.clock.Add(time.Duration(60+w.rng.IntN(300)) * time.Second)
		node.drop()
		return w.pass(time.Duration(w.rng.IntN(300)) * time.Second)
	case 7:
		w.kill(node)
		return w.pass(time.Duration(w.rng.IntN(200)) * time.Second)
	case 8, 9:
		return w.disturb()
	case 10:
		w.replug(node)
	default:
		w.haunt(node.machine)
	}
	return nil
}

// haunt has a guest do something of its own.
func (w *world) haunt(m *sim.Machine) {
	ids, err := m.Guests().Present(w.ctx)
	if err != nil || len(ids) == 0 {
		return
	}
	id := ids[w.rng.IntN(len(ids))]
	switch w.rng.IntN(4) {
	case 0:
		w.fault("guest crashed")
		m.Crash(id)
	case 1:
		w.fault("guest powered itself off")
		m.ShutDown(id)
	case 2:
		w.fault("guest restarted by itself")
		m.Restart(id)
	case 3:
		w.fault("guest listens no more")
		m.Deafen(id)
	}
}

// commitFault is the engine's: now and then a commit fails before, or its answer after.
func (w *world) commitFault(step string) error {
	odds := 2
	if w.engine.now != "" {
		odds = 300
	}
	if w.calm || !w.chance(odds) {
		return nil
	}
	if w.engine.now != "" {
		w.result.Reached["the leader ended "+step+" it had written "+w.engine.now]++
	}
	w.fault("commit failed " + step)
	return errors.New("simulated: the disk failed " + step + " the commit")
}
