package neutron_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

const clients = 16

// BenchmarkCreate makes networks and ports by HTTP from 16 clients, on etcd on disk.
func BenchmarkCreate(b *testing.B) {
	engine, err := etcd.Open(b.Context(), etcd.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := engine.Close(); err != nil {
			b.Error(err)
		}
	})
	c := start(b, engine)
	c.Client().Transport.(*http.Transport).MaxIdleConnsPerHost = clients
	c.do("admin", "PUT /v2.0/quotas/"+demo.Hex(), `{"quota": {"network": -1, "port": -1, "subnet": -1}}`).want(200)
	n := c.make("demo", "networks", `{"network": {}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "cidr": "10.0.0.0/8"}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "cidr": "fd00::/64", "ipv6_ra_mode": "slaac", "ipv6_address_mode": "slaac"}}`)
	b.Run("network", func(b *testing.B) { c.flood(b, "networks", `{"network": {"name": "n"}}`) })
	b.Run("port", func(b *testing.B) { c.flood(b, "ports", `{"port": {"network_id": "`+n+`", "name": "p"}}`) })
}

func (c *cloud) flood(b *testing.B, path, body string) {
	var wg sync.WaitGroup
	work := make(chan struct{})
	for range clients {
		wg.Go(func() {
			for range work {
				if status, err := c.post("demo", "/v2.0/"+path, body); err != nil || status != 201 {
					b.Errorf("%d %v", status, err)
				}
			}
		})
	}
	for b.Loop() {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "per-s")
}

// post is do for benchmarks: nothing but the status is looked at.
func (c *cloud) post(who, path, body string) (int, error) {
	r, err := http.NewRequest("POST", c.URL+"/network"+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("X-Auth-Token", who)
	response, err := c.Client().Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// BenchmarkList asks for pages of 100 of 100,000 ports with all kinds of filters, and reports the
// 99th percentile. UNKAI_BENCH_PORTS sets another number of ports.
func BenchmarkList(b *testing.B) {
	count := 100_000
	if s := os.Getenv("UNKAI_BENCH_PORTS"); s != "" {
		if _, err := fmt.Sscan(s, &count); err != nil {
			b.Fatal(err)
		}
	}
	c := start(b, state.NewMemory(0))
	n, group := c.populate(b, count)
	for _, filter := range []string{
		"", "status=DOWN", "status=ACTIVE", "admin_state_up=False", "name=p5", "name=none", "device_id=d7", "network_id=" + n,
		"fixed_ips=ip_address=10.0.1.1", "fixed_ips=ip_address_substr=0.77.7", "fixed_ips=ip_address_substr=zzz", "mac_address=fa:16:3e:00:00:01",
		"security_groups=" + group, "device_owner=compute:nova&status=BUILD", "description=none", "tags=none", "tags=t3&status=DOWN", "not-tags=t3",
		"sort_key=name&sort_dir=desc", "project_id=" + demo.Hex() + "&status=ACTIVE", "network_id=" + n + "&status=ACTIVE", "revision_number=0",
		"binding:host_id=h&admin_state_up=true", "dns_name=none", "port_security_enabled=false",
	} {
		for _, who := range []string{"demo", "admin"} {
			b.Run(who+"?"+filter, func(b *testing.B) {
				var took []time.Duration
				for b.Loop() {
					begin := time.Now()
					c.do(who, "GET /v2.0/ports?limit=100&"+filter, "").want(200)
					took = append(took, time.Since(begin))
				}
				slices.Sort(took)
				b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			})
		}
	}
}

// populate makes ports of demo, with the core's own verbs.
func (c *cloud) populate(b *testing.B, count int) (networkID, groupID string) {
	ctx := identity.Internal(b.Context())
	if err := c.networks.SetQuota(ctx, demo, map[string]int{"port": network.Unlimited}); err != nil {
		b.Fatal(err)
	}
	n := c.make("demo", "networks", `{"network": {}}`)
	c.make("demo", "subnets", `{"subnet": {"network_id": "`+n+`", "cidr": "10.0.0.0/8"}}`)
	id := resource.MustID(n)
	for made := 0; made < count; {
		batch := make([]*network.Port, min(500, count-made))
		for i := range batch {
			batch[i] = &network.Port{Meta: resource.Meta{ProjectID: demo, Name: fmt.Sprint("p", made)}, NetworkID: id, AdminUp: true, PortSecurity: true,
				VNIC: network.NormalVNIC, DeviceID: fmt.Sprint("d", made), OwnerLabel: "compute:nova", Tags: []string{fmt.Sprint("t", made%1000)}}
			made++
		}
		if _, err := c.networks.Ports.Create(ctx, batch...); err != nil {
			b.Fatal(err)
		}
	}
	return n, c.do("demo", "GET /v2.0/security-groups?name=default", "").at("security_groups", 0, "id")
}
