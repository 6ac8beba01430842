package keystone

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) oauthRoutes() map[string]openstack.Handler {
	const tokens = "/v3/users/{user_id}/OS-OAUTH1/access_tokens"
	return map[string]openstack.Handler{
		"PUT /v3/OS-OAUTH1/authorize/{request_id}": s.authorizeAccess,
		"GET " + tokens:                                 s.listAccessTokens,
		"GET " + tokens + "/{token_id}":                 s.showAccessToken,
		"DELETE " + tokens + "/{token_id}":              s.deleteAccessToken,
		"GET " + tokens + "/{token_id}/roles":           s.accessTokenRoles,
		"GET " + tokens + "/{token_id}/roles/{role_id}": s.accessTokenRole,
	}
}

// An oauthRequest is a request signed as RFC 5849 ("The OAuth 1.0 Protocol") says, with HMAC-SHA1.
type oauthRequest struct {
	params    [][2]string // those of the Authorization header, decoded
	base      string      // the signature base string
	signature string
}

// clockSkew is how far a signature's time may be from ours.
const clockSkew = 10 * time.Minute

var badOAuth = fault.Errorf(fault.Unauthorized, "The request must have an Authorization header as in OAuth 1.0, signed with HMAC-SHA1.")

// parseOAuth reads the Authorization header and makes what must have been signed.
func (s *server) parseOAuth(r *http.Request, now time.Time) (*oauthRequest, error) {
	scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "OAuth") {
		return nil, badOAuth
	}
	o := &oauthRequest{}
	var signed [][2]string
	for part := range strings.SplitSeq(rest, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
			return nil, badOAuth
		}
		name, err1 := url.PathUnescape(name)
		value, err2 := url.PathUnescape(value[1 : len(value)-1])
		if err1 != nil || err2 != nil {
			return nil, badOAuth
		}
		o.params = append(o.params, [2]string{name, value})
		switch name {
		case "oauth_signature":
			o.signature = value
		case "realm":
		default:
			signed = append(signed, [2]string{name, value})
		}
	}
	for name, values := range r.URL.Query() {
		for _, value := range values {
			signed = append(signed, [2]string{name, value})
		}
	}
	at, err := strconv.ParseInt(o.get("oauth_timestamp"), 10, 64)
	if err != nil || now.Sub(time.Unix(at, 0)).Abs() > clockSkew || o.get("oauth_signature_method") != "HMAC-SHA1" {
		return nil, badOAuth
	}
	o.base = r.Method + "&" + escape(normal(s.base(r)+r.URL.EscapedPath())) + "&" + escape(joined(signed))
	return o, nil
}

func (o *oauthRequest) get(name string) string {
	for _, p := range o.params {
		if p[0] == name {
			return p[1]
		}
	}
	return ""
}

// signed is the identity.Signature of the request.
func (o *oauthRequest) signed(consumerSecret, tokenSecret string) bool {
	h := hmac.New(sha1.New, []byte(escape(consumerSecret)+"&"+escape(tokenSecret)))
	h.Write([]byte(o.base))
	got, err := base64.StdEncoding.DecodeString(o.signature)
	return err == nil && hmac.Equal(got, h.Sum(nil))
}

// normal is an address as it is signed: in lower case up to the path, without the usual port
// (RFC 5849, section 3.4.1.2).
func normal(address string) string {
	scheme, rest, _ := strings.Cut(address, "://")
	host, path, _ := strings.Cut(rest, "/")
	scheme, host = strings.ToLower(scheme), strings.ToLower(host)
	if usual := map[string]string{"http": ":80", "https": ":443"}[scheme]; usual != "" {
		host = strings.TrimSuffix(host, usual)
	}
	return scheme + "://" + host + "/" + path
}

// joined is the parameters as they are signed (section 3.4.1.3.2).
func joined(params [][2]string) string {
	parts := make([]string, len(params))
	slices.SortFunc(params, func(a, b [2]string) int {
		if c := strings.Compare(escape(a[0]), escape(b[0])); c != 0 {
			return c
		}
		return strings.Compare(escape(a[1]), escape(b[1]))
	})
	for i, p := range params {
		parts[i] = escape(p[0]) + "=" + escape(p[1])
	}
	return strings.Join(parts, "&")
}

// escape is percent encoding of all but the unreserved characters (section 3.6).
func escape(text string) string {
	var b strings.Builder
	for i := range len(text) {
		c := text[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// writeOAuth answers a token and its secret, as a form.
func writeOAuth(w http.ResponseWriter, id resource.ID, secret string, expires time.Time) error {
	w.Header().Set("Content-Type", "application/x-www-form-urlencoded")
	w.WriteHeader(http.StatusCreated)
	_, err := fmt.Fprintf(w, "oauth_token=%s&oauth_token_secret=%s&oauth_expires_at=%s", spell(id), secret, stamp(expires))
	return err
}

func (s *server) createRequestToken(w http.ResponseWriter, r *http.Request) error {
	o, err := s.parseOAuth(r, time.Now())
	if err != nil {
		return err
	}
	project := r.Header.Get("Requested-Project-Id")
	if project == "" {
		return fault.Errorf(fault.Invalid, "The header Requested-Project-Id must name a project.")
	}
	t, err := s.identity.RequestAccess(r.Context(), idOf(o.get("oauth_consumer_key")), idOf(project), o.signed)
	if err != nil {
		return err
	}
	return writeOAuth(w, t.ID, t.Secret, t.ExpiresAt)
}

func (s *server) createAccessToken(w http.ResponseWriter, r *http.Request) error {
	o, err := s.parseOAuth(r, time.Now())
	if err != nil {
		return err
	}
	t, err := s.identity.CreateAccessToken(r.Context(), idOf(o.get("oauth_consumer_key")), idOf(o.get("oauth_token")), o.get("oauth_verifier"), o.signed)
	if err != nil {
		return err
	}
	return writeOAuth(w, t.ID, t.Secret, t.ExpiresAt)
}

func (s *server) authorizeAccess(w http.ResponseWriter, r *http.Request) error {
	var in fields // the roles stand without a noun around them
	if err := openstack.Decode(r, &in.raw); err != nil {
		return err
	}
	if err := in.require("roles"); err != nil {
		return err
	}
	refs := roleRefs(&in)
	if in.err != nil {
		return in.err
	}
	t, err := s.identity.AuthorizeAccess(r.Context(), pathID(r, "request_id"), refs)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "token", shape{"oauth_verifier": t.Verifier})
}

func (s *server) accessTokenShape(r *http.Request, t *identity.AccessToken) shape {
	at := "users/" + spell(t.UserID) + "/OS-OAUTH1/access_tokens"
	return shape{"id": spell(t.ID), "consumer_id": spell(t.ConsumerID), "project_id": spell(t.InProjectID),
		"authorizing_user_id": spell(t.UserID), "expires_at": stamp(t.ExpiresAt),
		"links": shape{"self": s.base(r) + "/v3/" + at + "/" + spell(t.ID), "roles": s.base(r) + "/v3/" + at + "/" + spell(t.ID) + "/roles"}}
}

func (s *server) listAccessTokens(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.AccessTokensOf(r.Context(), pathID(r, "user_id"))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, t := range all {
		items = append(items, s.accessTokenShape(r, t))
	}
	return s.writeList(w, r, "access_tokens", items)
}

func (s *server) showAccessToken(w http.ResponseWriter, r *http.Request) error {
	t, _, err := s.identity.AccessToken(r.Context(), pathID(r, "user_id"), pathID(r, "token_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "access_token", s.accessTokenShape(r, t))
}

func (s *server) deleteAccessToken(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteAccessToken(r.Context(), pathID(r, "user_id"), pathID(r, "token_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) accessTokenRoles(w http.ResponseWriter, r *http.Request) error {
	_, roles, err := s.identity.AccessToken(r.Context(), pathID(r, "user_id"), pathID(r, "token_id"))
	if err != nil {
		return err
	}
	return s.writeRoles(w, r, roles)
}

func (s *server) accessTokenRole(w http.ResponseWriter, r *http.Request) error {
	_, roles, err := s.identity.AccessToken(r.Context(), pathID(r, "user_id"), pathID(r, "token_id"))
	if err != nil {
		return err
	}
	return s.writeRoleOf(w, r, roles)
}
