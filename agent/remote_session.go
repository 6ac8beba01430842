package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/core/host"
)

// Connect begins a session.
func (r *Remote) Connect(ctx context.Context) (Session, error) {
	hello, err := r.Hello(ctx)
	if err != nil {
		return nil, err
	}
	hello.Differences = true
	if hello.Speaks.IsZero() {
		hello.Speaks = release.Own
	}
	r.goHome(time.Now())
	ctx, cancel := context.WithCancel(ctx)
	s := &remoteSession{remote: r, at: r.at(), said: hello, ctx: ctx, cancel: cancel}
	s.silence = time.AfterFunc(host.Expect, func() {
		r.elsewhere(s.at) // it may take connections and answer nothing
		cancel()
	})
	res, err := r.ask(ctx, s.at, http.MethodPost, "session", hello)
	if err != nil {
		s.silence.Stop()
		cancel()
		return nil, err
	}
	s.body, s.lines = res.Body, bufio.NewReaderSize(res.Body, 64<<10)
	s.belong()
	r.mu.Lock()
	r.session = s
	r.mu.Unlock()
	slog.InfoContext(ctx, "connected to the controller", "url", s.at)
	return s, nil
}

// remoteSession reads a session's lines. It ends when the controller is silent for too long.
type remoteSession struct {
	remote  *Remote
	at      string          // of the controller
	said    host.Hello      // by the host, as it began
	ctx     context.Context // of the request that the session is
	cancel  context.CancelFunc
	body    io.ReadCloser
	lines   *bufio.Reader
	silence *time.Timer
	left    atomic.Bool // to another controller

	mu    sync.Mutex
	leave *time.Timer // to where the host belongs; nil: it stays; guarded by mu
}

// belong has the session end in time if another controller is this host's own.
func (s *remoteSession) belong() {
	wait := s.remote.away(s.at, time.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leave != nil {
		s.leave.Stop()
	}
	if wait > 0 {
		s.leave = time.AfterFunc(wait, s.again)
	}
}

// again has the host begin another session, as it does at once when this one ends so.
func (s *remoteSession) again() {
	s.left.Store(true)
	s.cancel()
}

func (s *remoteSession) Next(ctx context.Context) (*host.Delivery, error) {
	for {
		line, err := s.lines.ReadBytes('\n')
		if err != nil && s.left.Load() {
			return nil, io.EOF
		}
		if err != nil {
			return nil, err
		}
		s.silence.Reset(host.Expect)
		var m host.Message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("read the session: %w", err)
		}
		if !m.Speaks.IsZero() {
			if err := release.Own.Meets(m.Speaks); err != nil {
				return nil, fmt.Errorf("the controller's release: %w", err)
			}
			s.remote.mu.Lock()
			s.remote.speaks = m.Speaks
			s.remote.mu.Unlock()
		}
		if m.Controllers != nil {
			if err := s.remote.learn(m.Controllers); err != nil {
				slog.WarnContext(ctx, "a new controller may not be found again", "err", err)
			}
			s.belong()
		}
		if m.Call != nil {
			go s.remote.answer(s.ctx, s.at, *m.Call) // ends with the call, or with the session's context
		}
		if m.Delivery != nil {
			return m.Delivery, nil
		}
	}
}

func (s *remoteSession) Close() error {
	s.silence.Stop()
	s.mu.Lock()
	if s.leave != nil {
		s.leave.Stop()
	}
	s.mu.Unlock()
	s.cancel()
	return s.body.Close()
}
