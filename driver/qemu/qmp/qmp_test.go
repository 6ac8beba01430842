package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// A fake is a hypervisor's monitor. Each connection is answered by a script.
type fake struct {
	path     string
	listener *net.UnixListener
	scripts  chan func(*peer) // one for each connection to come
	done     sync.WaitGroup
}

// A peer is the hypervisor's end of one connection.
type peer struct {
	*net.UnixConn
	r *bufio.Reader
}

// A request is one command as the hypervisor reads it.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        uint64          `json:"id"`
}

func (p *peer) next() (request, error) {
	var r request
	line, err := p.r.ReadBytes('\n')
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(line, &r)
}

// greet does what every healthy connection begins with.
func (p *peer) greet() {
	io.WriteString(p, greeting)
	if r, err := p.next(); err == nil && r.Execute == "qmp_capabilities" {
		fmt.Fprintf(p, `{"return": {}, "id": %d}`+"\r\n", r.ID)
	}
}

func (p *peer) answer(r request, with string) {
	fmt.Fprintf(p, `{"return": %s, "id": %d}`+"\r\n", with, r.ID)
}

func newFake(t *testing.T, scripts ...func(*peer)) *fake {
	t.Helper()
	f := &fake{path: filepath.Join(t.TempDir(), "q"), scripts: make(chan func(*peer), len(scripts))}
	for _, s := range scripts {
		f.scripts <- s
	}
	close(f.scripts)
	var err error
	if f.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: f.path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	f.done.Go(func() {
		for script := range f.scripts {
			conn, err := f.listener.AcceptUnix()
			if err != nil {
				return
			}
			f.done.Go(func() {
				defer conn.Close()
				script(&peer{conn, bufio.NewReader(conn)})
			})
		}
	})
	t.Cleanup(func() {
		f.listener.Close()
		f.done.Wait()
	})
	return f
}

func (f *fake) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", f.path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

func (f *fake) client(t *testing.T, onEvent func(Event)) *Client {
	t.Helper()
	conn, err := f.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(t.Context(), conn, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestAnswersFindTheirCommands(t *testing.T) {
	const n = 50
	f := newFake(t, func(p *peer) {
		p.greet()
		var asked []request
		for range n {
			r, err := p.next()
			if err != nil {
				return
			}
			asked = append(asked, r)
		}
		for i := range asked { // the last one asked is answered first
			r := asked[n-1-i]
			p.answer(r, string(r.Arguments))
		}
		io.Copy(io.Discard, p)
	})
	c := f.client(t, nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			var got struct{ Value int }
			if err := c.Execute(t.Context(), "echo", map[string]int{"value": i}, &got); err != nil {
				t.Error(err)
			} else if got.Value != i {
				t.Errorf("asked with %d, answered with %d", i, got.Value)
			}
		})
	}
	wg.Wait()
}

func TestRefusalIsAnError(t *testing.T) {
	f := newFake(t, func(p *peer) {
		p.greet()
		r, _ := p.next()
		fmt.Fprintf(p, `{"id": %d, "error": {"class": "GenericError", "desc": "no such thing"}}`+"\n", r.ID)
		r, _ = p.next()
		p.answer(r, `{"status": 5}`)
		io.Copy(io.Discard, p)
	})
	c := f.client(t, nil)
	var refused *Error
	if err := c.Execute(t.Context(), "bad", nil, nil); !errors.As(err, &refused) || refused.Desc != "no such thing" || refused.Class != "GenericError" {
		t.Errorf("got %v", err)
	}
	var wrong struct{ Status string }
	if err := c.Execute(t.Context(), "typed", nil, &wrong); err == nil {
		t.Error("an answer of the wrong type was taken")
	}
}

func TestEventsComeInOrderBetweenAnswers(t *testing.T) {
	f := newFake(t, func(p *peer) {
		p.greet()
		r, _ := p.next()
		for i := range 3 {
			fmt.Fprintf(p, `{"timestamp": {"seconds": %d, "microseconds": 500000}, "event": "E%d", "data": {"n": %d}}`+"\r\n", 100+i, i, i)
		}
		p.answer(r, "{}")
		io.Copy(io.Discard, p)
	})
	var got []Event // written by the reader, read after an answer that came later
	c := f.client(t, func(e Event) { got = append(got, e) })
	if err := c.Execute(t.Context(), "go", nil, nil); err != nil {
		t.Fatal(err)
	}
	if len(got) != 3 || got[0].Name != "E0" || got[2].Name != "E2" || string(got[1].Data) != `{"n": 1}` {
		t.Fatalf("events %v", got)
	}
	if want := time.Unix(102, 500000000).UTC(); !got[2].At.Equal(want) {
		t.Errorf("time %v, want %v", got[2].At, want)
	}
}

func TestDescriptorGoesAlong(t *testing.T) {
	f := newFake(t, func(p *peer) {
		p.greet()
		buf, oob := make([]byte, 1000), make([]byte, 100)
		n, oobn, _, _, err := p.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		var r request
		json.Unmarshal(buf[:n], &r)
		answer := `{"content": ""}`
		if msgs, err := syscall.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) == 1 {
			if fds, err := syscall.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				got := os.NewFile(uintptr(fds[0]), "got")
				content, _ := io.ReadAll(got)
				got.Close()
				answer = fmt.Sprintf(`{"content": %q}`, content)
			}
		}
		p.answer(r, answer)
		io.Copy(io.Discard, p)
	})
	c := f.client(t, nil)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("inside"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got struct{ Content string }
	if err := c.ExecuteWithFile(t.Context(), file, "getfd", map[string]string{"fdname": "x"}, &got); err != nil {
		t.Fatal(err)
	}
	if got.Content != "inside" {
		t.Errorf("the descriptor did not arrive: %q", got.Content)
	}
}

func TestSilentHypervisor(t *testing.T) {
	f := newFake(t,
		func(p *peer) { io.Copy(io.Discard, p) }, // never greets
		func(p *peer) { // never answers the first command, then does
			p.greet()
			p.next()
			r, _ := p.next()
			p.answer(r, "{}")
			io.Copy(io.Discard, p)
		})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	conn, err := f.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(ctx, conn, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent greeting: %v", err)
	}

	c := f.client(t, nil)
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "stuck", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silent command: %v", err)
	}
	if err := c.Execute(t.Context(), "next", nil, nil); err != nil {
		t.Errorf("a command after one that was given up: %v", err)
	}
	if n := len(c.waiting); n != 0 {
		t.Errorf("%d commands still waited for", n)
	}
}

func TestBrokenPeersEndTheConnection(t *testing.T) {
	for name, says := range map[string]string{
		"not JSON":                "rubbish\n",
		"neither this nor that":   "{}\n",
		"both answer and event":   `{"return": {}, "event": "X", "id": 2}` + "\n",
		"an error without an id":  `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n",
		"a message without end":   strings.Repeat("x", maxMessage+100),
		"a hang-up in a message":  `{"return": `,
		"an id of the wrong type": `{"return": {}, "id": "two"}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, func(p *peer) {
				p.greet()
				p.next()
				io.WriteString(p, says)
			})
			c := f.client(t, nil)
			if err := c.Execute(t.Context(), "x", nil, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("got %v", err)
			}
			<-c.Done()
			if err := c.Execute(t.Context(), "y", nil, nil); !errors.Is(err, ErrClosed) {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

func TestMonitorReconnects(t *testing.T) {
	once := func(p *peer) { // one command, then the connection ends
		p.greet()
		if r, err := p.next(); err == nil {
			p.answer(r, `"hello"`)
		}
	}
	f := newFake(t, once, once)
	ended := make(chan struct{}, 2)
	m := &Monitor{Dial: f.dial, OnEnd: func() { ended <- struct{}{} }}
	for range 2 {
		var got string
		if err := m.Execute(t.Context(), "hi", nil, &got); err != nil || got != "hello" {
			t.Fatalf("%q, %v", got, err)
		}
		<-ended
	}
	m.Close()
	if err := m.Execute(t.Context(), "hi", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// FuzzDecode feeds what a hypervisor in a guest's hands might send.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		strings.TrimSpace(greeting), `{"return": {}, "id": 1}`, `{"error": {"class": "c", "desc": "d"}, "id": 18446744073709551615}`,
		`{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": 1e6}}`, `{"return": null}`, `[]`, `{"QMP": null, "event": ""}`, `{"id": -1, "return": 1}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err != nil {
			return
		}
		if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("%q passed as a message and is none", line)
		}
	})
}

// FuzzPeer lets a client read an arbitrary stream: it must end, whole.
func FuzzPeer(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "STOP"}` + "\n"))
	f.Add([]byte("\n\n\n"))
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"return": {}, "id": 2}` + "\n{"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		end := func(fd int) *net.UnixConn {
			file := os.NewFile(uintptr(fd), "")
			defer file.Close()
			conn, err := net.FileConn(file)
			if err != nil {
				t.Fatal(err)
			}
			return conn.(*net.UnixConn)
		}
		here, there := end(fds[0]), end(fds[1])
		var wg sync.WaitGroup
		wg.Go(func() { there.Write(stream); there.CloseWrite(); io.Copy(io.Discard, there); there.Close() })
		defer wg.Wait()
		defer here.Close()
		c, err := NewClient(t.Context(), here, func(Event) {})
		if err != nil {
			return
		}
		c.Execute(t.Context(), "x", nil, nil)
		<-c.Done()
	})
}
