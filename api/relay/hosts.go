package relay

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Hosts is how a controller asks the others about the hosts that have their sessions here and there.
type Hosts struct {
	Transport http.RoundTripper
	Leader    func() (link string, ok bool)
	Own       string // where others reach this controller

	told atomic.Pointer[time.Time] // when the one that leads last knew which hosts are heard here
}

// A heard is which hosts a controller hears.
type heard struct {
	Link  string
	Hosts []host.Sighting
}

const (
	askWithin = 10 * time.Second
	// How long is waited for a controller to lead: an election takes a second or two.
	leaderWithin = 5 * time.Second
	// Well before a host is missed of which the one that leads is not told.
	toldWithin = 10 * time.Second
)

// Link is where others reach this controller.
func (h *Hosts) Link() string { return h.Own }

// Join has a machine become a host.
func (h *Hosts) Join(ctx context.Context, req host.JoinRequest) (answer host.JoinAnswer, err error) {
	return answer, h.write(ctx, "host-join", req, &answer)
}

// Arrive records what a host says of itself.
func (h *Hosts) Arrive(ctx context.Context, id resource.ID, hello host.Hello) error {
	return h.write(ctx, "hosts/"+id.String()+"/arrive", hello, nil)
}

// Observe takes in what a host saw.
func (h *Hosts) Observe(ctx context.Context, id resource.ID, seen []host.Observation) error {
	return h.write(ctx, "hosts/"+id.String()+"/observe", seen, nil)
}

// Report tells the one that leads which hosts are heard here. The next report is not to wait for this one for long.
func (h *Hosts) Report(ctx context.Context, here []host.Sighting) error {
	ctx, cancel := context.WithTimeout(ctx, host.ReportEvery)
	defer cancel()
	err := h.write(ctx, "heard", heard{h.Own, here}, nil)
	if err == nil {
		h.Known(time.Now())
	}
	return err
}

// Known takes note that the one that leads knows which hosts are heard here, as when it is this one.
func (h *Hosts) Known(now time.Time) { h.told.Store(&now) }

// Told reports whether the one that leads was told lately which hosts are heard here. It takes those for lost of which it is not.
func (h *Hosts) Told() bool {
	last := h.told.Load()
	return last != nil && time.Since(*last) < toldWithin
}

// Call has another controller tell a host of a call.
func (h *Hosts) Call(ctx context.Context, link string, id resource.ID, call host.Call) error {
	return h.ask(ctx, link, "hosts/"+id.String()+"/call", call, nil)
}

// write asks the one that leads, for which it waits a while.
func (h *Hosts) write(ctx context.Context, path string, v, answer any) error {
	for end := time.Now().Add(leaderWithin); ; {
		if link, ok := h.Leader(); ok {
			return h.ask(ctx, link, path, v, answer)
		}
		if time.Now().After(end) {
			return fault.Errorf(fault.Unavailable, "No controller leads now.")
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *Hosts) ask(ctx context.Context, link, path string, v, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	return Post(ctx, h.Transport, link, path, v, answer)
}

// Post asks the controller at link for what is below its prefix. What that refuses is a fault; an answer that was lost, too, of kind
// Unavailable: hosts come again.
func Post(ctx context.Context, transport http.RoundTripper, link, path string, v, answer any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, link+prefix+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return unanswered(ctx, link, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return unanswered(ctx, link, err)
	}
	if res.StatusCode >= 300 {
		return fault.Errorf(kindOf(res.StatusCode), "%s", strings.TrimSpace(string(text)))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// A Health is what a controller says of itself.
type Health struct {
	Revision int64 // how far its copy of the state has come
	Leads    bool
	Hosts    int // that have their sessions with it

	Machine *alert.Machine `json:",omitempty"` // nil from an earlier release
	Clock   time.Time      `json:",omitzero"`  // its machine's
}

// Ask asks the controller at link how it is.
func Ask(ctx context.Context, transport http.RoundTripper, link string) (h Health, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, link+prefix+"health", nil)
	if err != nil {
		return h, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return h, unanswered(ctx, link, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxBody))
	if err != nil {
		return h, unanswered(ctx, link, err)
	}
	if res.StatusCode != http.StatusOK {
		return h, fault.Errorf(kindOf(res.StatusCode), "%s", strings.TrimSpace(string(text)))
	}
	return h, json.Unmarshal(text, &h)
}

// serveHosts answers what Hosts asks.
func (s *Server) serveHosts(w http.ResponseWriter, r *http.Request, path string) error {
	ctx := identity.Internal(r.Context())
	body, err := wire.BodyWithin(w, r, maxReport, 0)
	if err != nil {
		return err
	}
	read := func(v any) error {
		if json.Unmarshal(body, v) != nil {
			return fault.Errorf(fault.Invalid, "The request is not valid JSON.")
		}
		return nil
	}
	switch path {
	case "host-join":
		var req host.JoinRequest
		if err := read(&req); err != nil {
			return err
		}
		answer, err := s.Authority.Join(ctx, req, s.Now())
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, answer)
	case "heard":
		var h heard
		if err := read(&h); err != nil {
			return err
		}
		s.Hub.HeardBy(h.Link, h.Hosts)
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	name, verb, _ := strings.Cut(strings.TrimPrefix(path, "hosts/"), "/")
	id, err := resource.ParseID(name)
	if err != nil {
		return fault.Missing("host", name)
	}
	switch verb {
	case "arrive":
		var hello host.Hello
		if err = read(&hello); err == nil {
			err = s.Authority.Arrive(ctx, id, hello)
		}
	case "observe":
		var seen []host.Observation
		if err = read(&seen); err == nil {
			err = s.Hub.Observe(ctx, id, seen)
		}
	case "call":
		var call host.Call
		if err = read(&call); err == nil {
			err = s.Call(ctx, id, call)
		}
	default:
		err = fault.Missing("verb", verb)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
