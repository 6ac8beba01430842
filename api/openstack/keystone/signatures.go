package keystone

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire/sigv4"
	"github.com/unkai-cloud/unkai/base/fault"
)

// Services that take requests signed with access keys have the signatures checked here, and get a token of
// whoever signed. They must be services: a signed request that leaked is good for that request alone, and
// would otherwise be exchanged for a token by anybody who has seen it.
func (s *server) signatureRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"POST /v3/ec2tokens": s.ec2Token,
		"POST /v3/s3tokens":  s.s3Token,
	}
}

// signatureLife is how old a signature of the second version may be.
const signatureLife = 15 * time.Minute

// A signedRequest is a request that some service was sent, as that service tells it.
type signedRequest struct {
	access, host, verb, path, bodyHash, signature string
	params, headers                               map[string]string
}

// ec2Token checks the signature of a request to EC2 (Identity API v3, OS-EC2).
func (s *server) ec2Token(w http.ResponseWriter, r *http.Request) error {
	var outer fields
	if err := openstack.Decode(r, &outer.raw); err != nil {
		return err
	}
	in := outer.sub("credentials")
	if len(in.raw) == 0 {
		in = outer.sub("ec2Credentials")
	}
	var q signedRequest
	for name, to := range map[string]*string{"access": &q.access, "host": &q.host, "verb": &q.verb, "path": &q.path,
		"body_hash": &q.bodyHash, "signature": &q.signature} {
		in.note(name, to)
	}
	q.params, q.headers = in.sub("params").words(), in.sub("headers").words()
	in.join(&outer)
	switch {
	case in.err != nil:
		return in.err
	case q.access == "" || q.signature == "":
		return fault.Errorf(fault.Invalid, "Expecting to find access and signature in credentials.")
	}
	return s.tokenOfKey(w, r, q.access, func(secret string) bool { return q.signed(secret, time.Now()) })
}

// words gives those attributes that are strings: what a client has put into its query and headers.
func (in *fields) words() map[string]string {
	all := map[string]string{}
	for _, name := range slices.Collect(maps.Keys(in.raw)) {
		value := ""
		if in.note(name, &value) {
			all[name] = value
		}
	}
	return all
}

// signed checks version 4 of AWS's signatures, or 2.
func (q *signedRequest) signed(secret string, now time.Time) bool {
	if q.params["SignatureVersion"] == "2" {
		return q.signedV2(secret, now)
	}
	query := url.Values{}
	if !strings.EqualFold(q.verb, http.MethodPost) { // whose parameters are in the body
		for name, value := range q.params {
			query.Set(name, value)
		}
	}
	r := &http.Request{Method: strings.ToUpper(q.verb), Host: q.host, Header: http.Header{}, URL: &url.URL{RawQuery: query.Encode()}}
	for name, value := range q.headers {
		r.Header.Set(name, value)
	}
	signature, err := sigv4.Parse(r)
	return err == nil && signature.AccessKey == q.access && signature.Value == q.signature &&
		signature.Verify(r, q.path, signature.Service, secret, q.bodyHash, now) == nil
}

// signedV2 checks a signature of version 2 (AWS General Reference, "Signature Version 2").
func (q *signedRequest) signedV2(secret string, now time.Time) bool {
	method := map[string]func() hash.Hash{"HmacSHA256": sha256.New, "HmacSHA1": sha1.New}[q.params["SignatureMethod"]]
	at, err := time.Parse("2006-01-02T15:04:05", strings.TrimSuffix(strings.SplitN(q.params["Timestamp"], ".", 2)[0], "Z"))
	if method == nil || err != nil || now.Sub(at).Abs() > signatureLife || q.params["AWSAccessKeyId"] != q.access {
		return false
	}
	var pairs [][2]string
	for name, value := range q.params {
		if name != "Signature" {
			pairs = append(pairs, [2]string{name, value})
		}
	}
	slices.SortFunc(pairs, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	query := make([]string, len(pairs))
	for i, p := range pairs {
		query[i] = escape(p[0]) + "=" + escape(p[1])
	}
	hosts := []string{q.host}
	if name, _, err := net.SplitHostPort(q.host); err == nil {
		hosts = append(hosts, name) // some clients leave the port out of what they sign
	}
	got, err := base64.StdEncoding.DecodeString(q.signature)
	return err == nil && slices.ContainsFunc(hosts, func(host string) bool {
		h := hmac.New(method, []byte(secret))
		h.Write([]byte(strings.Join([]string{q.verb, strings.ToLower(host), q.path, strings.Join(query, "&")}, "\n")))
		return hmac.Equal(got, h.Sum(nil))
	})
}

// s3Token checks the signature of a request to S3, of which the service tells what was signed.
func (s *server) s3Token(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "credentials")
	if err != nil {
		return err
	}
	if err := in.require("access", "token", "signature"); err != nil {
		return err
	}
	var access, token, signature string
	in.text("access", &access)
	in.text("token", &token)
	in.text("signature", &signature)
	if in.err != nil {
		return in.err
	}
	text, err := base64.URLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(token))
	if err != nil {
		return fault.Errorf(fault.Invalid, "Invalid input for field 'token': it must be what was signed, in base64.")
	}
	return s.tokenOfKey(w, r, access, func(secret string) bool { return signedText(string(text), signature, secret) })
}

// signedText checks the signature of a string to sign: of version 4, or of S3's first one.
func signedText(text, signature, secret string) bool {
	if !strings.HasPrefix(text, "AWS4-HMAC-SHA256\n") {
		h := hmac.New(sha1.New, []byte(secret))
		h.Write([]byte(text))
		got, err := base64.StdEncoding.DecodeString(signature)
		return err == nil && hmac.Equal(got, h.Sum(nil))
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 {
		return false
	}
	scope := strings.Split(lines[2], "/") // "20260131/region/s3/aws4_request"
	if len(scope) != 4 || scope[2] != "s3" || scope[3] != "aws4_request" {
		return false
	}
	key := []byte("AWS4" + secret)
	for _, part := range append(scope, text) {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(part))
		key = h.Sum(nil)
	}
	got, err := hex.DecodeString(signature)
	return err == nil && hmac.Equal(got, key)
}

func (s *server) tokenOfKey(w http.ResponseWriter, r *http.Request, access string, signed func(secret string) bool) error {
	token, n, err := s.identity.AuthenticateKey(r.Context(), access, signed)
	if err != nil {
		return err
	}
	return s.writeToken(w, r, http.StatusOK, token, n)
}
