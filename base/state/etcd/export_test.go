package etcd

import (
	"context"
	"log/slog"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

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

// ReplaceKV puts something between the engine and etcd.
func (e *Engine) ReplaceKV(with func(clientv3.KV) clientv3.KV) { e.client.KV = with(e.client.KV) }

// Abort ends every call as Close does, and leaves the server.
func (e *Engine) Abort() { e.close() }

// LogForTest warns as etcd does.
func LogForTest(message, name, value string) {
	zapTo(slog.Default()).Warn(message, zap.String(name, value))
}

// HardStop ends the server as a crash would: it hands its leadership to nobody.
func (e *Engine) HardStop() { e.server.etcd.Server.HardStop() }

// Candidates is how many stand for election; -1 when it cannot be known.
func (e *Engine) Candidates(ctx context.Context) int64 {
	all, err := e.client.Get(ctx, e.election.prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return -1
	}
	return all.Count
}
