package trace

import (
	"context"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

const request = "req-01a22c28-0d5f-77f5-8f0b-d6cb43484851"

func TestWhatBecameOfARequestIsOneTrace(t *testing.T) {
	seen := tracetest.NewInMemoryExporter()
	stop := tell(sdk.WithSyncer(seen))
	defer stop(context.Background())
	_, root := Request(t.Context(), request, "POST")
	root.End()
	// On another machine, later.
	ctx, operation := Within(context.Background(), request, "create", time.Now())
	_, step := Within(ctx, request, "prepare", time.Now())
	step.Fail("no room")
	step.End()
	operation.EndAt(time.Now())
	if _, none := Within(context.Background(), "", "nobody's", time.Now()); none != nil {
		t.Error("a span of no request")
	}
	all := seen.GetSpans()
	if len(all) != 3 {
		t.Fatalf("%d spans", len(all))
	}
	is := map[string]tracetest.SpanStub{}
	for _, s := range all {
		is[s.Name] = s
		if got := s.SpanContext.TraceID().String(); got != "01a22c280d5f77f58f0bd6cb43484851" {
			t.Errorf("%s is in trace %s", s.Name, got)
		}
	}
	if is["create"].Parent.SpanID() != is["POST"].SpanContext.SpanID() || is["prepare"].Parent.SpanID() != is["create"].SpanContext.SpanID() {
		t.Error("they do not hang together")
	}
	if is["POST"].Parent.IsValid() {
		t.Error("the request has a parent")
	}
}

func TestNothingIsAllocatedWhenNobodyIsTold(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, s := Request(ctx, request, "POST")
		s.Note("status", "200")
		s.End()
		_, s = Within(ctx, request, "create", time.Time{})
		s.End()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
