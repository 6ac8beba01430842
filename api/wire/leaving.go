package wire

import "context"

type leavingKey struct{}

// WithLeaving has Leaving answer a context for every request below ctx: an http.Server's BaseContext.
func WithLeaving(ctx, leaving context.Context) context.Context {
	return context.WithValue(ctx, leavingKey{}, leaving)
}

// Leaving ends when the server that a request came to is to stop. What would go on for as long as its client likes ends then, and all other
// requests are waited for.
func Leaving(ctx context.Context) context.Context {
	if leaving, ok := ctx.Value(leavingKey{}).(context.Context); ok {
		return leaving
	}
	return context.Background()
}
