// Package webhook tells alerts to an address, as JSON that is signed. What is said and when it is said again is core/alert's business.
package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/unkai-cloud/unkai/core/alert"
)

// SignatureHeader is t=UNIX,v1=HEX: the HMAC-SHA256, under the target's secret, of the time, a dot and the body. Who is
// told should refuse one whose time is long past.
const SignatureHeader = "Unkai-Signature"

// Sender posts notices.
type Sender struct {
	Client *http.Client // one that follows no redirects when nil
	Now    func() time.Time
}

var _ alert.Sender = (*Sender)(nil)

// direct follows no redirect: a notice is for whom it was addressed to.
var direct = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

// A message is a notice as it is posted.
type message struct {
	ID       string     `json:"id"`
	Event    string     `json:"event"`
	Rule     string     `json:"rule"`
	Subject  string     `json:"subject,omitempty"`
	Title    string     `json:"title"`
	Text     string     `json:"text"`
	Severity string     `json:"severity"`
	Raised   time.Time  `json:"raised_at"`
	Resolved *time.Time `json:"resolved_at,omitempty"`
	Cloud    string     `json:"cloud"`
}

// Send posts one notice. Any answer of 2xx is a yes.
func (s *Sender) Send(ctx context.Context, t *alert.Target, n alert.Notice) error {
	m := message{ID: n.ID.String(), Event: n.Event, Rule: n.Rule, Subject: n.Subject, Title: n.Title(), Text: n.Text, Severity: string(n.Severity),
		Raised: n.Raised.UTC(), Cloud: n.Cloud}
	if !n.Resolved.IsZero() {
		at := n.Resolved.UTC()
		m.Resolved = &at
	}
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("the webhook's address is none")
	}
	now := time.Now
	if s.Now != nil {
		now = s.Now
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "unkai")
	req.Header.Set(SignatureHeader, Sign(t.Secret, now(), body))
	client := s.Client
	if client == nil {
		client = direct
	}
	res, err := client.Do(req)
	if err != nil {
		// What the client says has the whole address in it, which may hold a key.
		if inner := (*url.Error)(nil); errors.As(err, &inner) {
			err = inner.Err
		}
		return fmt.Errorf("post to the webhook: %w", err)
	}
	defer res.Body.Close()
	if _, err := io.CopyN(io.Discard, res.Body, 64<<10); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the webhook's answer: %w", err)
	}
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("the webhook answers %s", res.Status)
	}
	return nil
}

// Sign makes what stands in the SignatureHeader.
func Sign(secret string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	io.WriteString(mac, t+".")
	mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
