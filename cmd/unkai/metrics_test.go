package main

import (
	"context"
	"flag"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/freeport"
	"github.com/unkai-cloud/unkai/base/metrics"
)

var write = flag.Bool("write", false, "write docs/metrics.md's table anew")

const tableBegins = "<!-- the table: go test ./cmd/unkai -run MetricsAreDocumented -write -->\n"

func TestMetricsAreDocumented(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "metrics.md")
	text := read(t, path)
	before, table, ok := strings.Cut(text, tableBegins)
	if !ok {
		t.Fatal("docs/metrics.md has no table")
	}
	want := metrics.Table(metrics.Families())
	if *write {
		if err := os.WriteFile(path, []byte(before+tableBegins+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if table != want {
		t.Errorf("docs/metrics.md says\n%s\nand there is\n%s", table, want)
	}
	named := regexp.MustCompile(`^unkai_[a-z][a-z_]*[a-z]$`)
	for _, f := range metrics.Families() {
		total := strings.HasSuffix(f.Name, "_total")
		if !named.MatchString(f.Name) || total != (f.Type == "counter") || f.Type == "histogram" && f.Unit == "" || !strings.Contains(f.Meaning, ".") && !strings.Contains(f.Meaning, ",") {
			t.Errorf("%+v is no good name", f)
		}
	}
}

// scrape reads metrics as Prometheus does: the value of each series.
func scrape(t *testing.T, client *http.Client, url string) map[string]string {
	t.Helper()
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		t.Fatalf("%s answers %s, %v: %s", url, res.Status, err, text)
	}
	series := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if at := strings.LastIndexByte(line, ' '); at > 0 && !strings.HasPrefix(line, "#") {
			series[line[:at]] = strings.TrimSpace(line[at+1:])
		}
	}
	return series
}

func controlOf(dir string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(dir, controlSocket))
	}}}
}

func TestMetricsTellOfACloud(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cloud")
	at := freeport.Address(t)
	r := start(t, dir, "--listen", "127.0.0.1:0", "--metrics", at)
	s := r.session(t, "demo", secretsOf(t, dir).Demo)
	furnish(t, s)
	s.ask("BREW", "/compute/v2.1/servers", "")
	var seen map[string]string
	const made, running = `unkai_operation_seconds_count{outcome="succeeded",target="server",verb="create"}`, `unkai_servers{stage="running"}`
	// One reading is no single moment: what is counted as it happens may be ahead of what is read off the state.
	for deadline := time.Now().Add(30 * time.Second); (seen[made] != "3" || seen[running] != "3") && time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		seen = scrape(t, controlOf(dir), "http://x/metrics")
	}
	for series, want := range map[string]string{
		`unkai_hosts{state="up"}`:                      "2",
		`unkai_hosts{state="lost"}`:                    "0",
		running:                                        "3",
		`unkai_state_records{kind="server"}`:           "3",
		`unkai_state_records{kind="host"}`:             "2",
		`unkai_state_broken`:                           "0",
		`unkai_state_leads`:                            "1",
		`unkai_operations_overdue`:                     "0",
		`unkai_request_panics_total`:                   "0",
		`unkai_build_info{go="*",version="0.0.0-dev"}`: "1",
		`unkai_request_seconds_count{dialect="compute",method="POST",status="2xx"}`:  "3",
		`unkai_request_seconds_count{dialect="network",method="POST",status="2xx"}`:  "6",
		`unkai_request_seconds_count{dialect="compute",method="other",status="4xx"}`: "1",
		made:                 "3",
		`unkai_host_streams`: "2",
		`unkai_hosts_disk_short{disk="own",room="critical"}`: "0",
		`unkai_hosts_clock_off`:                              "0",
	} {
		got, ok := seen[series]
		if pattern := strings.ReplaceAll(regexp.QuoteMeta(series), `\*`, `[^"]*`); !ok {
			for name, value := range seen {
				if regexp.MustCompile("^" + pattern + "$").MatchString(name) {
					got = value
				}
			}
		}
		if got != want {
			t.Errorf("%s is %q, want %s", series, got, want)
		}
	}
	for _, name := range []string{"unkai_state_revision", "unkai_state_commit_seconds_count", "unkai_state_transactions_total", "unkai_state_store_used_bytes",
		"unkai_state_store_quota_bytes", `unkai_reconcile_steps_total{outcome="succeeded",task="image"}`, `unkai_agent_steps_total{kind="guest",outcome="succeeded"}`,
		"process_resident_memory_bytes", "go_goroutines"} {
		if seen[name] == "" || seen[name] == "0" {
			t.Errorf("%s is %q", name, seen[name])
		}
	}
	described := map[string]bool{}
	for _, f := range metrics.Families() {
		described[f.Name] = true
	}
	suffix := regexp.MustCompile(`(_bucket|_sum|_count)?(\{.*)?$`)
	for series := range seen {
		name, _, _ := strings.Cut(series, "{")
		if strings.HasPrefix(name, "unkai_") && !described[name] && !described[suffix.ReplaceAllString(series, "")] {
			t.Errorf("%s is not declared", name)
		}
	}
	if elsewhere := scrape(t, http.DefaultClient, "http://"+at+"/metrics"); elsewhere[`unkai_servers{stage="running"}`] != "3" {
		t.Error("at its own address there is something else")
	}
	if res, err := http.Get(r.url + "/metrics"); err != nil || res.StatusCode != 404 {
		t.Errorf("tenants are shown metrics: %v, %v", res, err)
	}
	r.stop(t)
}
