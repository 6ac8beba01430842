package etcd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// zapTo makes the logger that etcd wants, writing to ours what is at least a warning.
func zapTo(logger *slog.Logger) *zap.Logger {
	return zap.New(slogCore{logger: logger, LevelEnabler: zapcore.WarnLevel})
}

// harmless are the beginnings of warnings about what is meant so, or goes by itself:
// they are for debugging.
var harmless = []string{
	"Running http and grpc server on single port",  // it serves neither
	"exceeded recommended request limit",           // see maxRequestBytes
	"simple token is not cryptographically signed", // nobody can connect
	"failed to lock file",                          // of the log, in use by this very process
	"retrying of unary invoker failed",             // the caller has the error, too
	"failed to publish local member",               // it is tried again without a pause; whoever waits says that it did in vain
	// A new member has no version on disk until its first write-back.
	"Failed to detect schema version",
	"failed to update storage version",
}

func isHarmless(message string) bool {
	for _, beginning := range harmless {
		if strings.HasPrefix(message, beginning) {
			return true
		}
	}
	// A start may come back to where the member was just joining its own cluster.
	return strings.Contains(message, "cannot campaign at term")
}

// isOurEnd reports whether a field says that what etcd listened at was closed: as the process ends, by us.
func isOurEnd(f zapcore.Field) bool {
	err, ok := f.Interface.(error)
	return ok && errors.Is(err, net.ErrClosed)
}

// publishAgain is how long a new member waits before it makes itself known again. It does that in a loop without a pause while it
// has much to take in, and would take the processor, and the disk of the log, from that.
const publishAgain = 100 * time.Millisecond

type slogCore struct {
	zapcore.LevelEnabler
	logger *slog.Logger
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.LevelEnabler, slog.New(c.logger.Handler().WithAttrs(attrsOf(fields)))}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case isHarmless(e.Message), slices.ContainsFunc(fields, isOurEnd):
		level = slog.LevelDebug
	case e.Level > zapcore.WarnLevel:
		level = slog.LevelError
	}
	if strings.HasPrefix(e.Message, "failed to publish local member") {
		time.Sleep(publishAgain)
	}
	c.logger.LogAttrs(context.Background(), level, "etcd: "+e.Message, attrsOf(fields)...)
	return nil
}

func (c slogCore) Sync() error { return nil }

func attrsOf(fields []zapcore.Field) []slog.Attr {
	var attrs []slog.Attr
	for _, f := range fields {
		// One encoder for each field, so that their order is kept.
		enc := zapcore.NewMapObjectEncoder()
		f.AddTo(enc)
		for name, value := range enc.Fields {
			attrs = append(attrs, slog.Any(name, value))
		}
	}
	return attrs
}
