package console

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// A reach gets at one guest, which says hello and goes on for ever.
type reach struct {
	compute.Reach
	guest net.Conn
}

func (w *reach) Console(context.Context, resource.ID, resource.ID, string) (net.Conn, error) {
	ours, guest := net.Pipe()
	w.guest = guest
	go io.WriteString(guest, "hello")
	return ours, nil
}

// A console does not outlive what it is of, though neither its client nor the guest's host ends it.
func TestAConsoleIsCut(t *testing.T) {
	for name, end := range map[string]func(c *cloudtest.Cloud, id resource.ID){
		"when its server is to go": func(c *cloudtest.Cloud, id resource.ID) { c.Must(c.Compute.Delete(c.Ctx, id)) },
		"when its server is gone":  func(c *cloudtest.Cloud, id resource.ID) { c.Must(c.Compute.ForceDelete(c.Ctx, id)) },
		"when its server goes elsewhere": func(c *cloudtest.Cloud, id resource.ID) {
			c.Bury(c.HostOf(id))
			c.Must(c.Compute.Evacuate(c.Admin, id, "", ""))
		},
		"when its host is taken out": func(c *cloudtest.Cloud, id resource.ID) {
			on := c.Server(id).HostID
			c.Must(c.Compute.ForceDelete(c.Ctx, id))
			c.Must(c.Compute.DismissHost(c.Admin, on))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := cloudtest.New(t, 2)
			id := c.Launch(compute.Launch{})[0]
			c.Settle()
			token, err := c.Compute.OpenConsole(c.Ctx, id, compute.Serial)
			c.Must(err)
			guest := new(reach)
			web := httptest.NewServer(serve(Options{Compute: c.Compute, Hosts: guest}, time.Millisecond))
			defer web.Close()
			socket, _, err := websocket.Dial(t.Context(), web.URL+"/websockify?token="+token, &websocket.DialOptions{HTTPClient: http.DefaultClient})
			c.Must(err)
			defer socket.CloseNow()
			if _, got, err := socket.Read(t.Context()); err != nil || string(got) != "hello" {
				t.Fatalf("it says %q, %v", got, err)
			}
			for _, h := range c.Hosts {
				if h.ID == c.Server(id).HostID {
					c.Lose(h)
				}
			}
			end(c, id)
			if _, got, err := socket.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				t.Errorf("after it is %q, %v", got, err)
			}
			if n, err := guest.guest.Read(make([]byte, 1)); err == nil {
				t.Errorf("the guest's side goes on: %d bytes", n)
			}
		})
	}
}
