package console

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// screens gives each console's other end to a test.
type screens chan net.Conn

func (screens) Weigh(context.Context, resource.ID, resource.ID, string) (compute.Burden, error) {
	return compute.Burden{}, nil
}

func (s screens) Console(context.Context, resource.ID, resource.ID, string) (net.Conn, error) {
	here, there := net.Pipe()
	s <- there
	return here, nil
}

func (s screens) ConsoleLog(context.Context, resource.ID, resource.ID, int) ([]byte, error) {
	return nil, nil
}

// opened is a cloud with a server, a listener for its consoles, and a token for the serial one.
func opened(t *testing.T, o Options) (base, token string, guests screens) {
	t.Helper()
	c := cloudtest.New(t, 1)
	id := c.Launch(compute.Launch{})[0]
	c.Settle()
	token, err := c.Compute.OpenConsole(c.Ctx, id, compute.Serial)
	if err != nil {
		t.Fatal(err)
	}
	guests = make(screens, 1)
	o.Compute, o.Hosts = c.Compute, guests
	server := httptest.NewServer(http.StripPrefix("/console", New(o)))
	t.Cleanup(server.Close)
	return server.URL + "/console/", token, guests
}

func get(t *testing.T, address string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept", "text/html,*/*;q=0.8")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(text)
}

// A browser that opens the address of a serial console gets a page; only what connects uses the token up.
func TestSerial(t *testing.T) {
	base, token, guests := opened(t, Options{})
	for range 2 {
		res, text := get(t, base+"websockify?token="+token)
		if res.StatusCode != 200 || res.Request.URL.Path != "/console/serial.html" || !strings.Contains(text, `src="serial.js"`) {
			t.Fatalf("%d %s: %s", res.StatusCode, res.Request.URL, text)
		}
		if res.Request.URL.Query().Get("token") != token {
			t.Error("the page does not know the token")
		}
		policy := res.Header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "connect-src 'self' ws://127.0.0.1:") ||
			res.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%v", res.Header)
		}
	}
	for name, kind := range map[string]string{"serial.js": "text/javascript; charset=utf-8", "serial.css": "text/css; charset=utf-8"} {
		if res, text := get(t, base+name); res.StatusCode != 200 || res.Header.Get("Content-Type") != kind || text == "" {
			t.Errorf("%s: %d %s", name, res.StatusCode, res.Header.Get("Content-Type"))
		}
	}
	address := "ws" + strings.TrimPrefix(base, "http") + "websockify?token=" + token
	socket, _, err := websocket.Dial(t.Context(), address, &websocket.DialOptions{Subprotocols: []string{"binary"}})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.CloseNow()
	guest := <-guests
	go guest.Write([]byte("login: "))
	if _, text, err := socket.Read(t.Context()); err != nil || string(text) != "login: " {
		t.Fatalf("%q %v", text, err)
	}
	if err := socket.Write(t.Context(), websocket.MessageBinary, []byte("root\r")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := guest.Read(got); err != nil || string(got) != "root\r" {
		t.Errorf("%q %v", got, err)
	}
	if _, res, err := websocket.Dial(t.Context(), address, nil); err == nil || res.StatusCode != http.StatusUnauthorized {
		t.Errorf("the token was used twice: %v %v", res, err)
	}
}

// A page elsewhere cannot make a browser connect here.
func TestForeignOrigin(t *testing.T) {
	base, token, guests := opened(t, Options{})
	_, res, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(base, "http")+"websockify?token="+token,
		&websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://evil.example"}}})
	if err == nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("%v %v", res, err)
	}
	<-guests
}

func TestNoVNC(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"share/vnc_lite.html": "<title>noVNC</title>", "share/core/rfb.js": "export default 1", "share/utils/launch.sh": "x", "secret": "x"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	base, token, _ := opened(t, Options{NoVNC: filepath.Join(dir, "share")})
	res, text := get(t, base+"vnc_lite.html?path="+url.QueryEscape("console/websockify?token="+token))
	if res.StatusCode != 200 || !strings.Contains(text, "noVNC") || !strings.Contains(res.Header.Get("Content-Security-Policy"), "connect-src 'self' ws://127.0.0.1:") {
		t.Errorf("%d %s %v", res.StatusCode, text, res.Header)
	}
	if res, text := get(t, base+"core/rfb.js"); res.StatusCode != 200 || !strings.Contains(res.Header.Get("Content-Type"), "javascript") || text != "export default 1" {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, text)
	}
	for _, path := range []string{"core/", "core", "vendor/x.js", "utils/launch.sh", "core/../../secret", "core/..%2f..%2fsecret", "core/%2e%2e/%2e%2e/secret", "vendor/%00"} {
		if res, text := get(t, base+path); res.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %d %s", path, res.StatusCode, text)
		}
	}
}

// Without noVNC the page says which package to install, and where other viewers connect.
func TestWithoutNoVNC(t *testing.T) {
	base, _, _ := opened(t, Options{NoVNC: t.TempDir()})
	res, text := get(t, base+"vnc_lite.html?path="+url.QueryEscape("console/websockify?token=x<script>"))
	if res.StatusCode != 200 || !strings.Contains(text, "apt-get install novnc") || !strings.Contains(text, "/console/websockify?token=x&lt;script&gt;") ||
		strings.Contains(text, "<script>") {
		t.Errorf("%d %s", res.StatusCode, text)
	}
}
