package metrics

import (
	"errors"
	"io"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

var (
	jobs    = Counter("unkai_test_jobs_total", "Jobs, by who asked.\nA \\ in two lines.", "who")
	depth   = Gauge("unkai_test_depth", "How deep.")
	waits   = Histogram("unkai_test_wait_seconds", "What was waited, by where.", Quick, "where")
	reading = From("unkai_test_room_bytes", "Room, by name.", "name")
)

// hostile label values, each of which ends a line, a value or a comment too early if it is not escaped.
var hostile = []string{"", "plain", `"`, `\`, `\"`, `a"} 1` + "\nevil_total 1", "two\nlines", "\r\t\x00", "# HELP x", "雲海", `\n`}

// scrape reads what a handler serves as a program would that knows the text format alone.
func scrape(t *testing.T, h http.Handler) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	text := w.Body.String()
	if w.Code != http.StatusOK {
		t.Fatalf("answered %d: %s", w.Code, text)
	}
	if kind := w.Header().Get("Content-Type"); !strings.HasPrefix(kind, "text/plain; version=0.0.4") {
		t.Errorf("the content type is %q", kind)
	}
	if !strings.HasSuffix(text, "\n") {
		t.Error("the last line does not end")
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("not in the text format: %v\n%s", err, text)
	}
	return families
}

// labeled are a family's metrics by their only label.
func labeled(t *testing.T, f *dto.MetricFamily) map[string]*dto.Metric {
	t.Helper()
	all := map[string]*dto.Metric{}
	for _, m := range f.GetMetric() {
		if len(m.Label) != 1 || all[m.Label[0].GetValue()] != nil {
			t.Fatalf("%s has %v", f.GetName(), m)
		}
		all[m.Label[0].GetValue()] = m
	}
	return all
}

func TestWhatIsServedIsWhatWasCounted(t *testing.T) {
	jobs.Reset()
	waits.Reset()
	for i, who := range hostile {
		jobs.WithLabelValues(who).Add(float64(i) + 0.5)
		waits.WithLabelValues(who).Observe(0.003)
		waits.WithLabelValues(who).Observe(1e9)
	}
	depth.WithLabelValues().Set(math.Inf(-1))
	room := Reader(func(tell func(*Reading, float64, ...string)) {
		for i, name := range hostile {
			tell(reading, float64(i), name)
		}
	})
	seen := scrape(t, Handler("1", `go"1\`, room))
	for _, f := range Families() {
		served := seen[f.Name]
		if served == nil || strings.ToLower(served.GetType().String()) != f.Type || served.GetHelp() != f.Meaning {
			t.Errorf("of %+v is served %v", f, served)
		}
	}
	if seen["evil_total"] != nil {
		t.Error("a label's value became a metric")
	}
	for i, who := range hostile {
		if got := labeled(t, seen["unkai_test_jobs_total"])[who].GetCounter().GetValue(); got != float64(i)+0.5 {
			t.Errorf("%q asked for %v jobs", who, got)
		}
		if got, ok := labeled(t, seen["unkai_test_room_bytes"])[who]; !ok || got.GetGauge().GetValue() != float64(i) {
			t.Errorf("%q has room %v", who, got)
		}
		h := labeled(t, seen["unkai_test_wait_seconds"])[who].GetHistogram()
		if h.GetSampleCount() != 2 || h.GetSampleSum() != 1e9+0.003 {
			t.Errorf("%q waited %v", who, h)
		}
		var bounds []float64
		for n, b := range h.GetBucket() {
			bounds = append(bounds, b.GetUpperBound())
			if n > 0 && b.GetCumulativeCount() < h.Bucket[n-1].GetCumulativeCount() {
				t.Errorf("%q: the buckets are not cumulative: %v", who, h)
			}
		}
		if !slices.Equal(bounds, append(slices.Clone(Quick), math.Inf(1))) {
			t.Errorf("%q: the buckets are %v", who, bounds)
		}
	}
	if got := seen["unkai_test_depth"].GetMetric(); len(got) != 1 || got[0].GetGauge().GetValue() != math.Inf(-1) {
		t.Errorf("the depth is %v", got)
	}
	build := seen["unkai_build_info"].GetMetric()
	if len(build) != 1 || build[0].Label[0].GetValue() != `go"1\` {
		t.Errorf("built %v", build)
	}
}

// One reader that tells nonsense takes nothing from the others.
func TestATextThatIsNoneIsShownAsFarAsItCanBe(t *testing.T) {
	seen := scrape(t, Handler("1", "go", func(tell func(*Reading, float64, ...string)) { tell(reading, 7, "a\xff\xfeb") }))
	if got := slices.Collect(maps.Keys(labeled(t, seen["unkai_test_room_bytes"]))); !slices.Equal(got, []string{"a\uFFFDb"}) {
		t.Errorf("shown as %q", got)
	}
}

func TestANameIsDeclaredOnce(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("two have the same name")
		}
	}()
	Gauge("unkai_test_depth", "Another.")
}

// What is counted while others read is there in the end, and never goes back.
func TestCountingAndReadingGoTogether(t *testing.T) {
	const counters, each = 8, 500
	jobs.Reset()
	h := Handler("1", "go")
	var wg sync.WaitGroup
	for range counters {
		wg.Go(func() {
			for range each {
				jobs.WithLabelValues("together").Inc()
				waits.WithLabelValues(`to"gether`).Observe(1)
				depth.WithLabelValues().Inc()
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			last := 0.0
			for range 20 {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
				parser := expfmt.NewTextParser(model.LegacyValidation)
				seen, err := parser.TextToMetricFamilies(w.Body)
				if err != nil {
					t.Errorf("while others count: %v", err)
					return
				}
				now := 0.0
				for _, m := range seen["unkai_test_jobs_total"].GetMetric() {
					now += m.GetCounter().GetValue()
				}
				if now < last {
					t.Errorf("a counter went from %v to %v", last, now)
				}
				last = now
			}
		})
	}
	wg.Wait()
	if got := labeled(t, scrape(t, h)["unkai_test_jobs_total"])["together"].GetCounter().GetValue(); got != counters*each {
		t.Errorf("of %d were counted %v", counters*each, got)
	}
}

func TestTheTableNamesUnits(t *testing.T) {
	at := slices.IndexFunc(Families(), func(f Family) bool { return f.Name == "unkai_test_wait_seconds" })
	want := "| `unkai_test_wait_seconds` | histogram | `where` | seconds | What was waited, by where. |\n"
	if got := Table(Families()[at : at+1]); !strings.HasSuffix(got, want) {
		t.Errorf("the table is %s", got)
	}
}

func TestOutcome(t *testing.T) {
	if Outcome(nil) != "succeeded" || Outcome(io.EOF) != "failed" || Outcome(errors.New(`"`)) != "failed" {
		t.Error("an outcome is one of two words")
	}
}
