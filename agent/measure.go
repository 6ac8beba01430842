package agent

import "github.com/unkai-cloud/unkai/base/metrics"

var (
	steps = metrics.Counter("unkai_agent_steps_total", "Steps with which this machine's agent made things real or took them away, by kind and by whether they failed.",
		"kind", "outcome")
	fetches    = metrics.Counter("unkai_agent_image_fetches_total", "Transfers of images to this machine's cache.", "outcome")
	fetched    = metrics.Counter("unkai_agent_image_fetched_bytes_total", "Bytes of images that came whole.").WithLabelValues()
	finds      = metrics.Counter("unkai_agent_image_finds_total", "Images that guests needed, by whether the cache had them (hit) or not (miss). A guest that waits asks again.", "found")
	freeParts  = metrics.Gauge("unkai_agent_disk_free_ratio", "How much of this machine's disks is free: of those with its data directory and its guests' disks (own), the fullest, and of the storage that it shares with other hosts (shared).", "disk")
	hits, miss = finds.WithLabelValues("hit"), finds.WithLabelValues("miss")
)

func count(kind string, err error) { steps.WithLabelValues(kind, metrics.Outcome(err)).Inc() }

func countFetch(bytes int64, err error) {
	fetches.WithLabelValues(metrics.Outcome(err)).Inc()
	if err == nil {
		fetched.Add(float64(bytes))
	}
}

func countFind(here, missing int) {
	hits.Add(float64(here))
	miss.Add(float64(missing))
}
