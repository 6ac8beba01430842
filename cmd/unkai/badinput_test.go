package main

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A surface is all that clients speak to, on a listener, with a token of a tenant's.
type surface struct {
	t       *testing.T
	cloud   *cloud
	address string
	token   string
}

func newSurface(t *testing.T) *surface {
	t.Helper()
	c, err := openCloud(t.Context(), t.TempDir(), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.1/24"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- serve(ctx, l, c.handler()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := c.state.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &surface{t: t, cloud: c, address: l.Addr().String()}
	body := fmt.Sprintf(`{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"demo","domain":{"id":"default"},"password":%q}}},
		"scope":{"project":{"name":"demo","domain":{"id":"default"}}}}}`, c.secrets.Demo)
	a := s.send(fmt.Sprintf("POST /identity/v3/auth/tokens HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	if a.status != http.StatusCreated {
		t.Fatalf("no token: %d %s", a.status, a.body)
	}
	s.token = a.header.Get("X-Subject-Token")
	return s
}

type told struct {
	status int
	header http.Header
	body   string
}

// send writes raw bytes, says no more, and reads the answer.
func (s *surface) send(text string) told {
	s.t.Helper()
	conn, err := new(net.Dialer).DialContext(s.t.Context(), "tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		s.t.Fatal(err)
	}
	// The server may answer before it has read all, and close: then the rest cannot be written.
	go io.WriteString(conn, text)
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("%.80q: %v", text, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatalf("%.80q: %v", text, err)
	}
	return told{res.StatusCode, res.Header, string(body)}
}

// A dialect of the surface: where it is, and whether a text is an error in its shape.
type dialect struct {
	prefix, things string // things is the path of something that can be listed and made
	shape          func(told) bool
}

func keyed(keys ...string) func(told) bool {
	return func(a told) bool {
		var v map[string]json.RawMessage
		if json.Unmarshal([]byte(a.body), &v) != nil {
			return false
		}
		for _, key := range keys {
			if v[key] != nil {
				return true
			}
		}
		return false
	}
}

var dialects = []dialect{
	{"/identity", "/v3/projects", keyed("error")},
	{"/image", "/v2/images", func(a told) bool { return strings.Contains(a.body, "<html>") || keyed("message", "error")(a) }},
	{"/network", "/v2.0/networks", keyed("NeutronError", "message", "error")},
	{"/compute", "/v2.1/servers", keyed("badRequest", "unauthorized", "forbidden", "itemNotFound", "badMethod", "conflictingRequest", "overLimit",
		"badMediaType", "notAcceptable", "computeFault", "error")},
	{"/v1", "/servers", keyed("error")},
	{"/ec2", "/", func(a told) bool {
		var v struct {
			XMLName xml.Name `xml:"Response"`
			Code    string   `xml:"Errors>Error>Code"`
		}
		return xml.Unmarshal([]byte(a.body), &v) == nil && v.Code != ""
	}},
}

// judge fails unless the answer is the client's fault, in the dialect's words, and nothing has changed. A path that is only spelled
// badly may be answered with the right one.
func (s *surface) judge(d dialect, what string, revision int64, a told) {
	s.t.Helper()
	at := a.header.Get("Location")
	switch {
	case a.status >= 300 && a.status < 400:
		if !strings.HasPrefix(at, d.prefix) || strings.HasPrefix(at, "//") || slices.Contains(strings.Split(at, "/"), "..") {
			s.t.Errorf("%s: sent to %q", what, at)
		}
	case a.status < 400 || a.status >= 500:
		s.t.Errorf("%s: %d %.300s", what, a.status, a.body)
	case !d.shape(a):
		s.t.Errorf("%s: %d, and not in the dialect's words: %.300s", what, a.status, a.body)
	}
	if now := s.cloud.state.Latest().Revision(); now != revision {
		s.t.Errorf("%s: something changed", what)
	}
}

// Whatever is sent to any dialect, with a good token and without one, it answers that the client is wrong.
func TestBadInput(t *testing.T) {
	s := newSurface(t)
	revision := s.cloud.state.Latest().Revision()
	for _, d := range dialects {
		for _, token := range []string{"", s.token, "gAAAAforged", "\"';--"} {
			head := func(method, path string) string {
				text := method + " " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n"
				if token != "" {
					text += "X-Auth-Token: " + token + "\r\n"
				}
				return text
			}
			for _, path := range []string{"/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd", d.things + "/..%2f..%2f", d.things + "/%00",
				d.things + "/x%00y", d.things + "/%ff%fe", d.things + "/" + strings.Repeat("a", 8000), d.things + "/;id=1", d.things + "/%0d%0aSet-Cookie:%20a=b",
				d.things + "/00000000-0000-0000-0000-000000000000/%2e%2e/x", "//" + d.things + "/nothing-there", "/nothing/there"} {
				for _, method := range []string{"GET", "DELETE", "PUT"} {
					a := s.send(head(method, d.prefix+path) + "\r\n")
					if path == "/../etc/passwd" || strings.HasPrefix(path, "/%2e%2e") {
						// It is not below the prefix: whoever answers, it is not there.
						if a.status < 300 || a.status >= 500 {
							t.Errorf("%s %s%s: %d %.200s", method, d.prefix, path, a.status, a.body)
						}
						continue
					}
					s.judge(d, fmt.Sprintf("%s %s%.60s", method, d.prefix, path), revision, a)
					if a.header.Get("Set-Cookie") != "" {
						t.Errorf("%s: a header of the client's own", path)
					}
				}
			}
			for name, body := range map[string]string{
				"no JSON": "{", "JSON of another form": "[]", "a word": "null", "deep": strings.Repeat("[", 100000), "bytes": "\x00\xff\xfe",
				"two values": "{}{}", "a large number": `{"a":1e99999}`, "too large": strings.Repeat("x", 3<<20),
			} {
				for _, text := range []string{
					fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", head("POST", d.prefix+d.things), len(body), body),
					fmt.Sprintf("%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", head("POST", d.prefix+d.things), len(body), body),
				} {
					s.judge(d, "POST "+d.prefix+d.things+", "+name, revision, s.send(text))
				}
			}
		}
	}
}

// What is no HTTP at all is refused before any dialect hears of it.
func TestNoHTTP(t *testing.T) {
	s := newSurface(t)
	revision := s.cloud.state.Latest().Revision()
	for name, text := range map[string]string{
		"a length that is no number": "POST /compute/v2.1/servers HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
		"two lengths":                "POST /compute/v2.1/servers HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a negative length":          "POST /compute/v2.1/servers HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"a path with NUL":            "GET /compute/\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
		"half an escape":             "GET /compute/%2 HTTP/1.1\r\nHost: x\r\n\r\n",
		"no host":                    "GET /compute/ HTTP/1.1\r\n\r\n",
		"a header with a space":      "GET /compute/ HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
		"large headers":              "GET /compute/ HTTP/1.1\r\nHost: x\r\nX-Large: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
		"many headers":               "GET /compute/ HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Many: x\r\n", 1<<16) + "\r\n",
		"another transfer encoding":  "POST /compute/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
	} {
		a := s.send(text)
		if a.status < 400 || a.status > 501 || a.status == 500 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	if now := s.cloud.state.Latest().Revision(); now != revision {
		t.Error("something changed")
	}
}
