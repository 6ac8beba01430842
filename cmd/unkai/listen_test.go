package main

import (
	"context"
	"io"
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
	if got := <-answers["/stream"]; got != "ended" {
		t.Errorf("the stream says %q", got)
	}
	select {
	case err := <-served:
		t.Fatalf("it ended (%v) while a request was under way", err)
	case <-time.After(askWithin + 500*time.Millisecond):
	}
	if _, err := spare.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to spare is still there")
	}
	close(goOn)
	if got := <-answers["/request"]; got != "answered" {
		t.Errorf("the request is answered with %q", got)
	}
	if err := <-served; err != nil {
		t.Error(err)
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
