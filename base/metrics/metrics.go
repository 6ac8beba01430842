// Package metrics keeps what this process counts and measures, under names that do not change, and serves it as Prometheus
// reads it. Each room declares its own beside the code that moves them, as package variables; what is read off a state when it is asked
// for is declared here with From. It knows no domain, and decides nothing.
//
// A name is unkai_, the room, what is counted, and its unit (seconds, bytes) or _total for what only grows. Labels have few values, which
// no client chooses.
package metrics

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// A Family is one name, and what stands under it.
type Family struct {
	Name, Type string // "counter", "gauge" or "histogram"
	Labels     []string
	Unit       string // "" for a number of things
	Meaning    string
}

var declared struct {
	mu         sync.Mutex
	families   []Family
	collectors []prometheus.Collector
}

func declare(f Family, c prometheus.Collector) {
	declared.mu.Lock()
	defer declared.mu.Unlock()
	if slices.ContainsFunc(declared.families, func(is Family) bool { return is.Name == f.Name }) {
		panic("metrics: two are named " + f.Name)
	}
	declared.families = append(declared.families, f)
	if c != nil {
		declared.collectors = append(declared.collectors, c)
	}
}

// Families lists all that is declared in this program, by name.
func Families() []Family {
	declared.mu.Lock()
	defer declared.mu.Unlock()
	return slices.SortedFunc(slices.Values(declared.families), func(a, b Family) int { return cmp.Compare(a.Name, b.Name) })
}

// unitOf reads the unit off a name.
func unitOf(name string) string {
	name = strings.TrimSuffix(name, "_total")
	for _, unit := range []string{"seconds", "bytes"} {
		if strings.HasSuffix(name, "_"+unit) {
			return unit
		}
	}
	return ""
}

// Counter declares what only grows.
func Counter(name, meaning string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: meaning}, labels)
	declare(Family{name, "counter", labels, unitOf(name), meaning}, c)
	return c
}

// Gauge declares what goes up and down.
func Gauge(name, meaning string, labels ...string) *prometheus.GaugeVec {
	c := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: meaning}, labels)
	declare(Family{name, "gauge", labels, unitOf(name), meaning}, c)
	return c
}

// Quick are bounds in seconds of what an answer takes, Slow of what machines take.
var (
	Quick = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	Slow  = []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600}
)

// Histogram declares what is measured many times.
func Histogram(name, meaning string, bounds []float64, labels ...string) *prometheus.HistogramVec {
	c := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: meaning, Buckets: bounds}, labels)
	declare(Family{name, "histogram", labels, unitOf(name), meaning}, c)
	return c
}

// A Reading is a family whose values are read off something when they are asked for.
type Reading struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// From declares a gauge that is read when it is asked for: see Reader.
func From(name, meaning string, labels ...string) *Reading {
	declare(Family{name, "gauge", labels, unitOf(name), meaning}, nil)
	return &Reading{prometheus.NewDesc(name, meaning, labels, nil), prometheus.GaugeValue}
}

// A Reader reads values, and tells each.
type Reader func(tell func(r *Reading, value float64, labels ...string))

// Describe says nothing: what a reader tells is known only once it was asked.
func (Reader) Describe(chan<- *prometheus.Desc) {}

// Collect asks.
func (r Reader) Collect(out chan<- prometheus.Metric) {
	r(func(f *Reading, value float64, labels ...string) {
		for i := range labels { // one that is no text would cost the whole page
			labels[i] = strings.ToValidUTF8(labels[i], "\uFFFD")
		}
		m, err := prometheus.NewConstMetric(f.desc, f.kind, value, labels...)
		if err != nil {
			m = prometheus.NewInvalidMetric(f.desc, err)
		}
		out <- m
	})
}

var build = Gauge("unkai_build_info", "1, with the release of this process.", "version", "go")

// Handler serves all that is declared, what the readers tell, and what Go and the kernel say of this process.
func Handler(version, goVersion string, readers ...Reader) http.Handler {
	build.WithLabelValues(version, goVersion).Set(1)
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	declared.mu.Lock()
	registry.MustRegister(declared.collectors...)
	declared.mu.Unlock()
	for _, r := range readers {
		registry.MustRegister(r)
	}
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{})
}

// Table spells families as a table in Markdown.
func Table(families []Family) string {
	var b strings.Builder
	b.WriteString("| name | type | labels | unit | meaning |\n|---|---|---|---|---|\n")
	for _, f := range families {
		labels := make([]string, len(f.Labels))
		for i, l := range f.Labels {
			labels[i] = "`" + l + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", f.Name, f.Type, strings.Join(labels, ", "), f.Unit, f.Meaning)
	}
	return b.String()
}

// Outcome is the label for how something ended.
func Outcome(err error) string {
	if err != nil {
		return "failed"
	}
	return "succeeded"
}
