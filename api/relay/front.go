package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Front is where clients come in. Whatever controller they reach, they see one cloud: a read is answered here once this
// controller shows what any has acknowledged, and everything else by the one that leads.
type Front struct {
	Here  http.Handler // answers clients from this controller's own state
	State *state.State
	// Leader is where the controller is that leads, when it is another; false while there is none.
	Leader    func() (link string, ok bool)
	Transport http.RoundTripper // to other controllers
	// Reads tells the requests that are answered here; those that only read, of the dialects, when nil.
	Reads func(*http.Request) bool
	// Operators is set where an operator comes in, on this controller's own machine.
	Operators bool
	// Patience is how long a request waits for a leader; 10 seconds when 0.
	Patience time.Duration
}

// StaleHeader is set on answers to reads that may be old: most controllers cannot be reached.
const StaleHeader = "Unkai-Stale"

// readable are the prefixes below which GET changes nothing and needs nothing that only the leader has.
var readable = []string{"/identity", "/image", "/network", "/compute", "/placement", "/v1"}

// signedLogins make a token of whoever has signed a request, and nothing else: a token is not stored, and nobody guesses
// a signature, so that no guesses are counted.
var signedLogins = []string{"/identity/v3/ec2tokens", "/identity/v3/s3tokens"}

// An asked is a client's request, with what is to be known of it before its body is used up.
type asked struct {
	*http.Request
	again func() // rewinds the body; nil if that is too large
	reads bool   // it is worth trying here
	keyed bool   // it names itself, so that a second one like it has no other effect
}

// ask reads what is kept of a request.
func (f *Front) ask(w http.ResponseWriter, r *http.Request) (*asked, error) {
	body, again, err := rewind(w, r)
	if err != nil {
		return nil, err
	}
	q := &asked{Request: r, again: again, keyed: keyed(r) && !f.Operators} // what operators ask has no keys
	if f.Reads != nil {
		q.reads = f.Reads(r)
	} else {
		q.reads = reads(r, body)
	}
	return q, nil
}

// repeatable requests have one effect however often they are made. EC2's GET may be anything.
func (q *asked) repeatable() bool { return q.reads || q.keyed }

func reads(r *http.Request, body []byte) bool {
	switch {
	case below(r, "/ec2"):
		return describes(r, body)
	case r.Method == http.MethodPost:
		return slices.Contains(signedLogins, strings.TrimSuffix(r.URL.Path, "/"))
	case r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions:
		return false
	}
	return r.URL.Path == "/" || slices.ContainsFunc(readable, func(prefix string) bool { return below(r, prefix) })
}

func below(r *http.Request, prefix string) bool {
	return r.URL.Path == prefix || strings.HasPrefix(r.URL.Path, prefix+"/")
}

// describes tells the reads of EC2, all of which are named so, but for that of a console, which only the leader can find.
// The one action must be in plain sight, so that the dialect cannot see another in the same request.
func describes(r *http.Request, body []byte) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return false
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return false
	}
	posted, err := url.ParseQuery(string(body))
	if err != nil {
		return false
	}
	actions := slices.Concat(query["Action"], posted["Action"])
	return len(actions) == 1 && strings.HasPrefix(actions[0], "Describe")
}

// logsIn tells a request for a token, which may be a guess.
func (f *Front) logsIn(r *http.Request) bool {
	return f.Reads == nil && r.Method == http.MethodPost && strings.TrimSuffix(r.URL.Path, "/") == "/identity/v3/auth/tokens"
}

// ServeHTTP answers a client.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q, err := f.ask(w, r)
	if err != nil {
		refuse(w, http.StatusBadRequest, "The request's body could not be read.")
		return
	}
	if logsIn := f.logsIn(r); q.again != nil && (q.reads || logsIn) {
		unsure := f.State.Confirm(r.Context())
		if r.Context().Err() != nil {
			return
		}
		here := r
		if unsure != nil {
			w.Header().Set(StaleHeader, "true")
			here = r.WithContext(identity.AmongCounters(r.Context(), len(host.Links(f.State.Latest()))))
		}
		// Guesses at passwords are counted where they are judged: by the one that leads, as long as it can be asked.
		if logsIn && unsure == nil {
			f.pass(w, q)
			return
		}
		// Some of these write, as the list of security groups makes a project's first, and a passcode is used up: then the leader is asked.
		if attemptHere(w, here, f.Here, func(writes *state.Writes) bool { return writes.Refused() }) {
			return
		}
		w.Header().Del(StaleHeader)
		q.again()
	}
	f.pass(w, q)
}

// attemptHere answers a request, unless void says, of what became of its writes, that the answer does not count.
func attemptHere(w http.ResponseWriter, r *http.Request, h http.Handler, void func(*state.Writes) bool) bool {
	ctx, writes := state.NoteWrites(r.Context())
	u := &undecided{ResponseWriter: w, header: w.Header().Clone(), void: func() bool { return void(writes) }}
	h.ServeHTTP(u, r.WithContext(ctx))
	if !u.dropped {
		u.decide(http.StatusOK)
	}
	return !u.dropped
}

// elsewhere tells of writes that did nothing, or can be made again, and have to be asked of another controller: this one
// handed the lead over while it was asked.
func elsewhere(keyed bool) func(*state.Writes) bool {
	return func(w *state.Writes) bool { return w.Refused() && (!w.Stored() || keyed) }
}

// undecided is an answer that counts only if it is not void.
type undecided struct {
	http.ResponseWriter
	header  http.Header
	void    func() bool
	begun   bool // it counts
	dropped bool
}

func (u *undecided) Header() http.Header { return u.header }

func (u *undecided) decide(status int) {
	switch {
	case u.begun || u.dropped:
	case u.void():
		u.dropped = true
	default:
		u.begun = true
		maps.Copy(u.ResponseWriter.Header(), u.header)
		u.ResponseWriter.WriteHeader(status)
	}
}

func (u *undecided) WriteHeader(status int) { u.decide(status) }

func (u *undecided) Write(b []byte) (int, error) {
	if u.decide(http.StatusOK); u.dropped {
		return len(b), nil
	}
	return u.ResponseWriter.Write(b)
}

// ReadFrom lets the kernel copy files.
func (u *undecided) ReadFrom(r io.Reader) (int64, error) {
	if u.decide(http.StatusOK); u.dropped {
		return io.Copy(io.Discard, r)
	}
	return io.Copy(u.ResponseWriter, r)
}

// Flush and FlushError let streams through.
func (u *undecided) Flush() {
	if err := u.FlushError(); err != nil {
		slog.Debug("the client went away", "err", err)
	}
}

func (u *undecided) FlushError() error {
	if u.decide(http.StatusOK); u.dropped {
		return nil
	}
	return http.NewResponseController(u.ResponseWriter).Flush()
}

// Unwrap lets http.ResponseController set deadlines.
func (u *undecided) Unwrap() http.ResponseWriter { return u.ResponseWriter }

// errElsewhere: the controller that was asked does not lead, and did nothing.
var errElsewhere = errors.New("it does not lead")

// pass has the leader answer. Where it surely was not reached, or did nothing, the request is tried again; and where it is safe
// to repeat, also when the answer was lost.
func (f *Front) pass(w http.ResponseWriter, q *asked) {
	r := q.Request
	patience := f.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	for end := time.Now().Add(patience); ; {
		// Who was deposed without having heard of it must not answer.
		if f.State.Leads() && f.State.Confirm(r.Context()) == nil {
			if q.again == nil {
				f.Here.ServeHTTP(w, r)
				return
			}
			if attemptHere(w, r, f.Here, elsewhere(q.keyed)) {
				return
			}
			q.again()
		}
		link, ok := f.Leader()
		if ok {
			err := f.attempt(w, q, link)
			if err == nil || r.Context().Err() != nil {
				return
			}
			unsent := errors.Is(err, errElsewhere) || dialing(err)
			if q.again == nil || !unsent && !q.repeatable() {
				slog.WarnContext(r.Context(), "the leader's answer was lost", "leader", link, "method", r.Method, "path", r.URL.Path, "err", err)
				refuse(w, http.StatusServiceUnavailable, "The controller that leads was lost before it answered. What was asked may have been done, or not.")
				return
			}
			q.again()
		}
		if time.Now().After(end) {
			refuse(w, http.StatusServiceUnavailable, "No controller leads now: most of them cannot be reached. Nothing was changed.")
			return
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

// keptBody is how much of a request is kept, so that it can be sent again.
const keptBody = 1 << 20

// rewind makes a request repeatable, and answers its body and what rewinds it; nil if it is too large for that.
func rewind(w http.ResponseWriter, r *http.Request) ([]byte, func(), error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, func() {}, nil
	}
	if r.ContentLength < 0 || r.ContentLength > keptBody {
		return nil, nil, nil
	}
	body, err := wire.BodyWithin(w, r, keptBody, 0)
	if err != nil {
		return nil, nil, err
	}
	set := func() { r.Body = io.NopCloser(bytes.NewReader(body)) }
	set()
	return body, set, nil
}

func keyed(r *http.Request) bool {
	return r.Header.Get(wire.OnceHeader) != "" && r.Method != http.MethodGet
}

// sentOnce keeps a transport from sending a request again by itself, as it would one that says GET, and EC2's GET may be anything.
type sentOnce struct{ http.RoundTripper }

func (t sentOnce) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		// A transport repeats what it could rewind, and does not know how to rewind this. Nothing of it is sent.
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(nil))
	}
	return t.RoundTripper.RoundTrip(r)
}

func dialing(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// attempt passes the request on, and the answer back. An error means that nothing was answered.
func (f *Front) attempt(w http.ResponseWriter, q *asked, link string) (failed error) {
	r := q.Request
	to, err := url.Parse(link)
	if err != nil {
		return err
	}
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if p := r.Header.Get("X-Forwarded-Proto"); p == "https" || p == "http" {
		scheme = p
	}
	// A machine without power says nothing: when another has led for a while, this one will not answer any more.
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	answered := make(chan struct{})
	go func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for late := 0; ; {
			select {
			case <-tick.C:
			case <-answered:
				return
			case <-ctx.Done():
				return
			}
			if now, ok := f.Leader(); (!ok || now == link) && !f.State.Leads() {
				late = 0
			} else if late++; late > 5 {
				cancel()
				return
			}
		}
	}()
	transport := f.Transport
	if !q.repeatable() {
		transport = sentOnce{transport}
	}
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = to.Scheme, to.Host
			via := prefix + "relay"
			if f.Operators {
				via = prefix + "operate"
			}
			p.Out.URL.RawPath, p.Out.URL.Path = via+p.In.URL.EscapedPath(), via+p.In.URL.Path
			p.Out.URL.RawQuery = p.In.URL.RawQuery // as it was: it may be signed
			p.Out.Host = to.Host
			p.Out.Header.Set(hostHeader, p.In.Host)
			p.Out.Header.Set(protoHeader, scheme)
			p.Out.Header.Set(sourceHeader, p.In.RemoteAddr)
		},
		ModifyResponse: func(res *http.Response) error {
			if res.StatusCode == http.StatusMisdirectedRequest {
				return errElsewhere
			}
			close(answered)
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
	return failed
}

// refuse answers what no dialect was asked about.
func refuse(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Retry-After", "1")
	body := map[string]any{"error": map[string]any{"code": status, "title": http.StatusText(status), "message": message}}
	if err := wire.WriteJSON(w, status, body); err != nil {
		slog.Debug("the client went away", "err", err)
	}
}
