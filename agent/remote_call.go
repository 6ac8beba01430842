package agent

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// answer connects a call to what it is for.
func (r *Remote) answer(ctx context.Context, at string, call host.Call) {
	if err := r.connect(ctx, cmp.Or(call.At, at), call); err != nil && ctx.Err() == nil {
		slog.WarnContext(ctx, "a call from the controller failed", "kind", call.Kind, "guest", call.Guest, "err", err)
	}
}

func (r *Remote) connect(ctx context.Context, at string, call host.Call) error {
	if r.Consoles == nil {
		return errors.New("this host's guests have no consoles")
	}
	ours, err := r.takes(ctx, call)
	if err != nil {
		return err
	}
	defer ours.Close()
	address := strings.TrimPrefix(at, "https://")
	conn, err := (&tls.Dialer{Config: r.tls}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintf(conn, "GET /host/v1/calls/%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: unkai-call\r\n\r\n", call.ID, address); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("the controller answers %s", res.Status)
	}
	return splice(ours, conn, in)
}

// takes is this host's end of a call.
func (r *Remote) takes(ctx context.Context, call host.Call) (io.ReadWriteCloser, error) {
	switch call.Kind {
	case host.ConsoleLogCall:
		log, err := r.Consoles.ConsoleLog(ctx, call.Guest, call.Max)
		return nothingBack{bytes.NewReader(log)}, err
	case host.WeighCall:
		weigher, ok := r.Consoles.(compute.Weigher)
		if !ok {
			return nil, errors.New("this host's driver cannot tell what a guest would take along")
		}
		b, err := weigher.Weigh(ctx, call.Guest, call.Where)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(b)
		return nothingBack{bytes.NewReader(text)}, err
	}
	return r.Consoles.Console(ctx, call.Guest, call.Kind)
}

// splice copies both ways until the guest's side ends or the controller goes.
func splice(ours io.ReadWriteCloser, conn net.Conn, in io.Reader) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(ours, in) // its end is the controller's going, not an error
		ours.Close()
	}()
	_, err := io.Copy(conn, ours)
	conn.Close()
	<-done
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// nothingBack is a finite answer: what is written to it goes nowhere.
type nothingBack struct{ *bytes.Reader }

func (nothingBack) Write(b []byte) (int, error) { return len(b), nil }
func (nothingBack) Close() error                { return nil }
