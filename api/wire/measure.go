package wire

import (
	"net/http"
	"strconv"
	"time"

	"github.com/unkai-cloud/unkai/base/metrics"
	"github.com/unkai-cloud/unkai/base/trace"
)

var (
	requests = metrics.Histogram("unkai_request_seconds",
		"Requests of clients, by dialect, method and class of status: how long until the answer began. A long answer, or a watch, is counted when it ends.",
		metrics.Quick, "dialect", "method", "status")
	underWay = metrics.Gauge("unkai_requests_under_way", "Requests of clients that are being answered now, watches and consoles among them.").WithLabelValues()
	panics   = metrics.Counter("unkai_request_panics_total", "Requests that ended in a mistake of ours. There should be none.").WithLabelValues()
)

// classes are the labels of a status.
var classes = [...]string{"2xx", "1xx", "2xx", "3xx", "4xx", "5xx"} // by its first digit; none was written: the server says 200

// methods are those that are told apart: a client may make up others.
var methods = map[string]string{"GET": "GET", "HEAD": "HEAD", "POST": "POST", "PUT": "PUT", "PATCH": "PATCH", "DELETE": "DELETE", "OPTIONS": "OPTIONS"}

// Named says whose requests these are, for what is measured of them.
func Named(dialect string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if seen, ok := r.Context().Value(connectionKey{}).(*recorder); ok {
			seen.dialect = dialect
		}
		next.ServeHTTP(w, r)
	})
}

// measure counts a request that has ended.
func (r *recorder) measure(method string, start time.Time) {
	if r.began.IsZero() {
		r.began = time.Now()
	}
	known, ok := methods[method]
	if !ok {
		known = "other"
	}
	dialect := r.dialect
	if dialect == "" {
		dialect = "none"
	}
	requests.WithLabelValues(dialect, known, classes[min(r.status/100, 5)]).Observe(r.began.Sub(start).Seconds())
}

// tell ends the span of a request.
func (r *recorder) tell(span *trace.Span, req *http.Request) {
	span.Note("dialect", r.dialect)
	span.Note("path", req.URL.Path)
	span.Note("status", strconv.Itoa(r.status))
	if r.status >= 500 {
		span.Fail(http.StatusText(r.status))
	}
	span.End()
}
