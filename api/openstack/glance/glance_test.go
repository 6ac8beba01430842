package glance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack/openstacktest"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/reconcile"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

const (
	ownerProject = "0190000000007000800000000000a101"
	otherProject = "0190000000007000800000000000a202"
)

var actors = openstacktest.Tokens{
	"owner":  actor(ownerProject, "member", "reader"),
	"reader": actor(ownerProject, "reader"),
	"other":  actor(otherProject, "member", "reader"),
	"admin":  actor("0190000000007000800000000000a303", "admin", "manager", "member", "reader"),
}

func actor(project string, roles ...string) *identity.Actor {
	return &identity.Actor{UserID: resource.MustID("01900000-0000-7000-8000-0000000000b1"), ProjectID: resource.MustID(project), Roles: roles}
}

// serve runs the service on a listener, as the program does.
func serve(t testing.TB) (*httptest.Server, *image.Service) {
	t.Helper()
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	images := image.New(st, new(imagetest.Memory), image.Config{MaxBytes: 1 << 30})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	r := reconcile.New(st, time.Now(), images.Task())
	go func() {
		defer close(done)
		r.Run(ctx, 1)
	}()
	server := httptest.NewServer(wire.Serve(http.StripPrefix(prefix, New(Options{Images: images, Auth: actors}))))
	t.Cleanup(func() {
		server.Close()
		cancel()
		<-done
	})
	return server, images
}

func TestConversations(t *testing.T) {
	openstacktest.Replay(t, func(t *testing.T) openstacktest.Stage {
		server, _ := serve(t)
		return openstacktest.Stage{URL: server.URL + prefix,
			Bound: map[string]string{"$ownerProject": ownerProject, "$otherProject": otherProject, "$base": server.URL}}
	})
}

func do(t testing.TB, who, method, url string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Auth-Token", who)
	for n := 0; n < len(headers); n += 2 {
		req.Header.Set(headers[n], headers[n+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return res
}

func queued(t testing.TB, images *image.Service) resource.ID {
	t.Helper()
	i, err := images.Create(identity.As(t.Context(), actors["owner"]), image.Request{Name: "x", Spec: image.Spec{Format: "raw", Container: "bare"}})
	if err != nil {
		t.Fatal(err)
	}
	return i.ID
}

// TestErrorPage is for clients that do not ask for JSON: they take the text out of a page.
func TestErrorPage(t *testing.T) {
	server, _ := serve(t)
	res := do(t, "owner", "GET", server.URL+prefix+"/v2/images/<b>", nil)
	page, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 404 || res.Header.Get("Content-Type") != "text/html; charset=UTF-8" ||
		!strings.Contains(string(page), "<h1>404 Not Found</h1>") || !strings.Contains(string(page), "&lt;b&gt;") {
		t.Errorf("%s: %s", res.Status, page)
	}
}

// TestClientLeaves cuts an upload off in the middle: the image is queued again, nothing is kept.
func TestClientLeaves(t *testing.T) {
	server, images := serve(t)
	id := queued(t, images)
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "PUT %s/v2/images/%s/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: owner\r\n"+
		"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", prefix, id, 8<<20)
	if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	wait(t, images, id, image.Receiving)
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, images, id, image.Queued)
	if found, err := images.Audit(t.Context()); err != nil || len(found) > 0 {
		t.Errorf("the audit finds %v, %v", found, err)
	}
	res := do(t, "owner", "PUT", server.URL+prefix+"/v2/images/"+id.String()+"/file", strings.NewReader("x"), "Content-Type", "application/octet-stream")
	if res.StatusCode != 204 {
		t.Errorf("a second try: %s", res.Status)
	}
}

func wait(t *testing.T, images *image.Service, id resource.ID, want image.State) {
	t.Helper()
	for range 400 {
		i, err := images.Get(identity.Internal(t.Context()), id)
		if err != nil {
			t.Fatal(err)
		}
		if i.State == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("the image never became %s", want)
}

func TestRange(t *testing.T) {
	server, images := serve(t)
	id := queued(t, images)
	file := server.URL + prefix + "/v2/images/" + id.String() + "/file"
	if res := do(t, "owner", "PUT", file, strings.NewReader("0123456789"), "Content-Type", "application/octet-stream"); res.StatusCode != 204 {
		t.Fatal(res.Status)
	}
	for ask, want := range map[string]struct {
		status int
		body   string
	}{
		"": {200, "0123456789"}, "bytes=2-4": {206, "234"}, "bytes=-3": {206, "789"}, "bytes=20-": {416, ""},
	} {
		res := do(t, "owner", "GET", file, nil, "Range", ask)
		got, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != want.status || want.body != "" && string(got) != want.body {
			t.Errorf("range %q: %s, %q", ask, res.Status, got)
		}
		if want.status == 200 && res.Header.Get("Content-Md5") != "781e5e245d69b566979b86e28d23f2c7" {
			t.Errorf("Content-MD5 is %q", res.Header.Get("Content-Md5"))
		}
	}
}

// TestPages follows the links as clients do, until there is none.
func TestPages(t *testing.T) {
	server, images := serve(t)
	want := map[string]bool{}
	for range 60 {
		want[queued(t, images).String()] = true
	}
	next := "/v2/images?limit=7&sort=name:asc&visibility=shared"
	pages := 0
	for ; next != ""; pages++ {
		res := do(t, "owner", "GET", server.URL+prefix+next, nil)
		var page struct {
			Images []struct{ ID string }
			Next   string
		}
		if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
			t.Fatal(err)
		}
		for _, i := range page.Images {
			if !want[i.ID] {
				t.Fatalf("%s came twice or uninvited", i.ID)
			}
			delete(want, i.ID)
		}
		next = page.Next
	}
	if len(want) > 0 || pages != 9 {
		t.Errorf("%d pages, and %d are missing", pages, len(want))
	}
}

func FuzzPatch(f *testing.F) {
	for _, body := range []string{
		`[{"op":"replace","path":"/name","value":"x"}]`, `[{"op":"add","path":"/a~1b","value":"x"},{"op":"remove","path":"/a~1b"}]`,
		`[{"op":"add","path":"/tags/-","value":"x"}]`, `[{"replace":"/owner","value":"zz"}]`, `[{}]`, `null`, `[null]`, `[{"op":"add","path":"/min_disk","value":1e99}]`,
	} {
		f.Add(body, true)
		f.Add(body, false)
	}
	f.Fuzz(func(t *testing.T, body string, newer bool) {
		media := "application/openstack-images-v2.0-json-patch"
		if newer {
			media = "application/openstack-images-v2.1-json-patch"
		}
		r := httptest.NewRequest("PATCH", "/", bytes.NewReader([]byte(body)))
		r.Header.Set("Content-Type", media)
		changes, err := readPatch(httptest.NewRecorder(), r)
		if err != nil {
			if fault.From(err) == nil {
				t.Fatalf("not a fault: %v", err)
			}
			return
		}
		i := &image.Image{Spec: image.Spec{Tags: []string{"a"}}}
		for _, c := range changes {
			if err := c.apply(i); err != nil && fault.From(err) == nil {
				t.Fatalf("not a fault: %v", err)
			}
		}
		if i.State != "" || !i.ID.IsZero() || i.Bytes != 0 {
			t.Fatalf("a patch wrote what it must not: %+v", i)
		}
	})
}
