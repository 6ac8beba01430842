package reconcile

import "github.com/unkai-cloud/unkai/base/metrics"

var steps = metrics.Counter("unkai_reconcile_steps_total", "Steps of the controller's reconcilers, by task and by whether they failed. A failed one is tried again, later and later.",
	"task", "outcome")

func countStep(task string, err error) { steps.WithLabelValues(task, metrics.Outcome(err)).Inc() }

// Waiting is how many things are due, or will be at some time, by task.
func (r *Reconciler) Waiting() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	waiting := make(map[string]int, len(r.tasks))
	for _, task := range r.tasks {
		waiting[task.Name] = 0
	}
	for key := range r.queue.items {
		waiting[r.tasks[key.task].Name]++
	}
	return waiting
}
