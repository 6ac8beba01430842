package wire

import "context"

type leavingKey struct{}

type leaving struct {
	context.Context
	asked func()
}

// WithLeaving has Leaving answer a context for a request whose context this is, and asked called when it does: the request is then one that
// ends by itself.
func WithLeaving(ctx, end context.Context, asked func()) context.Context {
	return context.WithValue(ctx, leavingKey{}, leaving{end, asked})
}

// Leaving ends when the server that a request came to is to stop. What would go on for as long as its client likes ends then, and all other
// requests are waited for.
func Leaving(ctx context.Context) context.Context {
	if l, ok := ctx.Value(leavingKey{}).(leaving); ok {
		l.asked()
		return l.Context
	}
	return context.Background()
}
