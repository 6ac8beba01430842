package etcd_test

import (
	"sync"
	"testing"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/enginetest"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

// store is an embedded server's directory, and whatever engines are open on it.
type store struct {
	dir     string
	first   *etcd.Engine
	engines []*etcd.Engine

	mu   sync.Mutex
	hook func(string) error // guarded by mu
}

func newStore(t *testing.T) enginetest.Store {
	s := &store{dir: t.TempDir()}
	t.Cleanup(func() { s.Restart(t) })
	return s
}

func (s *store) fault(step string) error {
	s.mu.Lock()
	hook := s.hook
	s.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(step)
}

func (s *store) Open(t *testing.T) state.Engine {
	t.Helper()
	if s.first == nil {
		var err error
		s.first, err = etcd.Open(t.Context(), etcd.Options{Dir: s.dir, Fault: s.fault})
		if err != nil {
			t.Fatal(err)
		}
		return s.first
	}
	e := s.first.Beside()
	s.engines = append(s.engines, e)
	return e
}

func (s *store) Restart(t *testing.T) {
	t.Helper()
	if s.first != nil {
		s.engines = append(s.engines, s.first)
	}
	for _, e := range s.engines {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	s.first, s.engines = nil, nil
}

func (s *store) Fault(hook func(string) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *store) Steps() []string { return etcd.Steps }

func (s *store) Compact(t *testing.T) {
	t.Helper()
	if err := s.first.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestEngine(t *testing.T) { enginetest.Test(t, newStore) }
