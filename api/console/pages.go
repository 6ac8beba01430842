package console

import (
	"embed"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
)

//go:embed serial.html serial.css serial.js
var serial embed.FS

// viewer is the page of noVNC that connects to the address it is given as "path".
const viewer = "vnc_lite.html"

func (s *server) pages(mux *http.ServeMux) {
	own := guarded("default-src 'none'; style-src 'self'; script-src 'self'; connect-src %[1]s; frame-ancestors 'self'", http.FileServerFS(serial))
	for _, name := range []string{"serial.html", "serial.css", "serial.js"} {
		mux.Handle("GET /"+name, own)
	}
	// noVNC's page has its script in itself. It can be told to connect elsewhere: the policy keeps it here.
	theirs := guarded("default-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; connect-src %[1]s; frame-ancestors 'self'",
		http.HandlerFunc(s.noVNC))
	for _, pattern := range []string{"GET /" + viewer, "GET /core/", "GET /vendor/"} {
		mux.Handle(pattern, theirs)
	}
}

// guarded keeps a page from telling its address, which holds a token, and from connecting elsewhere.
func guarded(policy string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", fmt.Sprintf(policy, "'self' "+socketBase(r)))
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-cache")
		next.ServeHTTP(w, r)
	})
}

// socketBase is the address of our websockets. BaseURL lets nothing into it that would end a policy's source but ';' and ','.
func socketBase(r *http.Request) string {
	base := "ws" + strings.TrimPrefix(wire.BaseURL(r), "http")
	if strings.ContainsAny(base, ";,") {
		return ""
	}
	return base
}

// noVNC serves the viewer's files, no folders, and without them a page that says what is missing.
func (s *server) noVNC(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(path.Clean("/"+r.URL.Path), "/")
	info, err := os.Stat(filepath.Join(s.NoVNC, filepath.FromSlash(name)))
	switch {
	case err == nil && info.Mode().IsRegular() && fs.ValidPath(name):
		http.ServeFileFS(w, r, os.DirFS(s.NoVNC), name)
	case name == viewer:
		missing(w, r)
	default:
		http.NotFound(w, r)
	}
}

// missing tells a person how to get a viewer here, and where another one has to connect.
func missing(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, `<!doctype html><html lang="en"><title>VNC console</title>
<body style="font: 16px system-ui; margin: 3em; max-width: 50em"><h1>VNC console</h1>
<p>To see the console in this page, the controller needs the files of noVNC: the package <code>novnc</code> of Debian and Ubuntu
(<code>apt-get install novnc</code>). Then load this page again.</p>
<p>Any other viewer that speaks VNC over WebSocket can connect to this address. It can be used once, within ten minutes.</p>
<pre style="white-space: pre-wrap">%s</pre></body></html>
`, html.EscapeString(socketBase(r)+"/"+r.URL.Query().Get("path")))
}
