package agent

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

// A plug is a guest's console, of which the test holds the other end.
type plug struct{ conn net.Conn }

func (p plug) ConsoleLog(context.Context, resource.ID, int) ([]byte, error)   { return nil, nil }
func (p plug) Console(context.Context, resource.ID, string) (net.Conn, error) { return p.conn, nil }

// A console ends with the session in which it was asked for, as when this host was taken out of the cloud; with the controller's end,
// as when its server was deleted; and with the guest's.
func TestAConsoleEndsWithEitherEndAndTheSession(t *testing.T) {
	for _, name := range []string{"session", "controller", "guest"} {
		t.Run(name, func(t *testing.T) {
			taken := make(chan net.Conn, 1)
			web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: unkai-call\r\n\r\n")
				taken <- conn
			}))
			defer web.Close()
			ours, guest := net.Pipe()
			r := &Remote{Consoles: plug{ours}, tls: &tls.Config{RootCAs: web.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}}
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				r.answer(ctx, web.URL, host.Call{ID: "one", Kind: "serial"})
			}()
			controller := <-taken
			defer controller.Close()
			if _, err := io.WriteString(guest, "x"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(controller, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			map[string]func(){"session": leave, "controller": func() { controller.Close() }, "guest": func() { guest.Close() }}[name]()
			<-ended
			if n, err := guest.Read(make([]byte, 1)); err == nil {
				t.Errorf("the guest's end is open still: %d bytes", n)
			}
			if n, err := controller.Read(make([]byte, 1)); err == nil {
				t.Errorf("the controller's end is open still: %d bytes", n)
			}
		})
	}
}
