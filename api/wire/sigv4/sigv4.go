// Package sigv4 verifies AWS Signature Version 4 (AWS General Reference, "Create a signed AWS
// API request"), in the Authorization header or in the query of a presigned request.
package sigv4

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	algorithm  = "AWS4-HMAC-SHA256"
	timeFormat = "20060102T150405Z"
	// Skew is how far a client's clock may be off.
	Skew       = 15 * time.Minute
	maxExpires = 7 * 24 * time.Hour
)

// What may be wrong with a request's signature.
var (
	ErrMissing   = errors.New("the request is not signed")
	ErrMalformed = errors.New("the signature cannot be read")
	ErrExpired   = errors.New("the request has expired, or the clocks differ")
	ErrMismatch  = errors.New("the signature does not match")
	ErrScope     = errors.New("the signature is for another service or day")
)

// A Signature is what a request claims.
type Signature struct {
	AccessKey string
	Date      string // of the scope, "20260131"
	Region    string
	Service   string
	Time      time.Time
	Expires   time.Duration // of a presigned request; 0: by Skew
	Signed    []string      // the names of the signed headers, sorted, in lower case
	Value     string        // hex
	Presigned bool
}

// Parse reads what a request claims; nothing is verified yet.
func Parse(r *http.Request) (*Signature, error) {
	query := r.URL.Query()
	header := r.Header.Get("Authorization")
	switch {
	case header != "":
		return parseHeader(r, header)
	case query.Get("X-Amz-Algorithm") != "":
		return parseQuery(query)
	}
	return nil, ErrMissing
}

func parseHeader(r *http.Request, header string) (*Signature, error) {
	rest, ok := strings.CutPrefix(header, algorithm)
	if !ok {
		return nil, ErrMalformed
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || parts[key] != "" {
			return nil, ErrMalformed
		}
		parts[key] = value
	}
	at := r.Header.Get("X-Amz-Date")
	if at == "" {
		at = r.Header.Get("Date")
	}
	s := &Signature{Value: parts["Signature"], Signed: strings.Split(parts["SignedHeaders"], ";")}
	var err error
	if s.Time, err = time.Parse(timeFormat, at); err != nil {
		if s.Time, err = http.ParseTime(at); err != nil {
			return nil, ErrMalformed
		}
	}
	return s, s.scope(parts["Credential"])
}

func parseQuery(query url.Values) (*Signature, error) {
	if query.Get("X-Amz-Algorithm") != algorithm {
		return nil, ErrMalformed
	}
	s := &Signature{Value: query.Get("X-Amz-Signature"), Signed: strings.Split(query.Get("X-Amz-SignedHeaders"), ";"), Presigned: true}
	var err error
	if s.Time, err = time.Parse(timeFormat, query.Get("X-Amz-Date")); err != nil {
		return nil, ErrMalformed
	}
	if text := query.Get("X-Amz-Expires"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || time.Duration(n)*time.Second > maxExpires {
			return nil, ErrMalformed
		}
		s.Expires = time.Duration(n) * time.Second
	}
	return s, s.scope(query.Get("X-Amz-Credential"))
}

// scope reads "AKID/20260131/region/service/aws4_request".
func (s *Signature) scope(credential string) error {
	parts := strings.Split(credential, "/")
	if len(parts) != 5 || parts[0] == "" || parts[4] != "aws4_request" || len(s.Value) != 2*sha256.Size ||
		!slices.Contains(s.Signed, "host") || !slices.IsSorted(s.Signed) {
		return ErrMalformed
	}
	s.AccessKey, s.Date, s.Region, s.Service = parts[0], parts[1], parts[2], parts[3]
	if s.Date != s.Time.UTC().Format("20060102") {
		return ErrScope
	}
	return nil
}

// Verify checks the signature of a request with this secret. payload is the hex SHA-256 of the
// body, or what the service lets a client say instead. path is the path as the client sent it.
func (s *Signature) Verify(r *http.Request, path, service, secret, payload string, now time.Time) error {
	if s.Service != service {
		return ErrScope
	}
	if s.Presigned && s.Expires > 0 {
		if now.Before(s.Time.Add(-Skew)) || now.After(s.Time.Add(s.Expires)) {
			return ErrExpired
		}
	} else if d := now.Sub(s.Time); d > Skew || d < -Skew {
		return ErrExpired
	}
	sum := sha256.Sum256([]byte(s.canonical(r, path, payload)))
	text := strings.Join([]string{algorithm, s.Time.UTC().Format(timeFormat),
		s.Date + "/" + s.Region + "/" + s.Service + "/aws4_request", hex.EncodeToString(sum[:])}, "\n")
	want := hex.EncodeToString(mac(s.key(secret), text))
	if subtle.ConstantTimeCompare([]byte(want), []byte(s.Value)) != 1 {
		return ErrMismatch
	}
	return nil
}

func (s *Signature) key(secret string) []byte {
	return mac(mac(mac(mac([]byte("AWS4"+secret), s.Date), s.Region), s.Service), "aws4_request")
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// canonical is the canonical request.
func (s *Signature) canonical(r *http.Request, path, payload string) string {
	var b strings.Builder
	b.WriteString(r.Method + "\n" + encodePath(path, s.Service) + "\n" + canonicalQuery(r.URL.RawQuery) + "\n")
	for _, name := range s.Signed {
		values := r.Header.Values(name)
		switch name {
		case "host":
			values = []string{r.Host}
		case "content-length":
			values = []string{strconv.FormatInt(r.ContentLength, 10)}
		}
		trimmed := make([]string, len(values))
		for i, v := range values {
			trimmed[i] = strings.Join(strings.Fields(v), " ")
		}
		b.WriteString(name + ":" + strings.Join(trimmed, ",") + "\n")
	}
	b.WriteString("\n" + strings.Join(s.Signed, ";") + "\n" + payload)
	return b.String()
}

// encodePath encodes what the client sent once more, except for S3, where it stays.
func encodePath(path, service string) string {
	if path == "" {
		path = "/"
	}
	if service == "s3" {
		return path
	}
	return escape(path, true)
}

func canonicalQuery(raw string) string {
	var pairs []string
	for part := range strings.SplitSeq(raw, "&") {
		key, value, _ := strings.Cut(part, "=")
		if part == "" || key == "X-Amz-Signature" {
			continue
		}
		k, err1 := url.QueryUnescape(key)
		v, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			k, v = key, value // it will not match
		}
		pairs = append(pairs, escape(k, false)+"="+escape(v, false))
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

// escape encodes as SigV4 wants it: everything but the unreserved characters of RFC 3986.
func escape(s string, slash bool) string {
	const hexDigits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-_.~", c) >= 0 || slash && c == '/' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}
