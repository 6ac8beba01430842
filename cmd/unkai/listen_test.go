package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
)

// A server that stops waits for what is under way, and for nothing else.
func TestServeStops(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	begun, goOn := make(chan struct{}, 2), make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-wire.Leaving(r.Context()).Done()
		io.WriteString(w, "ended")
	})
	mux.HandleFunc("/request", func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-goOn
		if r.Context().Err() == nil {
			io.WriteString(w, "answered")
		}
	})
	served := make(chan error, 1)
	go func() { served <- serve(ctx, l, mux) }()
	spare, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer spare.Close()
	answers := map[string]chan string{"/stream": make(chan string, 1), "/request": make(chan string, 1)}
	for path, answer := range answers {
		go func() {
			res, err := http.Get("http://" + l.Addr().String() + path)
			if err != nil {
				answer <- err.Error()
				return
			}
			defer res.Body.Close()
			text, _ := io.ReadAll(res.Body)
			answer <- string(text)
		}()
	}
	<-begun
	<-begun
	stop()
	for range 3 { // who comes meanwhile need not wait for it
		time.Sleep(100 * time.Millisecond)
		if res, err := http.Get("http://" + l.Addr().String() + "/other"); err != nil || res.StatusCode != http.StatusNotFound {
			t.Errorf("while a request is under way another is answered with %v, %v", res, err)
		}
	}
	select {
	case err := <-served:
		t.Fatalf("it ended (%v) while a request was under way", err)
	case text := <-answers["/stream"]:
		t.Fatalf("the stream ended (%q) while others came in", text)
	default:
	}
	close(goOn)
	if got := <-answers["/request"]; got != "answered" {
		t.Errorf("the request is answered with %q", got)
	}
	if got := <-answers["/stream"]; got != "ended" {
		t.Errorf("the stream says %q", got)
	}
	began := time.Now()
	if _, err := spare.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to spare is still there")
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > askWithin+500*time.Millisecond {
		t.Errorf("it takes %v more to end", took)
	}
}

// What does not end is cut off, and nobody else waits for it: not for a request that takes long, nor for a stream that does not heed
// wire.Leaving, as one cannot whose client does not read.
func TestServeCutsOff(t *testing.T) {
	for name, c := range map[string]struct {
		stream bool
		within time.Duration
	}{"a stream": {true, endWithin}, "a request": {false, graceful}} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			was := slog.Default()
			slog.SetDefault(slog.New(slog.NewTextHandler(&log, nil)))
			defer slog.SetDefault(was)
			ctx, stop := context.WithCancel(t.Context())
			begun := make(chan struct{})
			served := make(chan error, 1)
			go func() {
				served <- serve(ctx, l, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					if c.stream {
						wire.Leaving(r.Context())
					}
					close(begun)
					<-r.Context().Done()
				}))
			}()
			cut := make(chan error, 1)
			go func() {
				_, err := http.Post("http://"+l.Addr().String()+"/long", "", nil)
				cut <- err
			}()
			<-begun
			stop()
			began := time.Now()
			if err := <-served; err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took < c.within || took > c.within+500*time.Millisecond {
				t.Errorf("it takes %v to end", took)
			}
			if err := <-cut; err == nil {
				t.Error("it is answered")
			}
			if !strings.Contains(log.String(), "POST /long since") {
				t.Errorf("it does not say what it cut off: %s", log.String())
			}
		})
	}
}

// Whoever has connected is answered, though it asks as the server stops.
func TestServeAnswersWhoIsConnected(t *testing.T) {
	for range 5 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() {
			served <- serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "answered") }))
		}()
		ask := func(c net.Conn) string {
			defer c.Close()
			if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"); err != nil {
				return err.Error()
			}
			answer, err := io.ReadAll(c)
			if err != nil {
				return err.Error()
			}
			return string(answer)
		}
		var clients []net.Conn
		for range 10 {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			clients = append(clients, c)
		}
		// Connections are accepted in order, so once this one is answered the others are.
		last, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(last); !strings.HasSuffix(got, "answered") {
			t.Fatalf("before it stops: %q", got)
		}
		answers := make(chan string, len(clients))
		stop()
		for n, c := range clients {
			go func() {
				time.Sleep(time.Duration(n) * 15 * time.Millisecond)
				answers <- ask(c)
			}()
		}
		for range clients {
			if got := <-answers; !strings.HasSuffix(got, "answered") {
				t.Errorf("as it stops: %q", got)
			}
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
		if t.Failed() {
			return
		}
	}
}
