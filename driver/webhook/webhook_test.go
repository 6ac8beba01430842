package webhook

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/alert"
)

var (
	now    = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	notice = alert.Notice{ID: resource.MustID("01900000-0000-7000-8000-000000000001"), Event: "resolved", Rule: "host-lost", Subject: "node-1", Text: "Words.",
		Severity: alert.Critical, Raised: now.Add(-time.Hour), Resolved: now, Cloud: "here"}
)

const secret = "a secret of sixteen"

func TestANoticeIsPostedAndSigned(t *testing.T) {
	var got map[string]any
	var signed bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Method != http.MethodPost || json.Unmarshal(body, &got) != nil {
			t.Errorf("%s %s, %v", r.Method, body, err)
		}
		signed = r.Header.Get(SignatureHeader) == Sign(secret, now, body)
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	s := &Sender{Now: func() time.Time { return now }}
	if err := s.Send(t.Context(), &alert.Target{URL: server.URL, Secret: secret}, notice); err != nil {
		t.Fatal(err)
	}
	if !signed || got["event"] != "resolved" || got["subject"] != "node-1" || got["title"] != "[unkai] resolved: host-lost node-1" ||
		got["resolved_at"] != "2030-01-02T03:04:05Z" || got["id"] != notice.ID.String() {
		t.Errorf("signed: %v, it says %v", signed, got)
	}
	// What any receiver can compute for itself: echo -n '1893553445.{}' | openssl dgst -sha256 -hmac key
	if got, want := Sign("key", now, []byte("{}")), "t=1893553445,v1="; !strings.HasPrefix(got, want) || len(got) != len(want)+64 {
		t.Errorf("a signature is %s", got)
	}
}

func TestWhatIsNoYes(t *testing.T) {
	for what, h := range map[string]http.HandlerFunc{
		"500": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
		"302": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusFound)
		},
		"post to the webhook": func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) },
	} {
		server := httptest.NewServer(h)
		err := new(Sender).Send(t.Context(), &alert.Target{URL: server.URL + "/a-key-in-it", Secret: secret}, notice)
		if err == nil || !strings.Contains(err.Error(), what) || strings.Contains(err.Error(), "a-key-in-it") {
			t.Errorf("%s: %v", what, err)
		}
		server.Close()
	}
}
