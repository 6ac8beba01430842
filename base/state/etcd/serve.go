package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
)

// lookEvery is how often a member looks whether it leads, beside being told.
const lookEvery = 50 * time.Millisecond

// Serve keeps a state in the role of its etcd member, until ctx ends or something fails for good: it leads while the member
// does, and follows otherwise. lead runs meanwhile, in a context that ends with the leadership, and is waited for.
func Serve(ctx context.Context, e *Engine, s *state.State, lead func(context.Context)) error {
	for {
		if err := e.follow(ctx, s); err != nil {
			return err
		}
		if err := e.lead(ctx, s, lead); err != nil {
			return err
		}
	}
}

// leads reports whether the member leads, and does not hand that over.
func (e *Engine) leads() bool { return e.Leader() == e.Self() && !e.handing.Load() }

// follow returns when the member leads.
func (e *Engine) follow(ctx context.Context, s *state.State) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	done := make(chan error, 1)
	go func() {
		for wait := lookEvery; ; wait = min(2*wait, time.Second) {
			began := time.Now()
			err := s.Follow(ctx)
			if ctx.Err() != nil || s.Broken() != nil {
				done <- err
				return
			}
			// The watch ended, as it does when the member has to be sent everything anew. What is here stays, and goes on.
			slog.WarnContext(ctx, "following the state was interrupted", "err", err)
			if time.Since(began) > time.Second { // as when another begins to lead, which is soon over
				wait = lookEvery
			}
			select {
			case <-time.After(wait):
			case <-ctx.Done():
			}
		}
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-e.LeaderChanged():
		case err := <-done:
			return errors.Join(context.Cause(ctx), err)
		}
		if e.leads() {
			stop(nil)
			<-done
			return nil
		}
	}
}

// lead makes the state the writer for as long as the member leads.
func (e *Engine) lead(ctx context.Context, s *state.State, run func(context.Context)) error {
	if err := s.Lead(ctx); err != nil {
		if ctx.Err() != nil || s.Broken() != nil {
			return fmt.Errorf("lead: %w", err)
		}
		slog.WarnContext(ctx, "could not take the lead", "err", err)
		return nil
	}
	if e.election != nil { // what is known now, and was not when it stood, is of account
		if err := e.election.may(ctx); err != nil {
			s.Resign()
			slog.WarnContext(ctx, "elected, and not taking the lead", "err", errors.Join(err, e.election.resign(ctx)))
			return nil
		}
	}
	slog.InfoContext(ctx, "this controller leads", "revision", s.Latest().Revision())
	led, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		run(led)
	}()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for e.leads() && ctx.Err() == nil {
		select {
		case <-tick.C:
			continue
		case <-s.Deposed():
		case <-s.Stopped():
		case <-ctx.Done():
		}
		break
	}
	if e.handing.Load() && ctx.Err() == nil {
		s.Retire() // HandOver waits for the same: what was accepted is to be stored
	} else {
		s.Resign()
	}
	stop()
	<-done
	slog.InfoContext(ctx, "this controller no longer leads", "revision", s.Latest().Revision())
	if err := s.Broken(); err != nil {
		return err
	}
	return ctx.Err()
}
