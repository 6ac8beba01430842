package openstack_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/api/openstack"
)

// sound wants an answer that is no fault of ours: none of the 5xx but 501, and an error in the service's own shape.
func (c *cloud) sound(t *testing.T, r *http.Request) {
	t.Helper()
	w := httptest.NewRecorder()
	c.ServeHTTP(w, r)
	prefix := "/" + strings.Split(r.URL.Path, "/")[1]
	if w.Code >= 500 && w.Code != http.StatusNotImplemented {
		t.Errorf("%s %s %v: %d %s", r.Method, r.URL, r.Header, w.Code, w.Body)
	} else if problem := misshapen(prefix, w); w.Code >= 400 && problem != "" {
		t.Errorf("%s %s %v: the %d %s: %s", r.Method, r.URL, r.Header, w.Code, problem, w.Body)
	}
}

// reads are the paths of all routes that read something, in order: a seed means the same each time.
func (c *cloud) reads() []string {
	var paths []string
	for prefix, service := range c.services {
		for _, route := range service.Routes() {
			if strings.HasPrefix(route.Pattern, "GET ") && !strings.HasSuffix(route.Pattern, "/{$}") {
				path, _ := c.path(prefix, route.Pattern, "")
				paths = append(paths, path)
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// FuzzQuery asks for lists and things with any filters, sort keys, pages and microversions.
func FuzzQuery(f *testing.F) {
	c := newCloud(f)
	reads := c.reads()
	for _, seed := range [][2]string{
		{"/compute/v2.1/servers", "limit=2&marker=" + stranger}, {"/compute/v2.1/servers", "limit=99999999999999999999"},
		{"/compute/v2.1/servers/detail", "name=(a%2B)%2B%24&ip=10.*&ip6=%5B"}, {"/compute/v2.1/servers/detail", "changes-since=2030-01-01T00:00:00Z&changes-before=x"},
		{"/compute/v2.1/servers", "tags=a,b&not-tags-any=c"}, {"/compute/v2.1/servers", "status=ACTIVE&status=ERROR&all_tenants=1&sort_key=name&sort_dir=asc"},
		{"/compute/v2.1/flavors", "minRam=x&minDisk=-1&is_public=none"}, {"/compute/v2.1/os-keypairs", "user_id=x&marker=key-of-demo"},
		{"/compute/v2.1/os-simple-tenant-usage", "start=2030-01-01T00:00:00&end=2030-01-02T00:00:00&detailed=1"}, {"/compute/v2.1/os-hypervisors", "hypervisor_hostname_pattern=%25&with_servers=x"},
		{"/compute/v2.1/os-services", "host=a&binary=b"}, {"/compute/v2.1/images", "limit=-1&server=x&type=BASE"},
		{"/image/v2/images", "name=in:%22a,b%22,c&size_min=1"}, {"/image/v2/images", "created_at=gte:2030-01-01T00:00:00Z&sort=name:desc,id"}, {"/image/v2/images", "visibility=shared&member_status=all&tag=a&tag=b&marker=%00"},
		{"/image/v2/metadefs/namespaces", "resource_types=a,b&limit=1"},
		{"/network/v2.0/networks", "fields=id&fields=name&limit=1&page_reverse=true"}, {"/network/v2.0/networks", "fixed_ips=ip_address%3D10.1.0.2"},
		{"/network/v2.0/ports", "fixed_ips=ip_address%3D10.1.0.2&fixed_ips=subnet_id%3Dx&mac_address=x"}, {"/network/v2.0/subnets", "cidr=10.1.0.0/24&ip_version=4&enable_dhcp=maybe"},
		{"/network/v2.0/security-groups", "sort_key=name&sort_dir=up&tags-any=a"}, {"/network/v2.0/agents", "agent_type=x&alive=1"}, {"/network/v2.0/floatingips", "floating_ip_address=::1&status=x"},
		{"/identity/v3/users", "name__contains=x&enabled=maybe&limit=0"}, {"/identity/v3/users", "password_expires_at=lt:2030-01-01T00:00:00Z"}, {"/identity/v3/projects", "tags=a,b&parents_as_ids"},
		{"/identity/v3/role_assignments", "scope.project.id=x&effective&include_names=1"}, {"/identity/v3/role_assignments", "a;b&%zz=%"},
		{"/placement/resource_providers", "resources=VCPU:2,DISK_GB:1&required=in:HW_CPU_X86_AVX2,CUSTOM_GOLD&required=!CUSTOM_GOLD&member_of=!in:" + stranger}, {"/placement/traits", "name=startswith:CUSTOM&associated=true"},
		{"/placement/allocation_candidates", "resources=VCPU:1&resources_A=MEMORY_MB:99999999999999999999&required_A=!CUSTOM_GOLD&same_subtree=_A&group_policy=isolate&limit=2&root_required=COMPUTE_NODE&in_tree=" + stranger},
		{"/placement/usages", "project_id=x&user_id=y&consumer_type=all"},
	} {
		at := slices.Index(reads, seed[0])
		if at < 0 {
			f.Fatalf("no route for %s", seed[0])
		}
		f.Add(uint16(at), seed[1], "compute 2.93, placement 1.39")
	}
	f.Add(uint16(0), "", "compute 2.0000000000000000000001")
	f.Add(uint16(0), "", "compute latest, volume 3.0,")
	f.Fuzz(func(t *testing.T, at uint16, query, version string) {
		for _, who := range []string{"admin", "demo"} {
			r := httptest.NewRequest("GET", "http://cloud.example/", nil)
			r.URL = &url.URL{Scheme: "http", Host: "cloud.example", Path: reads[int(at)%len(reads)], RawQuery: query}
			r.RequestURI = r.URL.RequestURI()
			r.Header.Set("Accept", "application/json")
			r.Header.Set("X-Auth-Token", c.tokens[who])
			r.Header.Set("OpenStack-API-Version", version)
			c.sound(t, r)
		}
	})
}

// FuzzHeaders asks with anything in a header that some service reads.
func FuzzHeaders(f *testing.F) {
	c := newCloud(f)
	reads := c.reads()
	headers := []string{"X-Auth-Token", "X-Subject-Token", "Authorization", "Range", "If-Match", "Accept", "Content-Type", "X-Forwarded-Proto", "Host",
		"OpenStack-API-Version", "X-OpenStack-Nova-API-Version", "Unkai-As-Of", "Unkai-Plan", "Idempotency-Key", "X-Openstack-Request-Id"}
	for n := range headers {
		for _, value := range []string{"x", c.tokens["demo"], "bytes=0-", "bytes=5-2", "bytes=-99999999999999999999", "revision_number=-1", "revision_number=1",
			"compute 2.60", "2.999999", "latest", "2030-01-01T00:00:00Z", "-1", "99999999999999999999", "true", "a\r\nb: c", "text/html;q=0.1, */*", "\x00\xff",
			`OAuth oauth_consumer_key="x", oauth_signature_method="HMAC-SHA1", oauth_timestamp="1", oauth_nonce="n", oauth_version="1.0", oauth_signature="s%3D"`, strings.Repeat("x", 5000)} {
			f.Add(uint16(n*37), uint8(n), value)
		}
	}
	f.Fuzz(func(t *testing.T, at uint16, header uint8, value string) {
		for _, path := range []string{reads[int(at)%len(reads)], "/identity/v3/auth/tokens", "/image/v2/images/" + c.ids["images"] + "/file"} {
			r := httptest.NewRequest("GET", "http://cloud.example"+path, nil)
			r.Header.Set("Accept", "application/json")
			r.Header.Set("X-Auth-Token", c.tokens["admin"])
			switch name := headers[int(header)%len(headers)]; name {
			case "Host":
				r.Host = value
			case "Accept":
				continue // chooses the shape of an error, which is then no JSON
			default:
				r.Header.Set(name, value)
			}
			c.sound(t, r)
		}
	})
}

// FuzzParseVersion reads microversions: each is spelled in one way only.
func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"2.1", "2.93", "2.01", "02.1", "2", "2.", ".1", "2.1.1", "+2.1", "2.-1", "65536.1", "2.1 ", "", "latest", "٢.١"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, ok := openstack.ParseVersion(s); ok && v.String() != s {
			t.Errorf("%q is read as %s", s, v)
		}
	})
}
