// Package qmp speaks QEMU's machine protocol: JSON commands and answers, and
// events between them, on a local socket. It knows the protocol and no command;
// what is worth asking is the driver's business.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// maxMessage bounds one message. The other end may have been taken over by its
// guest, and must not be able to fill our memory.
const maxMessage = 4 << 20

// ErrClosed is what a command gets whose connection ended before its answer.
var ErrClosed = errors.New("connection to the hypervisor ended")

// An Error is QEMU's own refusal of a command.
type Error struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *Error) Error() string { return e.Desc }

// An Event is what QEMU tells unasked.
type Event struct {
	Name string
	Data json.RawMessage
	At   time.Time
}

// A message is whatever QEMU sends: a greeting, an answer or an event.
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	ID       *uint64         `json:"id"`
	Return   json.RawMessage `json:"return"`
	Error    *Error          `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Time     struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
}

// decode reads one message, which QEMU writes on one line.
func decode(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("malformed message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return message{}, errors.New("malformed message: neither greeting, answer nor event")
	}
	return m, nil
}

// readLine reads up to a newline, and no more than maxMessage.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > maxMessage {
			return nil, fmt.Errorf("message of more than %d bytes", maxMessage)
		}
		if err == nil && line == nil {
			return part, nil // valid until the next read, which is long enough
		}
		line = append(line, part...)
		if err != bufio.ErrBufferFull {
			return line, err
		}
	}
}

// A Client is one connection. Its methods may be called together.
type Client struct {
	conn    *net.UnixConn
	onEvent func(Event)
	done    chan struct{} // closed when the connection has ended

	// QEMU keeps only the newest descriptors it was sent until a command takes
	// them, so a command that brings one has the connection for itself.
	carrying sync.RWMutex

	writing sync.Mutex // one message at a time

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan message // guarded by mu; nil once the connection has ended
	err     error                   // guarded by mu; why it ended
}

// NewClient takes over a connection and negotiates. onEvent is called for each
// event, in order, and must not wait for a command; it may be nil.
func NewClient(ctx context.Context, conn *net.UnixConn, onEvent func(Event)) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	r := bufio.NewReader(conn)
	line, err := readLine(r)
	var greeting message
	if err == nil {
		greeting, err = decode(bytes.TrimSpace(line))
	}
	if err == nil && greeting.Greeting == nil {
		err = errors.New("no greeting")
	}
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("greeting: %w", err)
	}
	c := &Client{conn: conn, onEvent: onEvent, done: make(chan struct{}), waiting: map[uint64]chan message{}}
	go c.read(r)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// read hands out what arrives until the connection ends.
func (c *Client) read(r *bufio.Reader) {
	defer close(c.done)
	var err error
	for err == nil {
		var line []byte
		if line, err = readLine(r); err != nil {
			break
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var m message
		if m, err = decode(line); err != nil {
			break
		}
		switch {
		case m.Event != "":
			if c.onEvent != nil {
				at := time.Unix(m.Time.Seconds, m.Time.Microseconds*1000).UTC()
				c.onEvent(Event{Name: m.Event, Data: m.Data, At: at})
			}
		case m.ID != nil:
			c.mu.Lock()
			answer := c.waiting[*m.ID]
			delete(c.waiting, *m.ID)
			c.mu.Unlock()
			if answer != nil { // nil: whoever asked has given up
				answer <- m
			}
		case m.Error != nil: // without an id: QEMU could not read what we sent
			err = m.Error
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = ErrClosed
	} else {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	c.conn.Close()
	c.mu.Lock()
	c.err = err
	for _, answer := range c.waiting {
		close(answer)
	}
	c.waiting = nil
	c.mu.Unlock()
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and waits for its reader.
func (c *Client) Close() {
	c.conn.Close()
	<-c.done
}

// Execute asks a command and puts its answer into result unless that is nil.
// QEMU's refusal is an *Error.
func (c *Client) Execute(ctx context.Context, command string, args, result any) error {
	c.carrying.RLock()
	defer c.carrying.RUnlock()
	return c.execute(ctx, nil, command, args, result)
}

// ExecuteWithFile asks a command that takes a descriptor, and sends it along.
func (c *Client) ExecuteWithFile(ctx context.Context, file *os.File, command string, args, result any) error {
	c.carrying.Lock()
	defer c.carrying.Unlock()
	return c.execute(ctx, file, command, args, result)
}

func (c *Client) execute(ctx context.Context, file *os.File, command string, args, result any) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	answer := make(chan message, 1)
	c.mu.Lock()
	if c.waiting == nil {
		defer c.mu.Unlock()
		return fmt.Errorf("%s: %w", command, c.err)
	}
	c.next++
	id := c.next
	c.waiting[id] = answer
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.waiting, id)
		c.mu.Unlock()
	}

	if err := c.send(ctx, id, file, command, args); err != nil {
		forget()
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case <-ctx.Done():
		forget()
		return fmt.Errorf("%s: no answer from the hypervisor: %w", command, ctx.Err())
	case m, ok := <-answer:
		if !ok {
			c.mu.Lock()
			defer c.mu.Unlock()
			return fmt.Errorf("%s: %w", command, c.err)
		}
		if m.Error != nil {
			return fmt.Errorf("%s: %w", command, m.Error)
		}
		if result == nil {
			return nil
		}
		if err := json.Unmarshal(m.Return, result); err != nil {
			return fmt.Errorf("%s: unexpected answer: %w", command, err)
		}
		return nil
	}
}

// send writes one command, with a descriptor if there is one.
func (c *Client) send(ctx context.Context, id uint64, file *os.File, command string, args any) error {
	data, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        uint64 `json:"id"`
	}{command, args, id})
	if err != nil {
		return err
	}
	data = append(data, '\n')
	var rights []byte
	if file != nil {
		rights = syscall.UnixRights(int(file.Fd()))
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	deadline, _ := ctx.Deadline() // the zero time is none
	c.conn.SetWriteDeadline(deadline)
	n, _, err := c.conn.WriteMsgUnix(data, rights, nil)
	if err == nil && n < len(data) {
		_, err = c.conn.Write(data[n:])
	}
	if err != nil {
		c.conn.Close() // half a command may be on its way: nothing can follow it
		return fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return nil
}

// A Monitor is a QMP socket that is dialled afresh when its connection has
// ended. Events that happened while there was no connection are lost, so ask
// for the state rather than add events up.
type Monitor struct {
	Dial    func(context.Context) (*net.UnixConn, error)
	OnEvent func(Event) // see NewClient
	OnEnd   func()      // called when a connection has ended by itself; may be nil
	watch   sync.WaitGroup
	mu      sync.Mutex
	client  *Client // guarded by mu
	closed  bool    // guarded by mu
}

// connected gives the present connection, or a new one.
func (m *Monitor) connected(ctx context.Context) (*Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	if m.client != nil {
		select {
		case <-m.client.Done():
			m.client = nil
		default:
			return m.client, nil
		}
	}
	conn, err := m.Dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("dial the hypervisor: %w", err)
	}
	client, err := NewClient(ctx, conn, m.OnEvent)
	if err != nil {
		return nil, err
	}
	m.client = client
	if m.OnEnd != nil {
		m.watch.Go(func() {
			<-client.Done()
			m.mu.Lock()
			closed := m.closed
			m.mu.Unlock()
			if !closed {
				m.OnEnd()
			}
		})
	}
	return client, nil
}

// Connect makes sure that there is a connection.
func (m *Monitor) Connect(ctx context.Context) error {
	_, err := m.connected(ctx)
	return err
}

// Execute is Client.Execute.
func (m *Monitor) Execute(ctx context.Context, command string, args, result any) error {
	client, err := m.connected(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return client.Execute(ctx, command, args, result)
}

// ExecuteWithFile is Client.ExecuteWithFile.
func (m *Monitor) ExecuteWithFile(ctx context.Context, file *os.File, command string, args, result any) error {
	client, err := m.connected(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return client.ExecuteWithFile(ctx, file, command, args, result)
}

// Close ends the connection for good.
func (m *Monitor) Close() {
	m.mu.Lock()
	m.closed = true
	client := m.client
	m.mu.Unlock()
	if client != nil {
		client.Close()
	}
	m.watch.Wait()
}
