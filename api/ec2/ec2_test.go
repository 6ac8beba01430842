package ec2

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/image/imagetest"
)

// users are who may ask, by access key. Of each the secret is "secret-" and the key.
type users map[string]*identity.Actor

func (u users) EC2Secret(_ context.Context, access string) (string, *identity.Actor, error) {
	if a := u[access]; a != nil {
		return "secret-" + access, a, nil
	}
	return "", nil, fault.Errorf(fault.Unauthorized, "no")
}

// screens are consoles on which every guest wrote the same.
type screens struct{}

func (screens) ConsoleLog(context.Context, resource.ID, resource.ID, int) ([]byte, error) {
	return []byte("login: "), nil
}

func (screens) Weigh(context.Context, resource.ID, resource.ID, string) (compute.Burden, error) {
	return compute.Burden{}, nil
}

func (screens) Console(context.Context, resource.ID, resource.ID, string) (net.Conn, error) {
	return nil, fault.Errorf(fault.Unavailable, "no")
}

// A bench is the service on a listener, over a cloud with two hosts.
type bench struct {
	t     testing.TB
	cloud *cloudtest.Cloud
	url   string
	bound map[string]string
}

func newBench(t testing.TB) *bench {
	t.Helper()
	c := cloudtest.New(t, 2)
	reader, admin := *c.User, *c.User
	reader.Roles, admin.Roles = []string{"reader"}, []string{"admin", "member", "reader"}
	other := c.Member(c.Other)
	server := httptest.NewServer(wire.Serve(New(Options{
		Keys:    users{"owner": c.User, "reader": &reader, "other": other, "admin": &admin, "homeless": c.Member(resource.ID{})},
		State:   c.State,
		Compute: compute.New(c.State, compute.Config{Hosts: screens{}}),
		Images:  image.New(c.State, new(imagetest.Memory), image.Config{InUse: compute.UsesImage}), Networks: c.Network,
		Region: "here", Now: func() time.Time { return c.Clock },
	})))
	t.Cleanup(server.Close)
	return &bench{t, c, server.URL, map[string]string{"$ami": "ami-" + c.Image.Tail(), "$vpc": "vpc-" + c.NetworkID.Tail(),
		"$account": c.Project.Hex(), "$url": server.URL}}
}

// sign signs a request as AWS's clients do (SigV4, with the signature in the Authorization header).
func sign(r *http.Request, body, key, secret, service string, at time.Time) {
	date := at.UTC().Format("20060102T150405Z")
	r.Header.Set("X-Amz-Date", date)
	scope := date[:8] + "/here/" + service + "/aws4_request"
	canonical := strings.Join([]string{r.Method, r.URL.EscapedPath(), strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20"),
		"host:" + r.Host, "x-amz-date:" + date, "", "host;x-amz-date", digest(body)}, "\n")
	r.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+key+"/"+scope+", SignedHeaders=host;x-amz-date, Signature="+
		signature(canonical, date, scope, secret))
}

func signature(canonical, date, scope, secret string) string {
	mac := []byte("AWS4" + secret)
	for part := range strings.SplitSeq(scope, "/") {
		mac = keyed(mac, part)
	}
	return hex.EncodeToString(keyed(mac, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+digest(canonical)))
}

func keyed(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// post makes a signed request.
func (b *bench) post(who string, form url.Values) *http.Request {
	b.t.Helper()
	body := form.Encode()
	r, err := http.NewRequestWithContext(b.t.Context(), "POST", b.url+"/ec2/", strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	sign(r, body, who, "secret-"+who, "ec2", b.cloud.Clock)
	return r
}

// do sends a request and gives the answer.
func (b *bench) do(r *http.Request) (status int, answer string) {
	b.t.Helper()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

// ask is post and do, and refuses to let a refused request change anything.
func (b *bench) ask(who string, form url.Values) (int, string) {
	b.t.Helper()
	before := b.cloud.State.Latest().Revision()
	status, answer := b.do(b.post(who, form))
	if after := b.cloud.State.Latest().Revision(); status != http.StatusOK && after != before {
		b.t.Errorf("%v: refused with %d, and yet something changed: %s", form, status, answer)
	}
	return status, answer
}

// codeOf is the code of an error.
func codeOf(answer string) string {
	_, rest, _ := strings.Cut(answer, "<Code>")
	code, _, _ := strings.Cut(rest, "</Code>")
	return code
}

// flatten writes a document as "a.b.1.c" → text, with a number for each item of a list.
func flatten(t testing.TB, text string) map[string]string {
	t.Helper()
	flat, d := map[string]string{}, xml.NewDecoder(strings.NewReader(text))
	var path []string
	items := map[string]int{}
	for {
		token, err := d.Token()
		if err == io.EOF {
			return flat
		}
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		switch token := token.(type) {
		case xml.StartElement:
			name := token.Name.Local
			if name == "item" {
				list := strings.Join(path, ".")
				items[list]++
				name = strconv.Itoa(items[list])
			}
			path = append(path, name)
			flat[strings.Join(path[1:], ".")] = ""
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if at := strings.Join(path, "."); strings.Contains(at, ".") {
				flat[strings.Join(path[1:], ".")] += string(token)
			}
		}
	}
}

// TestConversations replays testdata/*.txt. "> WHO ACTION" begins a request, its parameters follow, one a line;
// "< 200" or "< STATUS CODE" begins the answer, of which every line must hold: "path=text" in the flattened document,
// where * is any text and $name binds a word for later lines, or "no path". "! settle" lets the hosts work;
// "! lazy", "! trouble WORDS" and "! well" say how they do; "! lose" cuts them off; "! pass 2h" lets time pass.
func TestConversations(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no conversations: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			newBench(t).replay(string(text))
		})
	}
}

type exchange struct {
	line         int
	who          string
	form         url.Values
	status, code string
	want         []string
}

func (b *bench) replay(text string) {
	b.t.Helper()
	var e *exchange
	flush := func() {
		if e != nil {
			b.play(e)
		}
		e = nil
	}
	for n, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "! "):
			flush()
			b.command(line[2:])
		case strings.HasPrefix(line, "> "):
			flush()
			who, action, _ := strings.Cut(line[2:], " ")
			e = &exchange{line: n + 1, who: who, form: url.Values{"Action": {action}, "Version": {"2016-11-15"}}}
		case strings.HasPrefix(line, "< "):
			e.status, e.code, _ = strings.Cut(line[2:], " ")
		case e.status == "":
			name, value, _ := strings.Cut(b.fill(line), "=")
			e.form.Add(name, value)
		default:
			e.want = append(e.want, line)
		}
	}
	flush()
}

func (b *bench) command(words string) {
	verb, rest, _ := strings.Cut(words, " ")
	for _, h := range b.cloud.Hosts {
		switch verb {
		case "trouble":
			h.Trouble = rest
		case "lazy":
			h.Lazy = true
		case "well":
			h.Trouble, h.Lazy = "", false
		case "lose":
			b.cloud.Lose(h)
		}
	}
	switch verb {
	case "settle":
		b.cloud.Settle()
	case "pass":
		d, err := time.ParseDuration(rest)
		if err != nil {
			b.t.Fatal(err)
		}
		b.cloud.Clock = b.cloud.Clock.Add(d)
	}
}

var word = regexp.MustCompile(`\$[a-zA-Z0-9]+`)

func (b *bench) fill(s string) string {
	return word.ReplaceAllStringFunc(s, func(w string) string {
		if v, ok := b.bound[w]; ok {
			return v
		}
		return w
	})
}

func (b *bench) play(e *exchange) {
	b.t.Helper()
	status, answer := b.ask(e.who, e.form)
	if fmt.Sprint(status) != e.status || codeOf(answer) != e.code {
		b.t.Fatalf("line %d: %s %v: %d %s", e.line, e.who, e.form, status, answer)
	}
	flat := flatten(b.t, answer)
	for _, line := range e.want {
		if path, ok := strings.CutPrefix(line, "no "); ok {
			if v, there := flat[path]; there {
				b.t.Fatalf("line %d: %s is there: %q\n%s", e.line, path, v, answer)
			}
			continue
		}
		path, want, _ := strings.Cut(line, "=")
		got, there := flat[path]
		if !there {
			b.t.Fatalf("line %d: %s is not there\n%s", e.line, path, answer)
		}
		if name := word.FindString(want); name == want && name != "" && b.bound[name] == "" {
			b.bound[name] = got
			continue
		}
		if want = b.fill(want); want != "*" && got != want {
			b.t.Fatalf("line %d: %s is %q, want %q\n%s", e.line, path, got, want, answer)
		}
	}
}
