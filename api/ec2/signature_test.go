package ec2

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Whatever is wrong with a signature, the request is refused in EC2's words before anything is looked at.
func TestSignatures(t *testing.T) {
	b := newBench(t)
	form := url.Values{"Action": {"CreateSecurityGroup"}, "Version": {"2016-11-15"}, "GroupName": {"g"}, "GroupDescription": {"d"}}
	later := func(d time.Duration) func(*http.Request) {
		return func(r *http.Request) {
			sign(r, form.Encode(), "owner", "secret-owner", "ec2", b.cloud.Clock.Add(d))
		}
	}
	for name, c := range map[string]struct {
		change func(*http.Request)
		status int
		code   string
	}{
		"none":                  {func(r *http.Request) { r.Header.Del("Authorization") }, 403, "MissingAuthenticationToken"},
		"of a key there is not": {func(r *http.Request) { sign(r, form.Encode(), "nobody", "x", "ec2", b.cloud.Clock) }, 401, "AuthFailure"},
		"by another's secret":   {func(r *http.Request) { sign(r, form.Encode(), "owner", "secret-other", "ec2", b.cloud.Clock) }, 401, "AuthFailure"},
		"forged": {func(r *http.Request) {
			r.Header.Set("Authorization", r.Header.Get("Authorization")[:len(r.Header.Get("Authorization"))-4]+"0000")
		}, 401, "AuthFailure"},
		"cut off": {func(r *http.Request) {
			r.Header.Set("Authorization", r.Header.Get("Authorization")[:len(r.Header.Get("Authorization"))-4])
		}, 400, "IncompleteSignature"},
		"in another way":         {func(r *http.Request) { r.Header.Set("Authorization", "AWS owner:xyz") }, 400, "IncompleteSignature"},
		"a token of OpenStack's": {func(r *http.Request) { r.Header.Set("Authorization", "Bearer x") }, 400, "IncompleteSignature"},
		"for another service":    {func(r *http.Request) { sign(r, form.Encode(), "owner", "secret-owner", "s3", b.cloud.Clock) }, 403, "SignatureDoesNotMatch"},
		"of an hour ago":         {later(-time.Hour), 400, "RequestExpired"},
		"of an hour later":       {later(time.Hour), 400, "RequestExpired"},
		"the time changed": {func(r *http.Request) {
			r.Header.Set("X-Amz-Date", b.cloud.Clock.Add(time.Second).UTC().Format("20060102T150405Z"))
		}, 401, "AuthFailure"},
		"the time cannot be read":  {func(r *http.Request) { r.Header.Set("X-Amz-Date", "noon") }, 400, "IncompleteSignature"},
		"the host changed":         {func(r *http.Request) { r.Host = "elsewhere" }, 401, "AuthFailure"},
		"the path changed":         {func(r *http.Request) { r.URL.Path = "/ec2/x" }, 401, "AuthFailure"},
		"a parameter more":         {func(r *http.Request) { r.URL.RawQuery = "DryRun=false" }, 401, "AuthFailure"},
		"the body changed":         {func(r *http.Request) { setBody(r, strings.Replace(form.Encode(), "=g", "=h", 1)) }, 401, "AuthFailure"},
		"and another method":       {func(r *http.Request) { r.Method = "DELETE" }, 405, "InvalidAction"},
		"a body that is too large": {func(r *http.Request) { setBody(r, strings.Repeat("x", 2<<20)) }, 413, "RequestEntityTooLarge"},
		"a body that is no form":   {func(r *http.Request) { setBody(r, "a=%zz") }, 400, "MalformedQueryString"},
		"a query that is none":     {func(r *http.Request) { r.URL.RawQuery = "a=%zz" }, 400, "MalformedQueryString"},
	} {
		t.Run(name, func(t *testing.T) {
			r := b.post("owner", form)
			c.change(r)
			before := b.cloud.State.Latest().Revision()
			status, answer := b.do(r)
			if status != c.status || codeOf(answer) != c.code {
				t.Errorf("%d %s", status, answer)
			}
			if b.cloud.State.Latest().Revision() != before {
				t.Error("something changed")
			}
			if strings.Contains(answer, "secret-") {
				t.Error(answer)
			}
		})
	}
	r := b.post("owner", form)
	later(14 * time.Minute)(r)
	if status, answer := b.do(r); status != http.StatusOK {
		t.Errorf("a clock that is a bit off: %d %s", status, answer)
	}
}

func setBody(r *http.Request, body string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
}

// presign makes a request whose signature is in its query.
func (b *bench) presign(form url.Values, expires string) string {
	date := b.cloud.Clock.UTC().Format("20060102T150405Z")
	scope := date[:8] + "/here/ec2/aws4_request"
	form.Set("X-Amz-Algorithm", "AWS4-HMAC-SHA256")
	form.Set("X-Amz-Credential", "owner/"+scope)
	form.Set("X-Amz-Date", date)
	form.Set("X-Amz-Expires", expires)
	form.Set("X-Amz-SignedHeaders", "host")
	query := strings.ReplaceAll(form.Encode(), "+", "%20")
	canonical := "GET\n/ec2\n" + query + "\nhost:" + strings.TrimPrefix(b.url, "http://") + "\n\nhost\n" + digest("")
	return b.url + "/ec2?" + query + "&X-Amz-Signature=" + signature(canonical, date, scope, "secret-owner")
}

func TestPresigned(t *testing.T) {
	b := newBench(t)
	get := func(address string) (int, string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), "GET", address, nil)
		if err != nil {
			t.Fatal(err)
		}
		return b.do(r)
	}
	address := b.presign(url.Values{"Action": {"DescribeImages"}, "Version": {"2016-11-15"}, "Owner.1": {"self & co"}}, "3600")
	if status, answer := get(address); status != 200 || !strings.Contains(answer, "DescribeImagesResponse") {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := get(strings.Replace(address, "DescribeImages", "DescribeTags", 1)); status != 401 || codeOf(answer) != "AuthFailure" {
		t.Errorf("with another action: %d %s", status, answer)
	}
	if status, answer := get(address + "&Owner.2=amazon"); status != 401 || codeOf(answer) != "AuthFailure" {
		t.Errorf("with one parameter more: %d %s", status, answer)
	}
	for _, expires := range []string{"0", "-1", "604801", "soon"} {
		if status, answer := get(b.presign(url.Values{"Action": {"DescribeImages"}}, expires)); status != 400 || codeOf(answer) != "IncompleteSignature" {
			t.Errorf("for %s seconds: %d %s", expires, status, answer)
		}
	}
	b.cloud.Clock = b.cloud.Clock.Add(59 * time.Minute)
	if status, answer := get(address); status != 200 {
		t.Errorf("before its end: %d %s", status, answer)
	}
	b.cloud.Clock = b.cloud.Clock.Add(2 * time.Minute)
	if status, answer := get(address); status != 400 || codeOf(answer) != "RequestExpired" {
		t.Errorf("after its end: %d %s", status, answer)
	}
}
