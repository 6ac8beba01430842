package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/minio/minio-go/v7"
)

// service is one with a bucket "safe", and says where it is.
func service(t *testing.T) string {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("safe"); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(backend).Server()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The library knows this condition for simple writes alone, S3 for what is written in parts, too.
		if r.URL.Query().Has("uploadId") && r.Method == http.MethodPost && r.Header.Get("If-None-Match") == "*" {
			bucket, key, _ := strings.Cut(r.URL.Path[1:], "/")
			if _, err := backend.HeadObject(bucket, key); err == nil {
				w.WriteHeader(http.StatusPreconditionFailed)
				io.WriteString(w, "<Error><Code>PreconditionFailed</Code></Error>")
				return
			}
		}
		fake.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "secret")
	return server.URL
}

func open(t *testing.T, endpoint, address string) *Object {
	t.Helper()
	o, err := Open(address, Options{Endpoint: endpoint})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func get(t *testing.T, o *Object) []byte {
	t.Helper()
	body, err := o.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	all, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRoundTrip(t *testing.T) {
	endpoint := service(t)
	for name, size := range map[string]int{"small": 1000, "in parts": partBytes + 12345} {
		text := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		o := open(t, endpoint, "s3://safe/a folder/"+name+"+%?#ü")
		n, err := o.Put(t.Context(), io.MultiReader(bytes.NewReader(text))) // a stream whose length nobody knows
		if err != nil || n != int64(size) {
			t.Fatalf("%s: %d, %v", name, n, err)
		}
		if got := get(t, o); sha256.Sum256(got) != sha256.Sum256(text) {
			t.Errorf("%s: %d bytes came back", name, len(got))
		}
	}
}

func TestWhatIsThereIsLeftAlone(t *testing.T) {
	endpoint := service(t)
	o := open(t, endpoint, "s3://safe/one")
	if _, err := o.Put(t.Context(), strings.NewReader("first")); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Put(t.Context(), strings.NewReader("second")); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("a second one: %v", err)
	}
	late := open(t, endpoint, "s3://safe/two")
	_, err := late.Put(t.Context(), io.MultiReader(strings.NewReader("second"), readerFunc(func([]byte) (int, error) {
		if _, err := open(t, endpoint, "s3://safe/two").Put(t.Context(), strings.NewReader("first")); err != nil {
			t.Error(err)
		}
		return 0, io.EOF
	})))
	if err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("one that came meanwhile: %v", err)
	}
	for _, o := range []*Object{o, late} {
		if got := get(t, o); string(got) != "first" {
			t.Errorf("%s is now %q", o, got)
		}
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// A stream that breaks off leaves no object, and no parts that somebody pays for.
func TestABrokenStreamLeavesNothing(t *testing.T) {
	endpoint := service(t)
	o := open(t, endpoint, "s3://safe/broken")
	broken := errors.New("the controller is gone")
	_, err := o.Put(t.Context(), io.MultiReader(bytes.NewReader(make([]byte, partBytes+1)), readerFunc(func([]byte) (int, error) { return 0, broken })))
	if !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
	if _, err := o.Get(t.Context()); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("the object: %v", err)
	}
	for upload := range o.client.ListIncompleteUploads(t.Context(), "safe", "", true) {
		if minio.ToErrorResponse(upload.Err).Code != "NoSuchUpload" { // what the tests' service answers when it never had any
			t.Errorf("an upload is left: %+v", upload)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.Put(ctx, strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	endpoint := service(t)
	for address, o := range map[string]Options{
		"s3://":            {Endpoint: endpoint},
		"s3://safe":        {Endpoint: endpoint},
		"s3://safe/":       {Endpoint: endpoint},
		"s3://safe/a/":     {Endpoint: endpoint},
		"/a/file":          {Endpoint: endpoint},
		"s3:///key":        {Endpoint: endpoint},
		"s3://safe/plain":  {Endpoint: "http://10.0.0.1:9000"},
		"s3://safe/scheme": {Endpoint: "ftp://127.0.0.1"},
		"s3://safe/path":   {Endpoint: endpoint + "/a"},
		"s3://safe/none":   {Endpoint: "127.0.0.1:9000"},
	} {
		if _, err := Open(address, o); err == nil {
			t.Errorf("%s at %s was taken", address, o.Endpoint)
		}
	}
	if _, err := Open("s3://safe/x", Options{Endpoint: "http://10.0.0.1:9000", Insecure: true}); err != nil {
		t.Error(err)
	}
	if _, err := open(t, endpoint, "s3://elsewhere/x").Put(t.Context(), strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "there is no bucket elsewhere") {
		t.Errorf("without the bucket: %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", t.TempDir()+"/none")
	if _, err := open(t, endpoint, "s3://safe/x").Get(t.Context()); err == nil || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("without credentials: %v", err)
	}
}
