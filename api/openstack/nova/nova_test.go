package nova

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack/openstacktest"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// serve runs the service on a listener, over a cloud with so many hosts.
func serve(t testing.TB, hosts int) (*httptest.Server, *cloudtest.Cloud) {
	t.Helper()
	c := cloudtest.New(t, hosts)
	reader := *c.User
	reader.Roles = []string{"reader"}
	admin := c.Member(resource.NewID(c.Clock, nil))
	admin.Roles = []string{"admin", "manager", "member", "reader"}
	who := openstacktest.Tokens{"owner": c.User, "reader": &reader, "other": c.Member(c.Other), "admin": admin}
	server := httptest.NewServer(wire.Serve(http.StripPrefix("/compute", New(Options{Compute: c.Compute, Network: c.Network, Auth: who}))))
	t.Cleanup(server.Close)
	return server, c
}

// TestConversations replays testdata. "! settle" lets the hosts work; "! trouble WORDS" makes them fail, "! lazy" idle, "! sending" take
// for ever to send a guest to another, "! well" none of these; "! lose" cuts them off; "! wait 2h" lets time pass, "! expire"
// ends what has had its time.
func TestConversations(t *testing.T) {
	openstacktest.Replay(t, func(t *testing.T) openstacktest.Stage {
		server, c := serve(t, 2)
		return openstacktest.Stage{URL: server.URL + "/compute", Version: "compute 2.", Command: func(words string) { command(c, words) },
			Bound: map[string]string{"$base": server.URL, "$image": c.Image.String(), "$network": c.NetworkID.String(), "$project": c.Project.Hex(),
				"$user": c.User.UserID.Hex(), "$other": c.Other.Hex(), "$host": c.Hosts[0].ID.String()}}
	})
}

func command(c *cloudtest.Cloud, words string) {
	verb, rest, _ := strings.Cut(words, " ")
	for _, h := range c.Hosts {
		switch verb {
		case "sending":
			h.Sends = &compute.Transit{}
		case "trouble":
			h.Trouble = rest
		case "lazy":
			h.Lazy = true
		case "well":
			h.Trouble, h.Lazy, h.Sends = "", false, nil
		case "lose":
			c.Lose(h)
		}
	}
	switch verb {
	case "settle":
		c.Settle()
	case "expire":
		c.Expire()
	case "wait":
		d, err := time.ParseDuration(rest)
		c.Must(err)
		c.Clock = c.Clock.Add(d)
	}
}

func ask(t testing.TB, base, who, method, path, minor, body string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+"/compute"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", who)
	req.Header.Set("Content-Type", "application/json")
	if minor != "" {
		req.Header.Set("OpenStack-API-Version", "compute 2."+minor)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, got
}

// Every standing has a status, a vm_state and, if something is under way, a task_state.
func TestEveryStandingHasWords(t *testing.T) {
	for _, stage := range compute.Stages() {
		for _, task := range compute.Tasks() {
			at := compute.Standing{Stage: stage, Task: task}
			if !knownStatus(statusOfServer(at)) || vmStates[stage] == "" || task != "" && taskStates[task] == "" {
				t.Errorf("%v has status %q, vm_state %q, task_state %q", at, statusOfServer(at), vmStates[stage], taskStates[task])
			}
			if !contains(standingsOf([]string{statusOfServer(at)}), at) {
				t.Errorf("%v is not found by its own status", at)
			}
		}
	}
}

func contains(all []compute.Standing, at compute.Standing) bool {
	for _, one := range all {
		if one == at {
			return true
		}
	}
	return false
}

func TestStatuses(t *testing.T) {
	tests := map[string]struct {
		at   compute.Standing
		want string
	}{
		"being made":                   {compute.Standing{Stage: compute.Building, Task: compute.Creating}, "BUILD"},
		"running":                      {compute.Standing{Stage: compute.Running}, "ACTIVE"},
		"stopping still runs":          {compute.Standing{Stage: compute.Running, Task: compute.Stopping}, "ACTIVE"},
		"stopped":                      {compute.Standing{Stage: compute.Stopped}, "SHUTOFF"},
		"rebooting":                    {compute.Standing{Stage: compute.Running, Task: compute.SoftRebooting}, "REBOOT"},
		"power-cycled":                 {compute.Standing{Stage: compute.Stopped, Task: compute.HardRebooting}, "HARD_REBOOT"},
		"rebuilt while failed":         {compute.Standing{Stage: compute.Failed, Task: compute.Rebuilding}, "REBUILD"},
		"being deleted":                {compute.Standing{Stage: compute.Frozen, Task: compute.Deleting}, "PAUSED"},
		"being deleted before it ran":  {compute.Standing{Stage: compute.Building, Task: compute.Deleting}, "BUILD"},
		"being given another shape":    {compute.Standing{Stage: compute.Running, Task: compute.Reshaping}, "RESIZE"},
		"with an unconfirmed shape":    {compute.Standing{Stage: compute.Unsettled}, "VERIFY_RESIZE"},
		"on the way to its old shape":  {compute.Standing{Stage: compute.Stopped, Task: compute.Reverting}, "REVERT_RESIZE"},
		"failed":                       {compute.Standing{Stage: compute.Failed}, "ERROR"},
		"failed and being deleted":     {compute.Standing{Stage: compute.Failed, Task: compute.Deleting}, "ERROR"},
		"suspended":                    {compute.Standing{Stage: compute.Asleep}, "SUSPENDED"},
		"resuming is still suspended":  {compute.Standing{Stage: compute.Asleep, Task: compute.Resuming}, "SUSPENDED"},
		"starting is still not active": {compute.Standing{Stage: compute.Stopped, Task: compute.Starting}, "SHUTOFF"},
	}
	for name, test := range tests {
		if got := statusOfServer(test.at); got != test.want {
			t.Errorf("a server %s is %s, not %s", name, got, test.want)
		}
	}
}

func TestLastLines(t *testing.T) {
	tests := map[string]struct {
		log  string
		n    int
		want string
	}{
		"all":               {"a\nb\nc\n", -1, "a\nb\nc\n"},
		"the last":          {"a\nb\nc", 1, "c"},
		"two":               {"a\nb\nc", 2, "b\nc"},
		"one of them empty": {"a\nb\nc\n", 2, "c\n"},
		"more than any":     {"a\nb\n", 9, "a\nb\n"},
		"none":              {"a\nb\n", 0, ""},
		"no end of line":    {"a\nb", 1, "b"},
		"an empty log":      {"", 3, ""},
		"no control bytes":  {"a\x00b\x07", -1, "ab"},
		"what is no UTF-8":  {"a\xff", -1, "a\ufffd"},
		"colours are kept":  {"\x1b[1mA", -1, "\x1b[1mA"},
		"only an empty row": {"\n\n", 2, "\n"},
	}
	for name, test := range tests {
		if got := lastLines([]byte(test.log), test.n); got != test.want {
			t.Errorf("%s: %q, not %q", name, got, test.want)
		}
	}
}

// A doc spells texts so that they read as what encoding/json would have written.
func TestDocSpellsTexts(t *testing.T) {
	for _, s := range []string{"", "plain", `"quoted" \ and / <b>`, "tab\tline\nfeed\r\x00\x1f", "雲海 🌊", "broken \xff\xfe end", "cut \xe9\x9b", "\u2028"} {
		usual, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var want, got string
		if err := errors.Join(json.Unmarshal(usual, &want), json.Unmarshal(appendString(nil, s), &got)); err != nil || got != want {
			t.Errorf("%q came back as %q, %v", s, got, err)
		}
	}
}

// FuzzCreateServer: whatever a body holds, the answer is the dialect's own and nothing is half done.
func FuzzCreateServer(f *testing.F) {
	for _, seed := range []string{
		`{"server":{"name":"a","flavorRef":"42","imageRef":"IMAGE"}}`,
		`{"server":{"name":"a","flavorRef":"42","imageRef":"IMAGE","networks":[{"uuid":"NETWORK","fixed_ip":"10.0.0.9","tag":"x"}],"min_count":"1","max_count":2}}`,
		`{"server":{"name":"a","flavorRef":"42","imageRef":"IMAGE","networks":"none","tags":["a"],"description":null,"hostname":"ab"},"os:scheduler_hints":{"group":"IMAGE","x":[1]}}`,
		`{"server":{"name":"a","flavorRef":42,"imageRef":7,"metadata":{"k":"v","":1}}}`,
		`{"server":{"personality":[{"path":"/a","contents":"YQ=="}],"user_data":"YQ==","availability_zone":"nova:node-1:","config_drive":"True"}}`,
		`{"server":[]}`, `[]`, `{`, `{"server":{"name":{"a":[[[[]]]]}}}`, `{"server":null}`, "\xff",
	} {
		for _, minor := range []uint8{1, 37, 52, 74, 93} {
			f.Add(seed, minor)
		}
	}
	server, c := serve(f, 1)
	f.Fuzz(func(t *testing.T, text string, minor uint8) {
		text = strings.NewReplacer("IMAGE", c.Image.String(), "NETWORK", c.NetworkID.String()).Replace(text)
		before := compute.Servers().Len(c.State.Latest())
		status, got := ask(t, server.URL, "owner", "POST", "/v2.1/servers", strconv.Itoa(int(minor)%newest+1), text)
		after := compute.Servers().Len(c.State.Latest())
		var answer map[string]any
		if err := json.Unmarshal(got, &answer); err != nil || len(answer) != 1 {
			t.Fatalf("the answer is %s", got)
		}
		switch {
		case status == http.StatusAccepted && after > before:
		case status >= 400 && status < 500 && after == before:
		default:
			t.Fatalf("status %d with %d servers before and %d after: %s", status, before, after, got)
		}
	})
}

// What is on shared storage is kept: a client that says otherwise is told, and no password is given or taken.
func TestEvacuateWithItsDisks(t *testing.T) {
	server, c := serve(t, 0)
	capacity := cloudtest.Capacity
	capacity.Storage = "nas"
	c.AddHost("one", capacity)
	c.AddHost("two", capacity)
	id := c.Launch(compute.Launch{})[0]
	c.Settle()
	if status, got := ask(t, server.URL, "admin", "POST", "/v2.1/servers/"+id.String()+"/action", "", `{"os-migrateLive": {"host": null, "block_migration": false, "disk_over_commit": false}}`); status != 202 {
		t.Errorf("a live migration without copies answers %d: %s", status, got)
	}
	c.Settle()
	c.Lose(c.HostOf(id))
	for _, test := range []struct {
		minor, body string
		status      int
	}{
		{"", `{"evacuate": {"onSharedStorage": false}}`, 400},
		{"", `{"evacuate": {"onSharedStorage": true, "adminPass": "secret"}}`, 400},
		{"14", `{"evacuate": {"adminPass": "secret"}}`, 400},
		{"", `{"evacuate": {"onSharedStorage": true}}`, 200},
	} {
		status, got := ask(t, server.URL, "admin", "POST", "/v2.1/servers/"+id.String()+"/action", test.minor, test.body)
		if status != test.status || strings.Contains(string(got), `"adminPass"`) {
			t.Errorf("in 2.%s %s is answered with %d: %s", test.minor, test.body, status, got)
		}
	}
	c.Settle()
	if srv := c.Server(id); srv.Stage() != compute.Running || !srv.Kept {
		t.Errorf("it came to be %v", srv.Standing())
	}
}

// Evacuation answers the new password until 2.14, and nothing from then on.
func TestEvacuate(t *testing.T) {
	server, c := serve(t, 2)
	for minor, answers := range map[string]string{"": `{"evacuate": {"onSharedStorage": false, "adminPass": "secret"}}`, "14": `{"evacuate": {}}`} {
		id := c.Launch(compute.Launch{})[0]
		c.Settle()
		lost := c.HostOf(id)
		c.Lose(lost)
		if status, got := ask(t, server.URL, "admin", "POST", "/v2.1/servers/"+id.String()+"/action", minor, answers); status != 409 || !strings.Contains(string(got), "openstack compute service set --down "+lost.Name) {
			t.Errorf("in 2.%s, while it may run on its host, it answers %d: %s", minor, status, got)
		}
		path, word := "/v2.1/os-services/force-down", `{"host": "`+lost.Name+`", "binary": "nova-compute", "forced_down": true}`
		says, shows := "11", `{"service":{"binary":"nova-compute","forced_down":true,"host":"`+lost.Name+`"}}`
		if minor != "" {
			path, word, says, shows = "/v2.1/os-services/"+lost.ID.String(), `{"forced_down": true}`, "53", `"forced_down":true`
		}
		if status, got := ask(t, server.URL, "admin", "PUT", path, says, word); status != 200 || !strings.Contains(string(got), shows) {
			t.Errorf("in 2.%s the operator's word is answered %d: %s", says, status, got)
		}
		status, got := ask(t, server.URL, "admin", "POST", "/v2.1/servers/"+id.String()+"/action", minor, answers)
		if status != 200 || strings.Contains(string(got), "secret") != (minor == "") {
			t.Errorf("in 2.%s it answers %d: %s", minor, status, got)
		}
		if status, got := ask(t, server.URL, "owner", "GET", "/v2.1/servers/"+id.String(), "", ""); status != 200 || !strings.Contains(string(got), `"REBUILD"`) {
			t.Errorf("it shows as %s", got)
		}
		c.Settle()
		if srv := c.Server(id); srv.HostID == lost.ID || srv.Stage() != compute.Running {
			t.Errorf("it came to be %v", srv.Standing())
		}
		status, got = ask(t, server.URL, "admin", "GET", "/v2.1/os-migrations?migration_type=evacuation&instance_uuid="+id.String(), "23", "")
		if status != 200 || !strings.Contains(string(got), `"done"`) {
			t.Errorf("recorded is %s", got)
		}
		c.Return(lost)
		c.Settle()
	}
}
