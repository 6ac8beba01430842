// Package wire holds what every dialect needs of HTTP and none owns: request IDs, limits,
// recovery, the dry-run, as-of and idempotency headers. It renders no dialect's errors.
package wire

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/trace"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Headers of ours that work in every dialect.
const (
	PlanHeader = "Unkai-Plan"
	AsOfHeader = "Unkai-As-Of"
	OnceHeader = "Idempotency-Key"
)

type requestIDKey struct{}

// RequestID is the ID of the request that the context belongs to: "req-" and a UUID.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// NewRequestID makes one.
func NewRequestID() string { return "req-" + resource.NewID(time.Now(), nil).String() }

// Serve wraps the whole of one listener: it gives each request an ID, keeps a panic from
// ending the process, and logs what failed.
func Serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := NewRequestID()
		ctx := context.WithValue(r.Context(), requestIDKey{}, id)
		seen := &recorder{ResponseWriter: w}
		ctx = context.WithValue(ctx, connectionKey{}, seen)
		ctx, span := trace.Request(ctx, id, r.Method)
		start := time.Now()
		underWay.Inc()
		defer func() {
			underWay.Dec()
			defer seen.measure(r.Method, start)
			if span != nil {
				seen.tell(span, r)
			}
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler {
					panic(p)
				}
				panics.Inc()
				slog.ErrorContext(ctx, "a request panicked", "request", id, "method", r.Method, "path", r.URL.Path,
					"panic", p, "stack", string(debug.Stack()))
				if seen.status == 0 {
					http.Error(w, "internal error", http.StatusInternalServerError)
				}
			}
			slog.DebugContext(ctx, "request", "request", id, "method", r.Method, "path", r.URL.Path,
				"status", seen.status, "ms", float64(time.Since(start).Microseconds())/1000)
		}()
		next.ServeHTTP(seen, r.WithContext(ctx))
	})
}

// recorder remembers the status. Unwrap lets http.ResponseController and sendfile through.
type recorder struct {
	http.ResponseWriter
	status  int
	began   time.Time // when the answer did
	dialect string    // see Named
}

func (r *recorder) note(status int) {
	if r.status == 0 {
		r.status, r.began = status, time.Now()
	}
}

func (r *recorder) WriteHeader(status int) {
	r.note(status)
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(b []byte) (int, error) {
	r.note(http.StatusOK)
	return r.ResponseWriter.Write(b)
}

// ReadFrom keeps the kernel's copy from file to socket.
func (r *recorder) ReadFrom(src io.Reader) (int64, error) {
	r.note(http.StatusOK)
	if rf, ok := r.ResponseWriter.(io.ReaderFrom); ok {
		return rf.ReadFrom(src)
	}
	return io.Copy(struct{ io.Writer }{r.ResponseWriter}, src)
}

func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

func (r *recorder) Flush() {
	if f, ok := r.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

type connectionKey struct{}

// bodyWithin is how long a body may take that is read as a whole: nobody holds a request open by sending a letter now and then.
// What is streamed, as images are, takes as long as it takes.
var bodyWithin = 30 * time.Second

// hurry bounds the reading of a request's body in time, until the function it gives is called. That is for a body that was read
// to its end: of another the server reads on by itself before it answers.
func hurry(r *http.Request) (done func()) {
	seen, ok := r.Context().Value(connectionKey{}).(*recorder)
	if !ok || r.Body == nil || r.Body == http.NoBody {
		return func() {}
	}
	connection := http.NewResponseController(seen)
	if connection.SetReadDeadline(time.Now().Add(bodyWithin)) != nil {
		return func() {}
	}
	return func() {
		if err := connection.SetReadDeadline(time.Time{}); err != nil {
			slog.DebugContext(r.Context(), "the connection has ended", "err", err)
		}
	}
}

// Body reads a request's body of at most max bytes. A fault of kind TooLarge past that.
func Body(r *http.Request, max int64) ([]byte, error) {
	done := hurry(r)
	body, err := whole(r, max)
	if err == nil {
		done()
	}
	return body, err
}

// BodyWithin is Body for a request that is not below Serve; 30 seconds when within is 0.
func BodyWithin(w http.ResponseWriter, r *http.Request, max int64, within time.Duration) ([]byte, error) {
	connection := http.NewResponseController(w)
	if err := connection.SetReadDeadline(time.Now().Add(cmp.Or(within, bodyWithin))); errors.Is(err, http.ErrNotSupported) {
		return whole(r, max)
	} else if err != nil {
		return nil, err
	}
	body, err := whole(r, max)
	if err != nil {
		return nil, err // the deadline stays: nobody waits for the rest either
	}
	return body, connection.SetReadDeadline(time.Time{})
}

func whole(r *http.Request, max int64) ([]byte, error) {
	if r.ContentLength > max {
		return nil, tooLarge(max)
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, r.Body, max))
	if err != nil {
		var over *http.MaxBytesError
		if errors.As(err, &over) {
			return nil, tooLarge(max)
		}
		return nil, fault.Errorf(fault.Invalid, "The request body could not be read to its end.")
	}
	return body, nil
}

func tooLarge(max int64) error {
	return fault.Errorf(fault.TooLarge, "The request body is larger than %d bytes.", max)
}

// Context puts who caused the request, and our own headers, into its context. body is
// what the idempotency key must always come with; nil for a streamed one. Keys are remembered for those who
// have proved who they are: of nobody, one could get the answer that was another's.
func Context(r *http.Request, via string, userID, projectID resource.ID, body []byte) (context.Context, *state.Plan, error) {
	ctx := state.WithCause(r.Context(), state.Cause{UserID: userID, ProjectID: projectID, RequestID: RequestID(r.Context()), Via: via})
	if at := r.Header.Get(AsOfHeader); at != "" {
		var err error
		if ctx, err = asOf(ctx, at); err != nil {
			return nil, nil, err
		}
	}
	who := identity.ActorOf(ctx).Standing()
	if key := r.Header.Get(OnceHeader); key != "" && who != "" && r.Method != http.MethodGet && r.Method != http.MethodHead {
		if len(key) > 255 {
			return nil, nil, fault.InvalidField(OnceHeader, "must be at most 255 characters")
		}
		sum := sha256.New()
		io.WriteString(sum, r.Method+" "+r.URL.RequestURI()+"\n")
		sum.Write(body)
		ctx = state.WithOnce(ctx, &state.Once{Scope: who, Key: key, Hash: hex.EncodeToString(sum.Sum(nil))})
	}
	if want, _ := strconv.ParseBool(r.Header.Get(PlanHeader)); want && r.Method != http.MethodGet && r.Method != http.MethodHead {
		plan := new(state.Plan)
		return state.WithPlan(ctx, plan), plan, nil
	}
	return ctx, nil, nil
}

func asOf(ctx context.Context, at string) (context.Context, error) {
	if revision, err := strconv.ParseInt(at, 10, 64); err == nil {
		return state.WithAsOf(ctx, revision), nil
	}
	when, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return nil, fault.InvalidField(AsOfHeader, "must be a revision or a time as in RFC 3339")
	}
	return state.WithAsOfTime(ctx, when), nil
}

// WriteJSON writes a value with a status.
func WriteJSON(w http.ResponseWriter, status int, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(b.Len()))
	w.WriteHeader(status)
	_, err := w.Write(b.Bytes())
	return err
}

// BaseURL is the address under which the client reached us, without a trailing slash: links
// must carry it, whatever name or proxy it used.
func BaseURL(r *http.Request) string {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if p := r.Header.Get("X-Forwarded-Proto"); p == "https" || p == "http" {
		scheme = p
	}
	host := r.Host
	if strings.ContainsAny(host, "\"'<>\\ \t\r\n/") {
		host = "localhost"
	}
	return scheme + "://" + host
}
