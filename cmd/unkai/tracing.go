package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/trace"
	"github.com/unkai-cloud/unkai/core/operation"
)

// tellOperation tells of an operation that has ended, and of its steps, in the trace of the request that began it.
func tellOperation(ctx context.Context, o *operation.Operation) {
	ctx, span := trace.Within(ctx, o.RequestID, o.Verb+" "+o.TargetKind, o.CreatedAt)
	span.Note("operation", o.ID.String())
	span.Note("target", o.TargetID.String())
	span.Note("via", o.Via)
	for _, s := range o.Steps {
		_, part := trace.Within(ctx, o.RequestID, s.Name, s.StartedAt)
		if !s.HostID.IsZero() {
			part.Note("host", s.HostID.String())
		}
		end := s.EndedAt
		if end.IsZero() {
			end = o.EndedAt
		}
		if s.Outcome == operation.Failed {
			part.Fail(s.Message)
		}
		part.EndAt(end)
	}
	if o.Outcome != operation.Succeeded {
		span.Fail(string(o.Outcome) + ": " + o.Message)
	}
	span.EndAt(o.EndedAt)
}

// tracing begins to tell of what goes on, if the environment says where to. What it answers ends that.
func tracing(ctx context.Context, service string) (stop func(), err error) {
	end, err := trace.Start(ctx, service, version)
	if err != nil {
		return nil, fmt.Errorf("begin with traces: %w", err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if err := end(ctx); err != nil {
			slog.Warn("the last traces were not sent", "err", err)
		}
	}, nil
}

// withRequests has each line of the log say which request it is about, where that is known.
type withRequests struct{ slog.Handler }

func (h withRequests) Handle(ctx context.Context, r slog.Record) error {
	id := state.CauseOf(ctx).RequestID
	if id == "" {
		return h.Handler.Handle(ctx, r)
	}
	said := false
	r.Attrs(func(a slog.Attr) bool {
		said = a.Key == "request"
		return !said
	})
	if !said {
		r = r.Clone()
		r.AddAttrs(slog.String("request", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h withRequests) WithAttrs(attrs []slog.Attr) slog.Handler {
	return withRequests{h.Handler.WithAttrs(attrs)}
}
func (h withRequests) WithGroup(name string) slog.Handler {
	return withRequests{h.Handler.WithGroup(name)}
}
