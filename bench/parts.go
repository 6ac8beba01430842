package main

import (
	"bytes"
	"crypto/md5"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"time"
)

func ms(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }

// start: an empty directory, and an idle control plane.
func (b *bench) start() error {
	c, err := b.fresh(2)
	if err != nil {
		return err
	}
	b.note("`up` on an empty directory, ready", "< 2 s", c.ready < 2*time.Second, "%.2f s", c.ready.Seconds())
	time.Sleep(10 * time.Second)
	before, err := c.processorSeconds()
	if err != nil {
		return err
	}
	time.Sleep(10 * time.Second)
	after, err := c.processorSeconds()
	if err != nil {
		return err
	}
	mib, err := c.residentMiB()
	b.note("idle, resident", "< 150 MiB", mib < 150, "%d MiB, %.1f %% of a processor", mib, (after-before)*10)
	return err
}

// tokens: the hash alone is to bound a login.
func (b *bench) tokens() error {
	c, err := b.fresh(2)
	if err != nil {
		return err
	}
	body, err := passwordRequest(b.dir)
	if err != nil {
		return err
	}
	took, _, err := load(30, 1, func(int) error {
		res, err := c.client.Post(c.url+"/identity/v3/auth/tokens", "application/json", bytes.NewReader(body))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			return fmt.Errorf("login: %s", res.Status)
		}
		_, err = io.Copy(io.Discard, res.Body)
		return err
	})
	if err != nil {
		return err
	}
	login := took.at(0.5)
	// The rest of a login is what a login by token takes: the same request without a hash.
	again := fmt.Appendf(nil, `{"auth":{"identity":{"methods":["token"],"token":{"id":%q}},"scope":{"project":{"id":%q}}}}`, c.token, c.project)
	took, _, err = load(200, 1, func(int) error {
		res, err := c.client.Post(c.url+"/identity/v3/auth/tokens", "application/json", bytes.NewReader(again))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusCreated {
			return fmt.Errorf("login by token: %s", res.Status)
		}
		_, err = io.Copy(io.Discard, res.Body)
		return err
	})
	if err != nil {
		return err
	}
	rest := took.at(0.5)
	b.note("password token, p50 (argon2id; see identity.HashCost)", "the hash alone", true, "%s", ms(login))
	b.note("  the rest of the request, p50", "< 1 ms", rest < time.Millisecond, "%s", ms(rest))
	took, all, err := load(5000, 8, func(int) error { return c.do("GET", "/network/v2.0/networks?limit=1&fields=id", nil, nil) })
	if err != nil {
		return err
	}
	// What a check of a token adds to a request that needs none.
	plain, _, err := load(2000, 1, func(int) error { return c.ask("GET", "/identity/v3", nil) })
	if err != nil {
		return err
	}
	checked, _, err := load(2000, 1, func(int) error {
		return c.ask("HEAD", "/identity/v3/auth/tokens", map[string]string{"X-Auth-Token": c.token, "X-Subject-Token": c.token})
	})
	if err != nil {
		return err
	}
	b.note("token check (HEAD /v3/auth/tokens), one client, p50", "< 0.2 ms", checked.at(0.5) < 200*time.Microsecond,
		"%s with HTTP, p99 %s (a request without a token: %s)", ms(checked.at(0.5)), ms(checked.at(0.99)), ms(plain.at(0.5)))
	b.note("smallest request with a token, 8 clients", "", true, "%.0f/s, p50 %s", 5000/all.Seconds(), ms(took.at(0.5)))
	return nil
}

// images: 256 MiB in and out.
func (b *bench) images() error {
	c, err := b.fresh(2)
	if err != nil {
		return err
	}
	const size = 256 << 20
	file, err := os.CreateTemp(b.dir, "image")
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for range size >> 20 {
		if _, err := file.Write(block); err != nil {
			return err
		}
	}
	mibs := func(d time.Duration) float64 { return size / 1e6 / d.Seconds() }
	var in, out, plain float64
	peak := 0
	for range 3 {
		var made struct{ ID string }
		if err := c.do("POST", "/image/v2/images", map[string]any{"name": "bench", "disk_format": "raw", "container_format": "bare"}, &made); err != nil {
			return err
		}
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		began := time.Now()
		if err := c.transfer("PUT", "/image/v2/images/"+made.ID+"/file", file, size); err != nil {
			return err
		}
		in = max(in, mibs(time.Since(began)))
		if n, err := c.residentMiB(); err == nil {
			peak = max(peak, n)
		}
		began = time.Now()
		if err := c.transfer("GET", "/image/v2/images/"+made.ID+"/file", nil, 0); err != nil {
			return err
		}
		out = max(out, mibs(time.Since(began)))
		if err := c.do("DELETE", "/image/v2/images/"+made.ID, nil, nil); err != nil {
			return err
		}
		began = time.Now()
		if err := copyWithSync(file, b.dir); err != nil {
			return err
		}
		plain = max(plain, mibs(time.Since(began)))
	}
	// An upload has a sha512 and an md5, neither of which can be split: they bound it.
	digest := func(h hash.Hash) float64 {
		began := time.Now()
		for range size >> 20 {
			h.Write(block)
		}
		return mibs(time.Since(began))
	}
	b.note("image upload, 256 MiB, best of 3", ">= 400 MB/s", in >= 400, "%.0f MB/s (a plain copy with fsync: %.0f MB/s; sha512 alone: %.0f MB/s, md5 alone: %.0f MB/s)",
		in, plain, digest(sha512.New()), digest(md5.New()))
	b.note("image download", ">= 1,500 MB/s", out >= 1500, "%.0f MB/s", out)
	b.note("  resident meanwhile", "constant", peak < 300, "%d MiB", peak)
	return nil
}

func copyWithSync(file *os.File, dir string) error {
	to, err := os.CreateTemp(dir, "copy")
	if err != nil {
		return err
	}
	defer os.Remove(to.Name())
	defer to.Close()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(to, struct{ io.Reader }{file}); err != nil {
		return err
	}
	return to.Sync()
}

func (c *cloud) transfer(method, path string, body io.Reader, size int64) error {
	req, err := http.NewRequest(method, c.url+path, body)
	if err != nil {
		return err
	}
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(body), size
	}
	req.Header.Set("X-Auth-Token", c.token)
	req.Header.Set("Content-Type", "application/octet-stream")
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, res.Body, make([]byte, 1<<20))
	return err
}

// unlimited lifts the quotas of the project.
func (c *cloud) unlimited() error {
	quota := map[string]any{"quota_set": map[string]int{"instances": -1, "cores": -1, "ram": -1}}
	if err := c.do("PUT", "/compute/v2.1/os-quota-sets/"+c.project, quota, nil); err != nil {
		return err
	}
	return c.do("PUT", "/network/v2.0/quotas/"+c.project, map[string]any{"quota": map[string]int{"network": -1, "subnet": -1, "port": -1}}, nil)
}

// network makes a network with room for many servers, and answers its ID.
func (c *cloud) network(name, cidr string) (string, error) {
	var n struct{ Network struct{ ID string } }
	if err := c.do("POST", "/network/v2.0/networks", map[string]any{"network": map[string]any{"name": name}}, &n); err != nil {
		return "", err
	}
	return n.Network.ID, c.do("POST", "/network/v2.0/subnets", map[string]any{"subnet": map[string]any{
		"network_id": n.Network.ID, "ip_version": 4, "cidr": cidr}}, nil)
}

func (b *bench) networks() error {
	c, err := b.fresh(2)
	if err != nil {
		return err
	}
	if err := c.unlimited(); err != nil {
		return err
	}
	took, all, err := load(4000, 16, func(n int) error {
		return c.do("POST", "/network/v2.0/networks", map[string]any{"network": map[string]any{"name": fmt.Sprint("n", n)}}, nil)
	})
	if err != nil {
		return err
	}
	rate := 4000 / all.Seconds()
	b.note("network create, 16 clients", ">= 800/s", rate >= 800, "%.0f/s, p50 %s", rate, ms(took.at(0.5)))
	id, err := c.network("ports", "10.64.0.0/14")
	if err != nil {
		return err
	}
	took, all, err = load(4000, 16, func(n int) error {
		return c.do("POST", "/network/v2.0/ports", map[string]any{"port": map[string]any{"network_id": id}}, nil)
	})
	if err != nil {
		return err
	}
	rate = 4000 / all.Seconds()
	b.note("port create, 16 clients", ">= 800/s", rate >= 800, "%.0f/s, p50 %s", rate, ms(took.at(0.5)))
	return nil
}

// launch is the body of a server create.
type launch struct {
	image, flavor string
	networks      any
}

// prepare finds the image and the flavor, lifts the quotas, and makes a wide network.
func (c *cloud) prepare(withNetwork bool) (l launch, err error) {
	var images struct{ Images []struct{ ID string } }
	if err := c.do("GET", "/image/v2/images?name=tiny", nil, &images); err != nil {
		return l, err
	}
	if len(images.Images) == 0 {
		return l, fmt.Errorf("there is no image named tiny")
	}
	l.image, l.flavor, l.networks = images.Images[0].ID, "42", "none"
	if err := c.unlimited(); err != nil {
		return l, err
	}
	if withNetwork {
		id, err := c.network("wide", "10.64.0.0/14")
		if err != nil {
			return l, err
		}
		l.networks = []map[string]string{{"uuid": id}}
	}
	return l, nil
}

func (c *cloud) create(l launch, name string, count int) error {
	server := map[string]any{"name": name, "imageRef": l.image, "flavorRef": l.flavor, "networks": l.networks}
	if count > 1 {
		server["min_count"] = count
	}
	return c.do("POST", "/compute/v2.1/servers", map[string]any{"server": server}, nil)
}

// awaitActive waits until so many servers are ACTIVE, and fails when one is in ERROR.
func (c *cloud) awaitActive(count int, within time.Duration) error {
	for end := time.Now().Add(within); ; {
		n, err := c.count("BUILD")
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %v some servers are still not ACTIVE", within)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if n, err := c.count("ERROR"); err != nil || n > 0 {
		return fmt.Errorf("some servers are in ERROR (%v)", err)
	}
	return nil
}

// count says whether there are servers with a status: 0 or 1, which one request can tell.
func (c *cloud) count(status string) (int, error) {
	var list struct{ Servers []struct{ ID string } }
	err := c.do("GET", "/compute/v2.1/servers?limit=1&status="+status, nil, &list)
	return len(list.Servers), err
}

func (b *bench) creates() error {
	c, err := b.fresh(100)
	if err != nil {
		return err
	}
	l, err := c.prepare(true)
	if err != nil {
		return err
	}
	const count = 3000
	began := time.Now()
	took, all, err := load(count, 16, func(n int) error { return c.create(l, fmt.Sprint("s", n), 1) })
	if err != nil {
		return err
	}
	if err := c.awaitActive(count, 2*time.Minute); err != nil {
		return err
	}
	active := time.Since(began)
	rate := count / all.Seconds()
	b.note("server create accepted, 16 clients", ">= 800/s", rate >= 800, "%.0f/s; all %d ACTIVE after %.1f s", rate, count, active.Seconds())
	b.note("  p50 under that load", "", true, "%s, p99 %s", ms(took.at(0.5)), ms(took.at(0.99)))
	took, _, err = load(300, 1, func(n int) error { return c.create(l, fmt.Sprint("one", n), 1) })
	if err != nil {
		return err
	}
	b.note("server create accepted, one client, p50", "< 5 ms", took.at(0.5) < 5*time.Millisecond, "%s, p99 %s", ms(took.at(0.5)), ms(took.at(0.99)))
	return nil
}

func (b *bench) details() error {
	c, err := b.fresh(20)
	if err != nil {
		return err
	}
	l, err := c.prepare(true)
	if err != nil {
		return err
	}
	for n := range 10 {
		if err := c.create(l, fmt.Sprint("d", n), 100); err != nil {
			return err
		}
	}
	if err := c.awaitActive(1000, time.Minute); err != nil {
		return err
	}
	took, _, err := load(40, 1, func(int) error { return c.do("GET", "/compute/v2.1/servers/detail?limit=1000", nil, nil) })
	if err != nil {
		return err
	}
	b.note("1,000 servers with detail, p50", "< 25 ms", took.at(0.5) < 25*time.Millisecond, "%s, p99 %s", ms(took.at(0.5)), ms(took.at(0.99)))
	return nil
}

func (b *bench) tenThousand() error {
	c, err := b.fresh(1000)
	if err != nil {
		return err
	}
	l, err := c.prepare(true)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, _, err := load(10_000, 16, func(n int) error { return c.create(l, fmt.Sprint("t", n), 1) }); err != nil {
		return err
	}
	accepted := time.Since(began)
	if err := c.awaitActive(10_000, 10*time.Minute); err != nil {
		return err
	}
	all := time.Since(began)
	b.note("10,000 servers on 1,000 hosts ACTIVE", "< 30 s", all < 30*time.Second, "%.1f s (all accepted after %.1f s)", all.Seconds(), accepted.Seconds())
	mib, err := c.residentMiB()
	b.note("  resident then, simulated hosts included", "", true, "%d MiB", mib)
	return err
}

// filters that every page of the large cloud is asked with.
var filters = []string{"", "&status=ACTIVE", "&name=^l99", "&image=%s", "&flavor=42", "&status=SHUTOFF", "&changes-since=2020-01-01T00:00:00Z",
	"&all_tenants=1&status=ACTIVE", "&availability_zone=nova", "&tags=none-has-it", "&name=l9", "&name=none-has-it", "&locked=false", "&key_name=none-has-it", "&sort_key=created_at&sort_dir=desc"}

func (b *bench) hundredThousand() error {
	const hosts = 1000
	c, err := b.fresh(hosts)
	if err != nil {
		return err
	}
	l, err := c.prepare(false)
	if err != nil {
		return err
	}
	began := time.Now()
	if _, _, err := load(b.large/500, 4, func(n int) error { return c.create(l, fmt.Sprint("l", n), 500) }); err != nil {
		return err
	}
	if err := c.awaitActive(b.large, 10*time.Minute); err != nil {
		return err
	}
	b.note(fmt.Sprintf("%d servers on %d hosts, all ACTIVE", b.large, hosts), "", true, "after %.0f s", time.Since(began).Seconds())
	mib, err := c.residentMiB()
	if err != nil {
		return err
	}
	b.note("  resident, simulated hosts included", "< 1536 MiB", mib < 1536, "%d MiB", mib)
	for _, f := range filters {
		if bytes.Contains([]byte(f), []byte("%s")) {
			f = fmt.Sprintf(f, l.image)
		}
		took, _, err := load(200, 1, func(int) error { return c.do("GET", "/compute/v2.1/servers/detail?limit=100"+f, nil, nil) })
		if err != nil {
			return err
		}
		p99 := took.at(0.99)
		b.note("  page of 100"+f, "p99 < 10 ms", p99 < 10*time.Millisecond, "p50 %s, p99 %s", ms(took.at(0.5)), ms(p99))
	}
	dir := b.dir
	b.end()
	b.dir = dir
	c, err = b.up(dir, hosts)
	if err != nil {
		return err
	}
	b.note("  restart with them, ready", "< 10 s", c.ready < 10*time.Second, "%.1f s", c.ready.Seconds())
	time.Sleep(5 * time.Second)
	if mib, err = c.residentMiB(); err != nil {
		return err
	}
	b.note("  resident after the restart", "< 1536 MiB", mib < 1536, "%d MiB", mib)
	before, err := c.processorSeconds()
	if err != nil {
		return err
	}
	time.Sleep(atRest)
	after, err := c.processorSeconds()
	if err != nil {
		return err
	}
	b.note("  at rest then, of a processor", "", true, "%.1f %%", (after-before)/atRest.Seconds()*100)
	return nil
}
