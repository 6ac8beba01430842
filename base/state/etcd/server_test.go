package etcd_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/enginetest"
	"github.com/unkai-cloud/unkai/base/state/etcd"
)

func openIn(t *testing.T, dir string) *etcd.Engine {
	t.Helper()
	e, err := etcd.Open(t.Context(), etcd.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func closeEngine(t *testing.T, e *etcd.Engine) {
	t.Helper()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

func TestOneProcessForOneDirectory(t *testing.T) {
	dir := t.TempDir()
	e := openIn(t, dir)
	if _, err := etcd.Open(t.Context(), etcd.Options{Dir: dir}); !errors.Is(err, etcd.ErrInUse) {
		t.Errorf("a second engine on the directory: %v", err)
	}
	closeEngine(t, e)
	closeEngine(t, openIn(t, dir))
}

func TestUnfinishedMemberIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "member", "wal"), 0o700); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "member", "wal", "0000000000000000-0000000000000000.wal")
	for _, path := range []string{broken, filepath.Join(dir, "unfinished")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := openIn(t, dir)
	if err := e.Commit(t.Context(), batchAt(lead(t, e), 0, "a")); err != nil {
		t.Fatal(err)
	}
	closeEngine(t, e)
	e = openIn(t, dir)
	defer closeEngine(t, e)
	if content, head := contentOf(t, e); content != `"a"` || head != 1 {
		t.Errorf("after the next start: %s at %d", content, head)
	}
}

func TestOptions(t *testing.T) {
	for _, o := range []etcd.Options{{}, {Dir: t.TempDir(), Endpoints: []string{"127.0.0.1:1"}}} {
		if e, err := etcd.Open(t.Context(), o); err == nil {
			closeEngine(t, e)
			t.Errorf("%+v was accepted", o)
		}
	}
}

// listening gives the sockets on which this process accepts TCP connections.
func listening(t *testing.T) map[string]bool {
	t.Helper()
	ours := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && strings.HasPrefix(to, "socket:[") {
			ours[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	found := map[string]bool{}
	for _, name := range []string{"tcp", "tcp6", "unix"} {
		table, err := os.ReadFile("/proc/self/net/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			switch {
			case name == "unix" && len(f) > 6 && ours[f[6]] && f[3] == "00010000":
				found[line] = true
			case name != "unix" && len(f) > 9 && ours[f[9]] && f[3] == "0A":
				found[line] = true
			}
		}
	}
	return found
}

func TestNothingListens(t *testing.T) {
	before := listening(t)
	e := openIn(t, t.TempDir())
	defer closeEngine(t, e)
	lead(t, e)
	for socket := range listening(t) {
		if !before[socket] {
			t.Errorf("etcd listens: %s", socket)
		}
	}
}

func TestHistoryIsBounded(t *testing.T) {
	e, err := etcd.Open(t.Context(), etcd.Options{Dir: t.TempDir(), WindowCommits: 20})
	if err != nil {
		t.Fatal(err)
	}
	defer closeEngine(t, e)
	term := lead(t, e)
	end := time.Now().Add(20 * time.Second)
	enough := errors.New("enough")
	first := func(since int64) error { // whether the batch after a revision is still known
		return e.Watch(t.Context(), since, func(state.Batch) error { return enough })
	}
	n := int64(0)
	for ; n < 100 || errors.Is(first(0), enough); n++ {
		if err := e.Commit(t.Context(), batchAt(term, n, fmt.Sprint(n))); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("the history is never compacted")
		}
	}
	if err := first(0); !errors.Is(err, state.ErrCompacted) {
		t.Errorf("watch from the beginning: %v", err)
	}
	if err := first(n - 20); !errors.Is(err, enough) {
		t.Errorf("the newest 20 batches: %v", err)
	}
}

// The same object again and again fills the file with history, which goes before anybody is refused.
func TestHistoryMakesRoom(t *testing.T) {
	dir := t.TempDir()
	e, err := etcd.Open(t.Context(), etcd.Options{Dir: dir, QuotaBytes: 64 << 20, WindowBytes: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	defer closeEngine(t, e)
	term := lead(t, e)
	large := strings.Repeat("x", 1<<20)
	for base := range int64(300) {
		if err := e.Commit(t.Context(), batchAt(term, base, large)); err != nil {
			t.Fatalf("commit %d: %v", base, err)
		}
	}
	if room := e.Room(); room.Used > room.Quota+room.Reserve {
		t.Errorf("%+v after 300 MiB", room)
	}
}

// Nobody asked about the room, and the file is full of what is still wanted: deletes make room again, also
// after a restart.
func TestFullFileIsNoDeadEnd(t *testing.T) {
	o := etcd.Options{Dir: t.TempDir(), QuotaBytes: 16 << 20}
	large := `"` + strings.Repeat("x", 1<<20) + `"`
	e, err := etcd.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	term, base := lead(t, e), int64(0)
	next := func(n int64, value []byte) error {
		b := batchAt(term, base, large)
		b.Records[0].ID, b.Records[0].Value = resource.ID{byte(n)}, value
		return e.Commit(t.Context(), b)
	}
	for err = nil; err == nil && base < 100; {
		if err = next(base+1, []byte(large)); err == nil {
			base++
		}
	}
	if err == nil {
		t.Fatal("the file was never full: the test proved nothing")
	}
	if room := e.Room(); room.Used < room.Quota {
		t.Errorf("%+v, and yet: %v", room, err)
	}
	closeEngine(t, e)

	if e, err = etcd.Open(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	defer closeEngine(t, e)
	if term, err = e.Lead(t.Context()); err != nil {
		t.Fatalf("a full file cannot be led: %v", err)
	}
	_, base = contentOf(t, e)
	for n, all := int64(1), base; n <= all; n++ {
		if err := next(n, nil); err != nil {
			t.Fatalf("delete %d from a full file: %v", n, err)
		}
		base++
	}
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if room := e.Room(); room.Used < room.Quota {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v: what was deleted still takes room", e.Room())
		}
		if err := next(200, []byte(`"small"`)); err != nil {
			t.Fatal(err)
		}
		base++
	}
}

// elsewhere is a server as others run it, reached by its address.
type elsewhere struct {
	*store
	endpoint string
}

func (s *elsewhere) Open(t *testing.T) state.Engine {
	t.Helper()
	e, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{s.endpoint}, Prefix: "/" + t.Name() + "/", Fault: s.fault})
	if err != nil {
		t.Fatal(err)
	}
	s.engines = append(s.engines, e)
	s.first = nil
	return e
}

func (s *elsewhere) Compact(t *testing.T) {
	t.Helper()
	if err := s.engines[0].Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func serveElsewhere(t *testing.T, maxTxnOps, maxRequestBytes uint) string {
	t.Helper()
	c := embed.NewConfig()
	c.Dir, c.TickMs, c.ElectionMs = t.TempDir(), 20, 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.MaxTxnOps, c.MaxRequestBytes = maxTxnOps, maxRequestBytes
	anyPort := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, anyPort, anyPort
	server, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	<-server.Server.ReadyNotify()
	return server.Clients[0].Addr().String()
}

func TestServerElsewhere(t *testing.T) {
	endpoint := serveElsewhere(t, 65536, 128<<20)
	enginetest.Test(t, func(t *testing.T) enginetest.Store {
		s := &elsewhere{&store{}, endpoint}
		t.Cleanup(func() { s.Restart(t) })
		return s
	})
}

func TestPrefixesKeepCloudsApart(t *testing.T) {
	endpoint := serveElsewhere(t, 65536, 128<<20)
	for _, prefix := range []string{"/a/", "/b/"} {
		e, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{endpoint}, Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		defer closeEngine(t, e)
		if content, head := contentOf(t, e); head != 0 {
			t.Errorf("%s has %s already", prefix, content)
		}
		if err := e.Commit(t.Context(), batchAt(lead(t, e), 0, prefix)); err != nil {
			t.Error(err)
		}
		if content, head := contentOf(t, e); content != `"`+prefix+`"` || head != 1 {
			t.Errorf("%s has %s at %d", prefix, content, head)
		}
	}
}

func TestSmallServerElsewhereRefusesWhatIsTooLarge(t *testing.T) {
	e, err := etcd.Open(t.Context(), etcd.Options{Endpoints: []string{serveElsewhere(t, 128, 1<<20)}})
	if err != nil {
		t.Fatal(err)
	}
	defer closeEngine(t, e)
	term := lead(t, e)
	many := batchAt(term, 0, "x")
	many.Records = nil
	for i := range 200 {
		many.Records = append(many.Records, state.Record{Kind: "thing", ID: resource.ID{byte(i)}, Version: 1, Value: []byte("1")})
	}
	large := batchAt(term, 0, strings.Repeat("x", 5<<19))
	for _, b := range []state.Batch{many, large} {
		if err := e.Commit(t.Context(), b); !errors.Is(err, state.ErrTooLarge) {
			t.Errorf("a batch of %d records: %.200v", len(b.Records), err)
		}
	}
	if err := e.Commit(t.Context(), batchAt(term, 0, "fits")); err != nil {
		t.Error(err)
	}
}

func TestWarningsReachOurLog(t *testing.T) {
	var out bytes.Buffer
	old := slog.Default()
	defer slog.SetDefault(old)
	slog.SetDefault(slog.New(slog.NewTextHandler(&out, nil)))
	etcd.LogForTest("disk is slow", "took", "5s")
	if got := out.String(); !strings.Contains(got, `level=WARN msg="etcd: disk is slow" took=5s`) {
		t.Errorf("logged %q", got)
	}
}
