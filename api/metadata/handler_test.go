package metadata

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

var (
	guestID = resource.MustID("0198aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee")
	portID  = resource.MustID("0198aaaa-0000-7000-8000-000000000001")
	imageID = resource.MustID("0198aaaa-0000-7000-8000-0123456789ab")
)

// rich is a guest that has everything.
func rich() compute.Guest {
	return compute.Guest{ID: guestID, Name: "web", ProjectID: imageID, Kernel: &compute.ImageRef{ID: imageID}, Metadata: compute.Metadata{
		Hostname: "web.example", Zone: "nova", Type: "m1.tiny", ImageID: imageID, LaunchIndex: 2, ReservationID: "r-abc",
		Tags: map[string]string{"team": "a", "no/leaf": "b"}, Keys: []compute.PublicKey{{Name: "mine", Type: "ssh", Key: "ssh-rsa AAAA x"}},
		UserData: []byte("#!/bin/sh\x00\xff"), Files: []compute.File{{Path: "/etc/motd", Data: []byte("hello")}}, AdminPassword: "pw",
		Devices: []compute.Device{{Kind: "nic", MAC: "fa:16:3e:00:00:01", Tags: []string{"front"}}}, SecurityGroups: []string{"default", "web"},
		Links: []compute.Link{{PortID: portID, NetworkID: imageID, MAC: "fa:16:3e:00:00:01", MTU: 1450, DNS: []string{"10.0.0.2"}, PublicIPv4: "192.0.2.7",
			Addresses: []compute.LinkAddress{
				{Address: "10.0.0.5", Prefix: 24, Gateway: "10.0.0.1", Mode: "dhcp"},
				{Address: "10.1.0.5", Prefix: 16, Gateway: "10.1.0.1", Mode: "static", Routes: []compute.LinkRoute{{Destination: "10.9.0.0/16", NextHop: "10.1.0.9"}}},
				{Address: "2001:db8::5", Prefix: 64, Gateway: "2001:db8::1", Mode: "slaac"}}}},
	}}
}

type clock struct{ now time.Time }

func serving(g compute.Guest) (*Server, http.Handler, *clock) {
	c := &clock{time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)}
	s := New(func(port resource.ID) (compute.Guest, bool) { return g, port == portID })
	s.Now = func() time.Time { return c.now }
	return s, s.For(portID), c
}

func ask(h http.Handler, method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", nil)
	r.URL.Path = path
	for n := 0; n < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestEC2(t *testing.T) {
	_, h, _ := serving(rich())
	for path, want := range map[string]string{
		"/latest":                                                                  "meta-data/\nuser-data",
		"/latest/user-data":                                                        "#!/bin/sh\x00\xff",
		"/latest/meta-data/instance-id":                                            "i-" + guestID.Tail(),
		"/2009-04-04/meta-data/ami-id":                                             "ami-" + imageID.Tail(),
		"/latest/meta-data/kernel-id":                                              "aki-" + imageID.Tail(),
		"/latest/meta-data/hostname":                                               "web.example",
		"/latest/meta-data/instance-type":                                          "m1.tiny",
		"/latest/meta-data/ami-launch-index":                                       "2",
		"/latest/meta-data/reservation-id":                                         "r-abc",
		"/latest/meta-data/local-ipv4":                                             "10.0.0.5",
		"/latest/meta-data/public-ipv4":                                            "192.0.2.7",
		"/latest/meta-data/mac":                                                    "fa:16:3e:00:00:01",
		"/latest/meta-data/security-groups":                                        "default\nweb",
		"/latest/meta-data/placement/":                                             "availability-zone",
		"/latest/meta-data/placement/availability-zone":                            "nova",
		"/latest/meta-data/public-keys/":                                           "0=mine",
		"/latest/meta-data/public-keys/0/":                                         "openssh-key",
		"/latest/meta-data/public-keys/0/openssh-key":                              "ssh-rsa AAAA x",
		"/latest/meta-data/block-device-mapping/root":                              "/dev/vda",
		"/latest/meta-data/network/interfaces/macs/":                               "fa:16:3e:00:00:01/",
		"/latest//meta-data//tags/instance/":                                       "team",
		"/latest/meta-data/tags/instance/team":                                     "a",
		"/latest/meta-data/network/interfaces/macs/fa:16:3e:00:00:01/local-ipv4s":  "10.0.0.5\n10.1.0.5",
		"/latest/meta-data/network/interfaces/macs/fa:16:3e:00:00:01/ipv6s":        "2001:db8::5",
		"/latest/meta-data/network/interfaces/macs/fa:16:3e:00:00:01/public-ipv4s": "192.0.2.7",
	} {
		if w := ask(h, "GET", path); w.Code != 200 || w.Body.String() != want {
			t.Errorf("%s: %d %q, want %q", path, w.Code, w.Body, want)
		}
	}
	versions := strings.Split(ask(h, "GET", "/").Body.String(), "\n")
	if !slices.Contains(versions, "latest") || !slices.Contains(versions, "openstack") || !slices.Contains(versions, "2009-04-04") {
		t.Errorf("%q", versions)
	}
	names := strings.Split(ask(h, "GET", "/latest/meta-data/").Body.String(), "\n")
	if !slices.IsSorted(names) || !slices.Contains(names, "public-keys/") || !slices.Contains(names, "instance-id") {
		t.Errorf("%q", names)
	}
	// Everything that is listed is there.
	var all func(path string)
	all = func(path string) {
		for name := range strings.SplitSeq(ask(h, "GET", path).Body.String(), "\n") {
			name, _, _ = strings.Cut(name, "=")
			w := ask(h, "GET", path+name)
			if w.Code != 200 {
				t.Errorf("%s%s is listed, and not there", path, name)
			}
			if strings.HasSuffix(name, "/") {
				all(path + name)
			}
		}
	}
	all("/latest/meta-data/")
}

func TestOpenStack(t *testing.T) {
	_, h, _ := serving(rich())
	if got := ask(h, "GET", "/openstack/").Body.String(); !strings.HasPrefix(got, "2012-08-10\n") || !strings.HasSuffix(got, "\nlatest") {
		t.Error(got)
	}
	for version, want := range map[string]string{
		"2012-08-10": "meta_data.json user_data", "2013-10-17": "meta_data.json user_data vendor_data.json password",
		"2016-10-06": "meta_data.json user_data vendor_data.json vendor_data2.json network_data.json password",
		"latest":     "meta_data.json user_data vendor_data.json vendor_data2.json network_data.json password",
	} {
		names := strings.Fields(ask(h, "GET", "/openstack/"+version).Body.String())
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s: %s, want %s", version, got, want)
		}
		for _, name := range names {
			if w := ask(h, "GET", "/openstack/"+version+"/"+name); w.Code != 200 {
				t.Errorf("%s/%s: %d", version, name, w.Code)
			}
		}
	}
	var meta map[string]any
	w := ask(h, "GET", "/openstack/latest/meta_data.json")
	if err := json.Unmarshal(w.Body.Bytes(), &meta); err != nil || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%v: %s", err, w.Body)
	}
	for name, want := range map[string]string{"uuid": guestID.String(), "name": "web", "hostname": "web.example", "availability_zone": "nova",
		"launch_index": "2", "admin_pass": "pw", "public_keys": "map[mine:ssh-rsa AAAA x\n]", "meta": "map[no/leaf:b team:a]",
		"files": "[map[content_path:/content/0000 path:/etc/motd]]", "project_id": imageID.Hex()} {
		if got := fmt.Sprint(meta[name]); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if seed, _ := meta["random_seed"].(string); len(seed) < 512 {
		t.Errorf("a seed of %d characters", len(seed))
	}
	if again := ask(h, "GET", "/openstack/latest/meta_data.json").Body.String(); again == w.Body.String() {
		t.Error("the same randomness twice")
	}
	if got := ask(h, "GET", "/openstack/content/0000").Body.String(); got != "hello" {
		t.Error(got)
	}
	var data networkData
	if err := json.Unmarshal(ask(h, "GET", "/openstack/latest/network_data.json").Body.Bytes(), &data); err != nil {
		t.Fatal(err)
	}
	if len(data.Links) != 1 || data.Links[0].MTU != 1450 || len(data.Services) != 1 || len(data.Networks) != 3 {
		t.Fatalf("%+v", data)
	}
	if n := data.Networks[0]; n.Type != "ipv4_dhcp" || n.IPAddress != "" {
		t.Errorf("%+v", n)
	}
	if n := data.Networks[1]; n.Type != "ipv4" || n.Netmask != "255.255.0.0" || len(n.Routes) != 2 || n.Routes[1].Network != "10.9.0.0" {
		t.Errorf("%+v", n)
	}
	if n := data.Networks[2]; n.Type != "ipv6_slaac" || n.Gateway != "2001:db8::1" {
		t.Errorf("%+v", n)
	}
}

func TestTokens(t *testing.T) {
	s, h, c := serving(rich())
	const ttl, token = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "X-Aws-Ec2-Metadata-Token"
	for name, a := range map[string]struct {
		method  string
		headers []string
		status  int
	}{
		"as it is meant":   {"PUT", []string{ttl, "60"}, 200},
		"for too long":     {"PUT", []string{ttl, "21601"}, 400},
		"for no time":      {"PUT", []string{ttl, "0"}, 400},
		"for nobody knows": {"PUT", []string{ttl, "soon"}, 400},
		"without a time":   {"PUT", nil, 400},
		"through a proxy":  {"PUT", []string{ttl, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		"with GET":         {"GET", []string{ttl, "60"}, 405},
		"with POST":        {"POST", []string{ttl, "60"}, 405},
	} {
		if w := ask(h, a.method, "/latest/api/token", a.headers...); w.Code != a.status {
			t.Errorf("%s: %d, want %d", name, w.Code, a.status)
		}
	}
	w := ask(h, "PUT", "/latest/api/token", ttl, "60")
	mine := w.Body.String()
	if w.Header().Get(ttl) != "60" {
		t.Error("the answer does not tell for how long")
	}
	read := func(h http.Handler, with string) int {
		return ask(h, "GET", "/latest/meta-data/instance-id", token, with).Code
	}
	_, foreign, _ := serving(rich())
	other := s.sign(imageID, c.now.Add(time.Hour).Unix())
	longer := s.sign(guestID, c.now.Add(time.Hour).Unix())[:11] + mine[11:]
	for name, r := range map[string]struct{ got, want int }{
		"its own":             {read(h, mine), 200},
		"of another guest":    {read(h, other), 401},
		"of another server":   {read(foreign, mine), 401},
		"with a later end":    {read(h, longer), 401},
		"cut off":             {read(h, mine[:20]), 401},
		"words":               {read(h, "let me in"), 401},
		"a letter more":       {read(h, mine+"A"), 401},
		"none, as version 1":  {ask(h, "GET", "/latest/meta-data/instance-id").Code, 200},
		"not for these, ever": {ask(h, "GET", "/openstack/latest/meta_data.json", token, "x").Code, 200},
	} {
		if r.got != r.want {
			t.Errorf("%s: %d, want %d", name, r.got, r.want)
		}
	}
	c.now = c.now.Add(59 * time.Second)
	if got := read(h, mine); got != 200 {
		t.Errorf("before its end: %d", got)
	}
	c.now = c.now.Add(time.Second)
	if got := read(h, mine); got != 401 {
		t.Errorf("after its end: %d", got)
	}
}

func TestWhatIsNotThere(t *testing.T) {
	s, h, _ := serving(rich())
	for _, path := range []string{"/nothing", "/latest/x", "/latest/meta-data/x", "/latest/meta-data/instance-id/x", "/latest/user-data/x",
		"/openstack/x", "/openstack/latest/x", "/openstack/latest/meta_data.json/x", "/openstack/2012-08-10/network_data.json",
		"/openstack/content/0001", "/openstack/content/-1", "/openstack/content/x", "/openstack/content", "/openstack/api/token",
		"/latest/../openstack", "/latest/meta-data/../user-data", "/openstack/../etc/passwd", "/2009-04-04\x00/meta-data", "/latest/meta-data/public-keys/1/",
		"/latest/meta-data/tags/instance/no/leaf", "/LATEST/meta-data"} {
		if w := ask(h, "GET", path); w.Code != 404 {
			t.Errorf("%q: %d %s", path, w.Code, w.Body)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH"} {
		for _, path := range []string{"/latest/meta-data/instance-id", "/openstack/latest/meta_data.json", "/"} {
			if w := ask(h, method, path); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
	if w := ask(s.For(imageID), "GET", "/latest/meta-data/instance-id"); w.Code != 404 || strings.Contains(w.Body.String(), "i-") {
		t.Errorf("a port of nobody's: %d %s", w.Code, w.Body)
	}
	_, poor, _ := serving(compute.Guest{ID: guestID})
	for _, path := range []string{"/latest/user-data", "/openstack/latest/user_data", "/latest/meta-data/public-keys/", "/latest/meta-data/tags/", "/latest/meta-data/kernel-id"} {
		if w := ask(poor, "GET", path); w.Code != 404 {
			t.Errorf("of a guest that has none, %s: %d", path, w.Code)
		}
	}
	if got := ask(poor, "GET", "/latest").Body.String(); got != "meta-data/" {
		t.Error(got)
	}
}

// What is on a config drive says the same as what is answered.
func TestConfigDrive(t *testing.T) {
	g := rich()
	_, h, _ := serving(g)
	files := map[string]string{}
	for _, f := range ConfigDrive(&g, []byte("seed")) {
		if _, twice := files[f.Path]; twice || strings.HasPrefix(f.Path, "/") {
			t.Errorf("%s", f.Path)
		}
		files[f.Path] = string(f.Data)
	}
	for _, path := range []string{"openstack/latest/user_data", "openstack/latest/network_data.json", "openstack/latest/vendor_data.json", "openstack/content/0000"} {
		if got := ask(h, "GET", "/"+path).Body.String(); got != files[path] || got == "" {
			t.Errorf("%s: %q, answered %q", path, files[path], got)
		}
	}
	var drive map[string]any
	if err := json.Unmarshal([]byte(files["ec2/latest/meta-data.json"]), &drive); err != nil || drive["instance-id"] != "i-"+guestID.Tail() {
		t.Errorf("%v: %s", err, files["ec2/latest/meta-data.json"])
	}
	if files["ec2/latest/user-data"] != string(g.Metadata.UserData) {
		t.Errorf("%q", files["ec2/latest/user-data"])
	}
}

// FuzzPaths: whatever a guest asks for, it gets an answer of the expected sorts, and never another's.
func FuzzPaths(f *testing.F) {
	for _, seed := range []string{"/", "", "/latest/meta-data/", "/openstack/latest/meta_data.json", "/latest/api/token", "/openstack/content/0000",
		"/openstack/content/99999999999999999999", "/latest/meta-data/public-keys/0/openssh-key", "//latest//meta-data", "/latest/../..", "/\x00/\xff", "/latest/meta-data/network/interfaces/macs/"} {
		f.Add("GET", seed, "")
	}
	f.Add("PUT", "/latest/api/token", "60")
	f.Add("POST", "/openstack/latest/password", "x")
	_, h, _ := serving(rich())
	f.Fuzz(func(t *testing.T, method, path, header string) {
		r := httptest.NewRequest("GET", "/", nil)
		r.Method, r.URL.Path = method, path
		r.Header["X-Aws-Ec2-Metadata-Token-Ttl-Seconds"] = []string{header}
		r.Header["X-Aws-Ec2-Metadata-Token"] = []string{header}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		switch w.Code {
		case 200, 400, 401, 403, 404, 405:
		default:
			t.Errorf("%s %q: %d", method, path, w.Code)
		}
		if w.Code == 200 && method != http.MethodGet && method != http.MethodHead && !strings.HasSuffix(strings.TrimRight(path, "/"), "token") {
			t.Errorf("%s %q was answered", method, path)
		}
	})
}

func TestAGuestTellsItsPasswordOnce(t *testing.T) {
	g := rich()
	var told []string
	s := New(func(resource.ID) (compute.Guest, bool) { return g, true })
	down := false
	s.Tell = func(_ context.Context, id resource.ID, text string) error {
		if down {
			return errors.New("no controller hears us")
		}
		told = append(told, id.String()+" "+text)
		return nil
	}
	post := func(path, body string) int {
		w := httptest.NewRecorder()
		s.For(portID).ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
		return w.Code
	}
	const path = "/openstack/2013-10-17/password"
	if w := ask(s.For(portID), http.MethodGet, path); w.Code != http.StatusOK || w.Body.Len() > 0 {
		t.Errorf("before: %d %q", w.Code, w.Body)
	}
	for name, c := range map[string]struct {
		path, body string
		want       int
	}{
		"too long":             {path, strings.Repeat("x", compute.MaxPassword+1), http.StatusBadRequest},
		"to a version without": {"/openstack/2012-08-10/password", "x", http.StatusMethodNotAllowed},
		"to another document":  {"/openstack/latest/meta_data.json", "x", http.StatusMethodNotAllowed},
	} {
		if code := post(c.path, c.body); code != c.want {
			t.Errorf("%s: %d, want %d", name, code, c.want)
		}
	}
	down = true
	if code := post(path, "secret"); code != http.StatusServiceUnavailable {
		t.Errorf("with no controller: %d", code)
	}
	down = false
	if code := post(path, "secret"); code != http.StatusOK || !slices.Equal(told, []string{guestID.String() + " secret"}) {
		t.Errorf("%d, %q", code, told)
	}
	g.Metadata.Told = "secret"
	if code := post(path, "another"); code != http.StatusConflict || len(told) != 1 {
		t.Errorf("a second time: %d, %q", code, told)
	}
	if w := ask(s.For(portID), http.MethodGet, path); w.Body.String() != "secret" {
		t.Errorf("after: %q", w.Body)
	}
}
