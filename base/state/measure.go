package state

import (
	"errors"
	"time"

	"github.com/unkai-cloud/unkai/base/metrics"
)

var (
	commitSeconds = metrics.Histogram("unkai_state_commit_seconds", "How long the engine took to make a group of transactions durable.",
		metrics.Quick).WithLabelValues()
	commitFailures = metrics.Counter("unkai_state_commit_failures_total", "Commits that failed, by why: too-large ones are tried again in halves.", "why")
	transactions   = metrics.Counter("unkai_state_transactions_total", "Transactions that were made durable.").WithLabelValues()
)

// measure counts one commit of so many transactions.
func measure(began time.Time, txs int, err error) {
	commitSeconds.Observe(time.Since(began).Seconds())
	switch {
	case err == nil:
		transactions.Add(float64(txs))
	case errors.Is(err, ErrTooLarge):
		commitFailures.WithLabelValues("too-large").Inc()
	case errors.Is(err, ErrFenced):
		commitFailures.WithLabelValues("fenced").Inc()
	case errors.Is(err, ErrUncertain):
		commitFailures.WithLabelValues("uncertain").Inc()
	default:
		commitFailures.WithLabelValues("not-stored").Inc()
	}
}

// Waiting is how many transactions have been asked for and have not begun.
func (s *State) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}
