package nova

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/openstack/openstacktest"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// processor reports the processor time of each operation: what a busy machine's clock does not tell.
func processor(b *testing.B, fn func()) {
	b.Helper()
	used := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	b.ReportAllocs()
	before := used()
	for b.Loop() {
		fn()
	}
	b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// discard answers nobody.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header         { return d.header }
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }
func (d *discard) WriteHeader(int)             {}

// unlimited is a cloud in which the project may have what it likes.
func unlimited(b *testing.B, hosts int) *cloudtest.Cloud {
	b.Helper()
	c := cloudtest.New(b, hosts)
	c.Must(c.Compute.SetQuota(c.Admin, c.Project, resource.ID{}, map[string]int{compute.QuotaServers: -1, compute.QuotaCores: -1, compute.QuotaMemory: -1}, true))
	c.Must(c.Network.SetQuota(c.Admin, c.Project, map[string]int{"port": -1}))
	return c
}

func large(b *testing.B, count int) (*openstack.Service, *cloudtest.Cloud) {
	b.Helper()
	c := unlimited(b, 400)
	for n := 0; n < count; n += 500 {
		c.Launch(compute.Launch{Max: 500, NICs: []compute.NICWanted{{NetworkID: c.NetworkID}}, Tags: []string{fmt.Sprint("t", n)}})
	}
	return New(Options{Compute: c.Compute, Auth: openstacktest.Tokens{"owner": c.User}}), c
}

func get(b *testing.B, s *openstack.Service, path string) {
	b.Helper()
	r := httptest.NewRequest("GET", path, nil)
	r.Header.Set("X-Auth-Token", "owner")
	s.ServeHTTP(&discard{http.Header{}}, r)
}

func BenchmarkDetailOf1000(b *testing.B) {
	s, _ := large(b, 1000)
	processor(b, func() { get(b, s, "/v2.1/servers/detail?limit=1000") })
}

func BenchmarkPageOf(b *testing.B) {
	s, c := large(b, 60000)
	for _, query := range []string{"", "name=nothing-like-it", "status=SHUTOFF", "status=BUILD", "flavor=42", "image=" + c.Image.String(), "tags=none", "ip=10.0.9.9",
		"vm_state=active", "changes-since=2099-01-01T00:00:00Z", "key_name=k", "availability_zone=elsewhere"} {
		b.Run(query, func(b *testing.B) {
			processor(b, func() { get(b, s, "/v2.1/servers/detail?limit=100&"+query) })
		})
	}
}

func BenchmarkCreate(b *testing.B) {
	c := unlimited(b, 1000)
	s := New(Options{Compute: c.Compute, Auth: openstacktest.Tokens{"owner": c.User}})
	text := `{"server":{"name":"vm","flavorRef":"42","imageRef":"` + c.Image.String() + `","networks":[{"uuid":"` + c.NetworkID.String() + `"}]}}`
	processor(b, func() {
		r := httptest.NewRequest("POST", "/v2.1/servers", io.NopCloser(strings.NewReader(text)))
		r.Header.Set("X-Auth-Token", "owner")
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusAccepted {
			b.Fatal(w.Body)
		}
	})
}
