// Package trace tells an OpenTelemetry collector what became of a request: the request itself, the operation that it began, each of that one's steps,
// and each step of a host's agent for it, as spans of one trace. It is on when OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, is
// set, and costs a comparison otherwise.
//
// Nothing is carried along for it: a request's ID is "req-" and a UUID, and the trace's ID is that UUID. Whoever knows the request,
// on whichever machine and however much later, knows the trace, and the span of the request in it, whose ID is made from it.
package trace

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"

	ids "github.com/unkai-cloud/unkai/base/resource"
)

var tracer atomic.Pointer[otel.Tracer] // nil: nobody is told

// On reports whether anybody is told. Ask it before anything is put together for a span.
func On() bool { return tracer.Load() != nil }

// Start begins to tell, if the environment says where to. What it answers ends that, and sends what is left.
func Start(ctx context.Context, service, version string) (stop func(context.Context) error, err error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" || os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return func(context.Context) error { return nil }, nil
	}
	if name := os.Getenv("OTEL_SERVICE_NAME"); name != "" {
		service = name
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, err
	}
	about, err := resource.New(ctx, resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", service), attribute.String("service.version", version)), resource.WithFromEnv())
	if err != nil && !errors.Is(err, resource.ErrPartialResource) {
		return nil, err
	}
	return tell(sdk.WithBatcher(exporter), sdk.WithResource(about)), nil
}

// tell is Start with an exporter of one's own.
func tell(options ...sdk.TracerProviderOption) func(context.Context) error {
	provider := sdk.NewTracerProvider(append(options, sdk.WithIDGenerator(generator{}))...)
	t := provider.Tracer("github.com/unkai-cloud/unkai")
	tracer.Store(&t)
	return func(ctx context.Context) error {
		tracer.Store(nil)
		return provider.Shutdown(ctx)
	}
}

// A Span is something that took time. A nil one is nobody's business.
type Span struct{ span otel.Span }

// Request begins the span of a request.
func Request(ctx context.Context, request, name string) (context.Context, *Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, nil
	}
	ctx, span := (*t).Start(context.WithValue(ctx, requestKey{}, request), name, otel.WithSpanKind(otel.SpanKindServer), otel.WithNewRoot(),
		otel.WithAttributes(attribute.String("unkai.request", request)))
	return ctx, &Span{span}
}

// Within begins a span in what became of a request, wherever that was. nil if it is of no request.
func Within(ctx context.Context, request, name string, began time.Time) (context.Context, *Span) {
	t := tracer.Load()
	if t == nil {
		return ctx, nil
	}
	if !otel.SpanContextFromContext(ctx).IsValid() {
		id, ok := traceOf(request)
		if !ok {
			return ctx, nil
		}
		ctx = otel.ContextWithRemoteSpanContext(ctx, otel.NewSpanContext(otel.SpanContextConfig{
			TraceID: id, SpanID: rootOf(id), TraceFlags: otel.FlagsSampled, Remote: true}))
	}
	ctx, span := (*t).Start(ctx, name, otel.WithTimestamp(began), otel.WithAttributes(attribute.String("unkai.request", request)))
	return ctx, &Span{span}
}

// Note says something of it.
func (s *Span) Note(key, value string) {
	if s != nil && value != "" {
		s.span.SetAttributes(attribute.String("unkai."+key, value))
	}
}

// Fail says that it failed.
func (s *Span) Fail(why string) {
	if s != nil {
		s.span.SetStatus(codes.Error, why)
	}
}

// End ends it now.
func (s *Span) End() { s.EndAt(time.Now()) }

// EndAt ends it at a time.
func (s *Span) EndAt(at time.Time) {
	if s != nil {
		s.span.End(otel.WithTimestamp(at))
	}
}

type requestKey struct{}

// generator makes the IDs of a request's trace and span from its own; others are random.
type generator struct{}

func (generator) NewIDs(ctx context.Context) (otel.TraceID, otel.SpanID) {
	request, _ := ctx.Value(requestKey{}).(string)
	if id, ok := traceOf(request); ok {
		return id, rootOf(id)
	}
	id := otel.TraceID(ids.NewID(time.Now(), nil))
	return id, rootOf(id)
}

func (generator) NewSpanID(context.Context, otel.TraceID) otel.SpanID {
	id := ids.NewID(time.Now(), nil)
	return otel.SpanID(id[8:])
}

// traceOf is the trace of a request.
func traceOf(request string) (otel.TraceID, bool) {
	text, ok := strings.CutPrefix(request, "req-")
	if !ok {
		return otel.TraceID{}, false
	}
	id, err := ids.ParseID(text)
	return otel.TraceID(id), err == nil && !id.IsZero()
}

// rootOf is the request's own span in it.
func rootOf(id otel.TraceID) otel.SpanID {
	sum := sha256.Sum256(id[:])
	return otel.SpanID(sum[:8])
}
