package compute

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A ConsoleToken lets whoever holds it reach one console of one server, once and soon. Only
// its hash is kept.
type ConsoleToken struct {
	resource.Meta // ProjectID is the server's

	ServerID resource.ID
	HostID   resource.ID
	Kind     string // "vnc" or "serial"
	Hash     string
	Deadline time.Time
}

var consoleTokens = state.NewTable("console-token",
	state.Unique("hash", func(t *ConsoleToken) state.Key { return state.KeyOf(t.Hash) }),
	state.Index("deadline", func(t *ConsoleToken) state.Key { return state.KeyOf(t.Deadline) }),
	state.Index("server", func(t *ConsoleToken) state.Key { return state.KeyOf(t.ServerID) }),
)

// ConsoleTokens gives the auditor a look at every token.
func ConsoleTokens() *state.Table[ConsoleToken] { return consoleTokens }

// Kinds of consoles.
const (
	VNC    = "vnc"
	Serial = "serial"
)

// consoleWithin is how long a token may be used.
const consoleWithin = 10 * time.Minute

// OpenConsole makes a token for a console.
func (s *Service) OpenConsole(ctx context.Context, id resource.ID, kind string) (token string, err error) {
	if kind != VNC && kind != Serial {
		return "", fault.Errorf(fault.Unsupported, "There are no consoles of kind %s here.", kind).WithCode("console-kind")
	}
	var secret [24]byte
	if _, err := rand.Read(secret[:]); err != nil {
		return "", fmt.Errorf("make a console token: %w", err)
	}
	token = base64.RawURLEncoding.EncodeToString(secret[:])
	err = s.State.Update(ctx, func(tx *state.Tx) error {
		srv, err := serverFor(ctx, tx, "server.console", id)
		if err != nil {
			return err
		}
		if srv.HostID.IsZero() || srv.Doomed() || srv.Stage() == Building {
			return fault.Errorf(fault.Conflict, "Instance %s is not ready", id).WithCode("server-not-ready")
		}
		return consoleTokens.Put(tx, &ConsoleToken{Meta: resource.Meta{ID: tx.NewID(), ProjectID: srv.ProjectID},
			ServerID: id, HostID: srv.HostID, Kind: kind, Hash: hashToken(token), Deadline: tx.Now().Add(consoleWithin)})
	})
	return token, err
}

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// Reconcilers is the work that this domain has besides what hosts do.
func (s *Service) Reconcilers() []reconcile.Task {
	return []reconcile.Task{{
		Name: "console-token-expiry",
		All:  func(tx *state.Tx) []resource.ID { return consoleTokens.IDs(tx, "", "") },
		Touched: func(e state.Event) []resource.ID {
			if _, ok := e.After.(*ConsoleToken); ok {
				return []resource.ID{e.ID}
			}
			return nil
		},
		Step: s.expireConsoleToken,
	}, s.endTask(), s.rescueTask(), s.crashTask(), s.drainTask(), s.shelfTask(), s.patienceTask()}
}

func (s *Service) expireConsoleToken(ctx context.Context, id resource.ID) (reconcile.Next, error) {
	var next reconcile.Next
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		t, ok := consoleTokens.PeekOne(tx, id)
		if !ok {
			return nil
		}
		if next.After = t.Deadline.Sub(tx.Now()); next.After > 0 {
			return nil
		}
		return consoleTokens.Delete(tx, id)
	})
	return next, err
}

func dropConsoleTokens(tx *state.Tx, ids []resource.ID) error {
	for _, id := range ids {
		if err := consoleTokens.Delete(tx, id); err != nil {
			return err
		}
	}
	return nil
}

// A Console is what a token opened.
type Console struct {
	ServerID, HostID resource.ID
	Kind             string
}

// Redeem takes a token once and says what it opens. Whoever has it needs nothing else.
func (s *Service) Redeem(ctx context.Context, token string) (Console, error) {
	var c Console
	err := s.State.Update(ctx, func(tx *state.Tx) error {
		refused := fault.Errorf(fault.Unauthorized, "The console token is not valid, or no longer.")
		t, ok := consoleTokens.Lookup(tx, "hash", state.KeyOf(hashToken(token)))
		if !ok || !t.Deadline.After(tx.Now()) {
			return refused
		}
		srv, ok := servers.PeekOne(tx, t.ServerID)
		if !ok || srv.Doomed() {
			return refused
		}
		c = Console{srv.ID, srv.HostID, t.Kind}
		return consoleTokens.Delete(tx, t.ID)
	})
	return c, err
}

// StaysOpen reports whether what a token opened may stay so: its server is wanted, and on that host still, which is one of the cloud's.
func (s *Service) StaysOpen(c Console) bool {
	tx := s.State.Latest()
	srv, ok := servers.PeekOne(tx, c.ServerID)
	return ok && !srv.Doomed() && srv.HostID == c.HostID && host.Table().Has(tx, c.HostID)
}

// ConsoleLog is the newest part of what a server wrote to its serial port; max 0 is all that is kept.
func (s *Service) ConsoleLog(ctx context.Context, id resource.ID, max int) ([]byte, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	srv, err := serverFor(ctx, tx, "server.console", id)
	if err != nil {
		return nil, err
	}
	if srv.HostID.IsZero() || srv.Doomed() || !slices.Contains([]Stage{Running, Stopped, Frozen, Asleep, Failed, Unsettled}, srv.Stage()) {
		return nil, fault.Errorf(fault.Conflict, "Instance %s is not ready", id).WithCode("server-not-ready")
	}
	if s.config.Hosts == nil {
		return nil, unreachable()
	}
	log, err := s.config.Hosts.ConsoleLog(ctx, srv.HostID, id, max)
	if err != nil && fault.From(err) == nil {
		return nil, fmt.Errorf("read the console log of server %s from host %s: %w", id, srv.HostID, err)
	}
	return log, err
}
