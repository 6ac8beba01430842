// Package console carries guests' consoles over WebSockets, as noVNC's websockify does: whoever
// has a one-time token from a dialect connects to /websockify?token=…, and speaks RFB (VNC) or the
// serial port's bytes in binary frames. For people with a browser it has pages that do so.
package console

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Options of New.
type Options struct {
	Compute *compute.Service // redeems tokens
	Hosts   compute.Reach    // reaches the guests
	NoVNC   string           // where noVNC's files are; Debian's place for them when ""
}

const (
	// longest is how long one connection may last, whatever is typed.
	longest = 12 * time.Hour
	// lookEvery is how often is looked whether a console may still be open. To look costs nothing; a host that was taken out of the
	// cloud, or cannot be heard, ends no connection by itself.
	lookEvery = time.Second
)

type server struct {
	Options
	every time.Duration // lookEvery
}

// New answers below /console, which the caller has stripped.
func New(o Options) http.Handler { return serve(o, lookEvery) }

func serve(o Options, every time.Duration) http.Handler {
	if o.NoVNC == "" {
		o.NoVNC = "/usr/share/novnc"
	}
	s := &server{o, every}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /websockify", s.connect)
	s.pages(mux)
	return mux
}

// connect redeems the token, which is then used up, and joins the two ends. A browser that opens the
// address itself, as that of a serial console, is shown the page for it instead, and the token stays good.
func (s *server) connect(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") == "" && strings.Contains(r.Header.Get("Accept"), "text/html") {
		// http.Redirect would make it absolute, and does not know of the prefix.
		w.Header().Set("Location", "serial.html?"+r.URL.RawQuery)
		w.WriteHeader(http.StatusSeeOther)
		return
	}
	ctx := identity.Internal(r.Context())
	opened, err := s.Compute.Redeem(ctx, r.URL.Query().Get("token"))
	if err != nil {
		refuse(w, r, err)
		return
	}
	guest, err := s.Hosts.Console(ctx, opened.HostID, opened.ServerID, opened.Kind)
	if err != nil {
		refuse(w, r, err)
		return
	}
	defer guest.Close()
	socket, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"binary"}, CompressionMode: websocket.CompressionDisabled})
	if err != nil {
		slog.DebugContext(ctx, "no websocket", "err", err) // Accept has answered
		return
	}
	defer socket.CloseNow()
	socket.SetReadLimit(1 << 20)
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	over, end := context.WithCancel(ctx)
	defer end()
	var looking sync.WaitGroup
	looking.Go(func() { s.cut(over, opened, guest) })
	join(websocket.NetConn(ctx, socket, websocket.MessageBinary), guest, func() {
		_ = socket.Close(websocket.StatusNormalClosure, "") // whoever does not answer in 5 s is not waited for
	})
	end()
	looking.Wait()
}

// cut ends the guest's side of a console that may not be open any more, until ctx ends.
func (s *server) cut(ctx context.Context, opened compute.Console, guest net.Conn) {
	look := time.NewTicker(s.every)
	defer look.Stop()
	for s.Compute.StaysOpen(opened) {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
	}
	slog.InfoContext(ctx, "a console is cut off", "server", opened.ServerID, "host", opened.HostID)
	guest.Close()
}

// join copies both ways until one side ends. bye tells the client before its connection is closed: that alone stops who reads of it, too, and may by
// that end it before anything was said.
func join(client, guest net.Conn, bye func()) {
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{client, guest}, {guest, client}} {
		go func() {
			io.Copy(way[0], way[1]) // its end is the end of a side, not an error
			done <- struct{}{}
		}()
	}
	<-done
	guest.Close()
	bye()
	client.Close()
	<-done
}

// refuse ends the connection too: a client that asked for an upgrade speaks no HTTP after that, and would wait. Nor
// would it read words, or take them for frames; they are for whoever asked by hand.
func refuse(w http.ResponseWriter, r *http.Request, err error) {
	status, message := http.StatusConflict, ""
	f := fault.From(err)
	switch {
	case f == nil && errors.Is(err, context.Canceled):
		return
	case f == nil:
		slog.ErrorContext(r.Context(), "a console could not be opened", "request", wire.RequestID(r.Context()), "err", err)
		status, message = http.StatusInternalServerError, "the console could not be opened"
	case f.Kind == fault.Unauthorized:
		status, message = http.StatusUnauthorized, f.Message
	case f.Kind == fault.Unavailable:
		status, message = http.StatusServiceUnavailable, f.Message
	default:
		message = f.Message
	}
	w.Header().Set("Connection", "close")
	if r.Header.Get("Upgrade") != "" {
		w.WriteHeader(status)
		return
	}
	http.Error(w, message, status)
}
