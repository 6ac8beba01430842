package keystone

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

func chain(key string, parts ...string) []byte {
	sum := []byte(key)
	for _, part := range parts {
		h := hmac.New(sha256.New, sum)
		h.Write([]byte(part))
		sum = h.Sum(nil)
	}
	return sum
}

// ec2Request is what a service would ask about a request that was signed by version 4 with this secret.
func ec2Request(access, secret string, at time.Time) map[string]any {
	date, stamp := at.UTC().Format("20060102"), at.UTC().Format("20060102T150405Z")
	sum := sha256.Sum256([]byte("Action=DescribeRegions"))
	payload := hex.EncodeToString(sum[:])
	canonical := "POST\n/\n\nhost:cloud.example:8788\nx-amz-date:" + stamp + "\n\nhost;x-amz-date\n" + payload
	sum = sha256.Sum256([]byte(canonical))
	scope := date + "/RegionOne/ec2/aws4_request"
	text := "AWS4-HMAC-SHA256\n" + stamp + "\n" + scope + "\n" + hex.EncodeToString(sum[:])
	signature := hex.EncodeToString(chain("AWS4"+secret, date, "RegionOne", "ec2", "aws4_request", text))
	return map[string]any{
		"access": access, "host": "cloud.example:8788", "verb": "POST", "path": "/", "body_hash": payload, "signature": signature,
		"params": map[string]string{"Action": "DescribeRegions"},
		"headers": map[string]string{"X-Amz-Date": stamp, "Authorization": "AWS4-HMAC-SHA256 Credential=" + access + "/" + scope +
			", SignedHeaders=host;x-amz-date, Signature=" + signature},
	}
}

func TestTokensOfSignatures(t *testing.T) {
	c := newCloud(t)
	admin, demo := c.login("admin"), c.login("demo")
	demoID := c.do("GET", "/v3/users?name=demo", "", admin...).want(200).word("users.0.id")
	project := c.do("GET", "/v3/projects?name=demo", "", admin...).want(200).word("projects.0.id")
	made := c.do("POST", "/v3/users/"+demoID+"/credentials/OS-EC2", `{"tenant_id":"`+project+`"}`, demo...).want(201)
	access, secret := made.word("credential.access"), made.word("credential.secret")
	ask := func(path string, request map[string]any, who ...string) *reply {
		b, err := json.Marshal(map[string]any{"credentials": request})
		if err != nil {
			t.Fatal(err)
		}
		return c.do("POST", path, string(b), who...)
	}

	now := time.Now()
	v2 := map[string]string{"AWSAccessKeyId": access, "Action": "DescribeRegions", "SignatureMethod": "HmacSHA256", "SignatureVersion": "2",
		"Timestamp": now.UTC().Format("2006-01-02T15:04:05Z")}
	text := "GET\ncloud.example\n/\nAWSAccessKeyId=" + access + "&Action=DescribeRegions&SignatureMethod=HmacSHA256&SignatureVersion=2&Timestamp=" +
		strings.ReplaceAll(v2["Timestamp"], ":", "%3A")
	toSign := "AWS4-HMAC-SHA256\n" + now.UTC().Format("20060102T150405Z") + "\n" + now.UTC().Format("20060102") + "/RegionOne/s3/aws4_request\n" + strings.Repeat("0", 64)
	old := hmac.New(sha1.New, []byte(secret))
	old.Write([]byte("GET\n\n\n\n/bucket"))
	for name, test := range map[string]struct {
		path    string
		request map[string]any
	}{
		"EC2, version 4": {"/v3/ec2tokens", ec2Request(access, secret, now)},
		"EC2, version 2": {"/v3/ec2tokens", map[string]any{"access": access, "host": "cloud.example:8788", "verb": "GET", "path": "/", "params": v2,
			"signature": base64.StdEncoding.EncodeToString(chain(secret, text))}},
		"S3, version 4": {"/v3/s3tokens", map[string]any{"access": access, "token": base64.StdEncoding.EncodeToString([]byte(toSign)),
			"signature": hex.EncodeToString(chain("AWS4"+secret, now.UTC().Format("20060102"), "RegionOne", "s3", "aws4_request", toSign))}},
		"S3, version 1": {"/v3/s3tokens", map[string]any{"access": access, "token": base64.URLEncoding.EncodeToString([]byte("GET\n\n\n\n/bucket")),
			"signature": base64.StdEncoding.EncodeToString(old.Sum(nil))}},
	} {
		t.Run(name, func(t *testing.T) {
			r := ask(test.path, test.request, admin...).want(200)
			if r.word("token.user.id") != demoID || r.word("token.project.id") != project || r.word("token.methods.0") != "ec2credential" {
				t.Errorf("the token is %s", r.text)
			}
			token := r.header.Get("X-Subject-Token")
			as := []string{"X-Auth-Token", token}
			c.do("GET", "/v3/users/"+demoID, "", as...).want(200)
			// It is no more than the key.
			if seen := c.do("GET", "/v3/users/"+demoID+"/credentials/OS-EC2/"+access, "", as...).want(200); seen.at("credential.secret") != nil {
				t.Error("it reads the user's secrets")
			}
			exchange := fmt.Sprintf(`{"auth":{"identity":{"methods":["token"],"token":{"id":%q}}}}`, token)
			c.do("POST", "/v3/auth/tokens", exchange).want(403)

			ask(test.path, test.request, demo...).want(403) // who has seen a request is not whoever signed it
			ask(test.path, test.request).want(401)
			for field, value := range map[string]string{"access": "nobody", "signature": strings.Repeat("0", 64)} {
				forged := map[string]any{}
				for k, v := range test.request {
					forged[k] = v
				}
				forged[field] = value
				ask(test.path, forged, admin...).want(401)
			}
		})
	}
	for _, at := range []time.Time{now.Add(-time.Hour), now.Add(time.Hour)} {
		ask("/v3/ec2tokens", ec2Request(access, secret, at), admin...).want(401)
	}
	for _, path := range []string{"/v3/ec2tokens", "/v3/s3tokens"} {
		for _, body := range []string{`{}`, `[]`, `{"credentials":1}`, `{"credentials":{"access":1}}`, `{"credentials":{"access":"x","signature":"y","token":"*","params":[]}}`} {
			c.do("POST", path, body, admin...).want(400)
		}
	}
	r := ask("/v3/ec2tokens", ec2Request(access, secret, now), admin...).want(200)
	c.do("DELETE", "/v3/users/"+demoID+"/credentials/OS-EC2/"+access, "", demo...).want(204)
	c.do("GET", "/v3/users/"+demoID, "", "X-Auth-Token", r.header.Get("X-Subject-Token")).want(401)
}
