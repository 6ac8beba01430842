package keystone

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// The example of OAuth Core 1.0, appendix A.5.
func TestOAuthSignature(t *testing.T) {
	r := httptest.NewRequest("GET", "http://photos.example.net/photos?file=vacation.jpg&size=original", nil)
	r.Header.Set("Authorization", `OAuth realm="http://photos.example.net/",oauth_consumer_key="dpf43f3p2l4k3l03",oauth_token="nnch734d00sl2jdk",`+
		`oauth_signature_method="HMAC-SHA1",oauth_signature="tR3%2BTy81lMeYAr%2FFid0kMTYa%2FWM%3D",oauth_timestamp="1191242096",`+
		`oauth_nonce="kllo9940pd9333jh",oauth_version="1.0"`)
	now := time.Unix(1191242096, 0)
	o, err := new(server).parseOAuth(r, now)
	if err != nil {
		t.Fatal(err)
	}
	want := "GET&http%3A%2F%2Fphotos.example.net%2Fphotos&file%3Dvacation.jpg%26oauth_consumer_key%3Ddpf43f3p2l4k3l03%26" +
		"oauth_nonce%3Dkllo9940pd9333jh%26oauth_signature_method%3DHMAC-SHA1%26oauth_timestamp%3D1191242096%26" +
		"oauth_token%3Dnnch734d00sl2jdk%26oauth_version%3D1.0%26size%3Doriginal"
	if o.base != want {
		t.Errorf("the base string is\n%s, want\n%s", o.base, want)
	}
	if !o.signed("kd94hf93k423kf44", "pfkkdhi9sl3r4s00") {
		t.Error("the signature is not recognised")
	}
	if o.signed("kd94hf93k423kf44", "") || o.signed("", "pfkkdhi9sl3r4s00") {
		t.Error("another secret makes the same signature")
	}
	for _, late := range []time.Duration{-time.Hour, time.Hour} {
		if _, err := new(server).parseOAuth(r, now.Add(late)); err == nil {
			t.Errorf("a signature is good %v later", late)
		}
	}
}

// signed is the Authorization header for a request, signed as a consumer does.
func signed(method, path string, keys [2]string, secrets [2]string, more ...string) []string {
	params := []string{"oauth_consumer_key=" + keys[0], "oauth_nonce=1", "oauth_signature_method=HMAC-SHA1", fmt.Sprint("oauth_timestamp=", time.Now().Unix())}
	if keys[1] != "" {
		params = append(params, "oauth_token="+keys[1])
	}
	params = append(params, more...)
	base := method + "&" + url.QueryEscape("http://cloud.example:8700/identity"+path) + "&" + url.QueryEscape(strings.Join(params, "&"))
	h := hmac.New(sha1.New, []byte(secrets[0]+"&"+secrets[1]))
	h.Write([]byte(base))
	params = append(params, "oauth_signature="+url.QueryEscape(base64.StdEncoding.EncodeToString(h.Sum(nil))))
	for i, p := range params {
		name, value, _ := strings.Cut(p, "=")
		params[i] = name + `="` + value + `"`
	}
	return []string{"Authorization", "OAuth " + strings.Join(params, ",")}
}

func form(r *reply) url.Values {
	values, err := url.ParseQuery(r.text)
	if err != nil {
		r.t.Fatal(err)
	}
	return values
}

func TestConsumerActsForAUser(t *testing.T) {
	c := newCloud(t)
	admin, demo := c.login("admin"), c.login("demo")
	r := c.do("POST", "/v3/OS-OAUTH1/consumers", `{"consumer":{"description":"an app"}}`, admin...).want(201)
	consumer, secret := r.word("consumer.id"), r.word("consumer.secret")
	if again := c.do("GET", "/v3/OS-OAUTH1/consumers/"+consumer, "", admin...).want(200); strings.Contains(again.text, secret) {
		t.Errorf("the secret is shown again: %s", again.text)
	}
	self := c.do("GET", "/v3/auth/tokens", "", append(demo, "X-Subject-Token", demo[1])...).want(200)
	project, user := self.word("token.project.id"), self.word("token.user.id")

	const ask, get = "/v3/OS-OAUTH1/request_token", "/v3/OS-OAUTH1/access_token"
	wrong := signed("POST", ask, [2]string{consumer}, [2]string{"guess"})
	c.do("POST", ask, "", append(wrong, "Requested-Project-Id", project)...).want(401)
	right := signed("POST", ask, [2]string{consumer}, [2]string{secret})
	request := form(c.do("POST", ask, "", append(right, "Requested-Project-Id", project)...).want(201))
	keys, secrets := [2]string{consumer, request.Get("oauth_token")}, [2]string{secret, request.Get("oauth_token_secret")}

	c.do("POST", get, "", signed("POST", get, keys, secrets, "oauth_verifier=")...).want(401) // nobody has authorized it
	authorize := "/v3/OS-OAUTH1/authorize/" + keys[1]
	c.do("PUT", authorize, `{"roles":[{"name":"admin"}]}`, demo...).want(403)
	verifier := c.do("PUT", authorize, `{"roles":[{"name":"reader"}]}`, demo...).want(200).word("token.oauth_verifier")
	c.do("PUT", authorize, `{"roles":[{"name":"reader"}]}`, demo...).want(404) // once is enough
	c.do("POST", get, "", signed("POST", get, keys, secrets, "oauth_verifier=guess")...).want(401)
	access := form(c.do("POST", get, "", signed("POST", get, keys, secrets, "oauth_verifier="+verifier)...).want(201))
	c.do("POST", get, "", signed("POST", get, keys, secrets, "oauth_verifier="+verifier)...).want(401)

	keys, secrets = [2]string{consumer, access.Get("oauth_token")}, [2]string{secret, access.Get("oauth_token_secret")}
	const login, body = "/v3/auth/tokens", `{"auth":{"identity":{"methods":["oauth1"],"oauth1":{}}}}`
	c.do("POST", login, body).want(401)
	c.do("POST", login, body, signed("POST", login, keys, [2]string{secret, "guess"})...).want(401)
	r = c.do("POST", login, body, signed("POST", login, keys, secrets)...).want(201)
	if r.at("token.user.id") != user || r.at("token.roles.0.name") != "reader" || r.at("token.roles.1") != nil || r.at("token.OS-OAUTH1.consumer_id") != consumer {
		t.Errorf("the token is %s", r.text)
	}
	app := []string{"X-Auth-Token", r.header.Get("X-Subject-Token")}
	c.do("GET", "/v3/projects/"+project, "", app...).want(200)
	c.do("POST", "/v3/users/"+user+"/application_credentials", `{"application_credential":{"name":"x"}}`, app...).want(403)
	c.do("DELETE", "/v3/users/"+user+"/OS-OAUTH1/access_tokens/"+keys[1], "", app...).want(403)
	c.do("DELETE", "/v3/users/"+user+"/OS-OAUTH1/access_tokens/"+keys[1], "", demo...).want(204)
	c.do("GET", "/v3/projects/"+project, "", app...).want(401)
}

// A consumer is never given what another one asked for, whatever key it comes with.
func TestConsumersShareNoAnswers(t *testing.T) {
	c := newCloud(t)
	admin := c.login("admin")
	project := c.do("GET", "/v3/projects?name=demo", "", admin...).want(200).word("projects.0.id")
	seen := map[string]bool{}
	for range 2 {
		made := c.do("POST", "/v3/OS-OAUTH1/consumers", `{"consumer":{}}`, admin...).want(201)
		id, secret := made.word("consumer.id"), made.word("consumer.secret")
		const path = "/v3/OS-OAUTH1/request_token"
		headers := append(signed("POST", path, [2]string{id}, [2]string{secret}), "Requested-Project-Id", project, "Idempotency-Key", "1")
		token := form(c.do("POST", path, "", headers...).want(201)).Get("oauth_token")
		if seen[token] {
			t.Error("two consumers have one request token")
		}
		seen[token] = true
	}
}
