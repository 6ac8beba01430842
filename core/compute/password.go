package compute

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// A Password is what a guest has told of the password that it gave its administrator, encrypted for its owner's key. The first word
// holds, so that nobody who comes into the guest later can put another in its place; a guest that is made anew has told nothing.
type Password struct {
	Text     string `secret:"true"`
	Rebuilds int    `json:",omitempty"` // of the guest that told it
}

// MaxPassword is how long a told password may be, in bytes.
const MaxPassword = 1020

// PasswordKind is the kind of a host's report that a guest has told its password.
const PasswordKind = "guest-password"

// told is the password that a server's guest has told; "" for none.
func (s *Server) told() string {
	if s.Password == nil || s.Password.Rebuilds != s.Rebuilds {
		return ""
	}
	return s.Password.Text
}

// passwordSource takes in the passwords that guests tell.
func passwordSource() host.Source { return host.Reports(PasswordKind, observePassword) }

func observePassword(tx *state.Tx, h, id resource.ID, report json.RawMessage) error {
	var text string
	if err := json.Unmarshal(report, &text); err != nil {
		return fmt.Errorf("decode a guest's password: %w", err)
	}
	srv, ok := servers.Find(tx, id)
	if !ok || srv.HostID != h || srv.told() != "" || text == "" {
		return nil
	}
	if len(text) > MaxPassword {
		return fmt.Errorf("the password that guest %s tells has %d bytes", id, len(text))
	}
	srv.Password = &Password{Text: text, Rebuilds: srv.Rebuilds}
	return servers.Put(tx, srv)
}

// ToldPassword is what a server's guest has told of its password, encrypted; "" for nothing.
func (s *Service) ToldPassword(ctx context.Context, id resource.ID) (string, error) {
	_, srv, err := s.Get(ctx, id)
	if err != nil {
		return "", err
	}
	return srv.told(), nil
}

// ForgetPassword lets a server's guest tell another password.
func (s *Service) ForgetPassword(ctx context.Context, id resource.ID) error {
	_, err := s.edit(ctx, id, func(_ *state.Tx, srv *Server) error { srv.Password = nil; return nil })
	return err
}
