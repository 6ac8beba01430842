package wire

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

// echo answers what it read of a body, or the kind of the fault.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := Body(r, 10)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprintf(w, "%d %s", fault.KindOf(err), err)
		return
	}
	fmt.Fprintf(w, "%s %s", RequestID(r.Context())[:4], body)
}

// speak sends raw bytes and gives the first answer; wait holds the connection open without a word.
func speak(t *testing.T, address, text string, wait bool) (int, string) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if !wait {
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}

func TestBody(t *testing.T) {
	was := bodyWithin
	bodyWithin = 50 * time.Millisecond
	defer func() { bodyWithin = was }()
	server := httptest.NewServer(Serve(http.HandlerFunc(echo)))
	defer server.Close()
	address := strings.TrimPrefix(server.URL, "http://")
	const head = "POST / HTTP/1.1\r\nHost: x\r\n"
	for name, c := range map[string]struct {
		text   string
		wait   bool
		status int
		want   string
	}{
		"a body":                        {head + "Content-Length: 5\r\n\r\nhello", true, 200, "req- hello"},
		"as long as it may be":          {head + "Content-Length: 10\r\n\r\n0123456789", true, 200, "req- 0123456789"},
		"none":                          {head + "\r\n", true, 200, "req- "},
		"in pieces":                     {head + "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", true, 200, "req- hello"},
		"too large":                     {head + "Content-Length: 11\r\n\r\n01234567890", true, 400, "larger than 10 bytes"},
		"too large, and not said so":    {head + "Transfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n", true, 400, "larger than 10 bytes"},
		"said to be enormous":           {head + "Content-Length: 9223372036854775807\r\n\r\n", true, 400, "larger than 10 bytes"},
		"cut off":                       {head + "Content-Length: 9\r\n\r\nhello", false, 400, "could not be read to its end"},
		"that never comes":              {head + "Content-Length: 9\r\n\r\n", true, 400, "could not be read to its end"},
		"that stops on the way":         {head + "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n", true, 400, "could not be read to its end"},
		"in pieces that are none":       {head + "Transfer-Encoding: chunked\r\n\r\nzz\r\nhe\r\n", true, 400, "could not be read to its end"},
		"of a length that is no number": {head + "Content-Length: many\r\n\r\nhello", true, 400, ""},
		"of two lengths":                {head + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", true, 400, ""},
		"of a negative length":          {head + "Content-Length: -1\r\n\r\nhello", true, 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, got := speak(t, address, c.text, c.wait)
			if status != c.status || !strings.Contains(got, c.want) {
				t.Errorf("%d %s", status, got)
			}
		})
	}
	// The time is each body's own: a connection that was idle for longer is as good as before.
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range 2 {
		if _, err := io.WriteString(conn, head+"Content-Length: 2\r\n\r\nhi"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(res.Body); err != nil || string(body) != "req- hi" {
			t.Errorf("%q %v", body, err)
		}
		res.Body.Close()
		time.Sleep(2 * bodyWithin)
	}
}

// A handler that panics costs one answer, not the process, and tells nothing of why.
func TestPanic(t *testing.T) {
	out := httptest.NewRecorder()
	Serve(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("SECRET") })).ServeHTTP(out, httptest.NewRequest("GET", "/", nil))
	if out.Code != http.StatusInternalServerError || strings.Contains(out.Body.String(), "SECRET") {
		t.Errorf("%d %s", out.Code, out.Body)
	}
}

func TestContextRefuses(t *testing.T) {
	for name, header := range map[string][2]string{"a time that is none": {AsOfHeader, "noon"}, "a long key": {OnceHeader, strings.Repeat("x", 256)}} {
		r := httptest.NewRequest("POST", "/", nil).WithContext(identity.As(t.Context(), &identity.Actor{UserID: resource.ID{15: 1}}))
		r.Header.Set(header[0], header[1])
		if _, _, err := Context(r, "test", resource.ID{}, resource.ID{}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A client's name for us cannot carry anything else into a link.
func TestBaseURL(t *testing.T) {
	for host, want := range map[string]string{"cloud.example:8700": "http://cloud.example:8700", "[::1]:8700": "http://[::1]:8700",
		`x"onload=`: "http://localhost", "a/b": "http://localhost", "a<b>": "http://localhost", "a b": "http://localhost"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		if got := BaseURL(r); got != want {
			t.Errorf("%q: %s, want %s", host, got, want)
		}
		r.Header.Set("X-Forwarded-Proto", "javascript")
		if got := BaseURL(r); got != want {
			t.Errorf("%q: %s, want %s", host, got, want)
		}
	}
}
