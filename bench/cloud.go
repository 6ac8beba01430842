package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A cloud is a running unkai with an admin's token.
type cloud struct {
	cmd     *exec.Cmd
	url     string
	token   string
	project string
	client  *http.Client
	ready   time.Duration
}

// up starts a cloud with so many simulated hosts; dir is kept when it is there.
func (b *bench) up(dir string, hosts int) (*cloud, error) {
	return b.launch(dir, "--sim", strconv.Itoa(hosts))
}

func (b *bench) launch(dir string, options ...string) (*cloud, error) {
	cmd := exec.Command(b.unkai, append([]string{"up", "--data", dir, "--listen", "127.0.0.1:0"}, options...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := os.Create(filepath.Join(b.dir, "unkai.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stderr = log
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &cloud{cmd: cmd, client: &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	b.cloud = c
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		said, _ := os.ReadFile(log.Name()) // only to say more: it goes with the directory
		return nil, fmt.Errorf("unkai did not become ready: %w: %s", err, said[max(0, len(said)-2048):])
	}
	c.ready = time.Since(began)
	c.url = strings.TrimSpace(strings.TrimPrefix(line, "ready "))
	go io.Copy(io.Discard, out) // ends with the process
	return c, c.login(dir)
}

// fresh starts a cloud in a new directory.
func (b *bench) fresh(hosts int) (*cloud, error) {
	dir, err := os.MkdirTemp("", "unkai-bench-")
	if err != nil {
		return nil, err
	}
	b.dir = dir
	return b.up(dir, hosts)
}

// stop ends the cloud and removes its directory.
func (b *bench) stop() {
	b.end()
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
	b.dir = ""
}

func (b *bench) end() {
	if b.cloud == nil {
		return
	}
	b.cloud.cmd.Process.Signal(syscall.SIGTERM)
	b.cloud.cmd.Wait()
	b.cloud = nil
}

// passwordRequest is a login of the admin.
func passwordRequest(dir string) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, "secrets.json"))
	if err != nil {
		return nil, err
	}
	var s struct{ Admin string }
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":%q}}},
		"scope":{"project":{"name":"admin","domain":{"id":"default"}}}}}`, s.Admin), nil
}

func (c *cloud) login(dir string) error {
	body, err := passwordRequest(dir)
	if err != nil {
		return err
	}
	res, err := c.client.Post(c.url+"/identity/v3/auth/tokens", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Token struct{ Project struct{ ID string } }
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	c.token, c.project = res.Header.Get("X-Subject-Token"), answer.Token.Project.ID
	if c.token == "" {
		return errors.New("no token")
	}
	return nil
}

// do makes a request and decodes the answer into v, if that is not nil.
func (c *cloud) do(method, path string, body, v any) error {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, c.url+path, in)
	if err != nil {
		return err
	}
	req.Header.Set("X-Auth-Token", c.token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("OpenStack-API-Version", "compute 2.60")
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 2048)) // only to say more
		return fmt.Errorf("%s %s: %s: %s", method, path, res.Status, text)
	}
	if v == nil {
		_, err = io.Copy(io.Discard, res.Body)
		return err
	}
	return json.NewDecoder(res.Body).Decode(v)
}

// ask makes a request whose answer does not matter, so long as it is a good one.
func (c *cloud) ask(method, path string, header map[string]string) error {
	req, err := http.NewRequest(method, c.url+path, nil)
	if err != nil {
		return err
	}
	for name, value := range header {
		req.Header.Set(name, value)
	}
	res, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s", method, path, res.Status)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// times are how long each of many requests took.
type times []time.Duration

func (t times) at(p float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	slices.Sort(t)
	return t[min(len(t)-1, int(float64(len(t))*p))]
}

// load makes count requests with so many clients, and answers how long each took and all together.
func load(count, clients int, one func(n int) error) (times, time.Duration, error) {
	took := make(times, count)
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	began := time.Now()
	for range clients {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= count {
					return
				}
				at := time.Now()
				err := one(n)
				took[n] = time.Since(at)
				if err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					next.Store(int64(count))
					return
				}
			}
		})
	}
	wg.Wait()
	return took, time.Since(began), failed
}

// residentMiB is the memory that the cloud's process holds.
func (c *cloud) residentMiB() (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return n / 1024, err
		}
	}
	return 0, errors.New("the kernel does not say")
}

// processorSeconds is how much processor time the cloud's process has used.
func (c *cloud) processorSeconds() (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100, errors.Join(err1, err2)
}
