package agent

import (
	"context"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// Local is a Link to a controller in the same process, for simulated hosts.
type Local struct {
	Hub   *host.Hub
	Host  resource.ID
	Hello host.Hello
}

// Connect says hello and begins a session.
func (l *Local) Connect(ctx context.Context) (Session, error) {
	if err := host.Arrive(ctx, l.Hub.State, l.Host, l.Hello); err != nil {
		return nil, err
	}
	return localSession{l.Hub.Connect(l.Host)}, nil
}

// Observe reports.
func (l *Local) Observe(ctx context.Context, seen []host.Observation) error {
	return l.Hub.Observe(ctx, l.Host, seen)
}

type localSession struct{ *host.Session }

func (s localSession) Close() error {
	s.Session.Close()
	return nil
}
