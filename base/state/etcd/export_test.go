package etcd

import "context"

// Beside makes a second engine on the same server, as another controller would have.
func (e *Engine) Beside() *Engine {
	return newEngine(e.options, e.server.client(), nil)
}

// Compact forgets the history so far.
func (e *Engine) Compact(ctx context.Context) error {
	head, err := e.client.Get(ctx, e.layout.head())
	if err != nil {
		return err
	}
	return e.compact(ctx, head.Header.Revision)
}
