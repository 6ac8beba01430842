package keystone

import (
	"fmt"
	"strings"
	"testing"
)

// The same request twice, with one idempotency key, has one effect and the same answer, whatever it asks for.
func TestEveryChangeHappensOnce(t *testing.T) {
	c := newCloud(t)
	admin, demo := c.login("admin"), c.login("demo")
	key := 0
	twice := func(who []string, method, path, body string, status int) *reply {
		t.Helper()
		key++
		headers := append(append([]string{}, who...), "Idempotency-Key", fmt.Sprint(key))
		first := c.do(method, path, body, headers...).want(status)
		again := c.do(method, path, body, headers...)
		if again.status != first.status || again.text != first.text {
			t.Errorf("%s %s: first %d %s\nthen %d %s", method, path, first.status, first.text, again.status, again.text)
		}
		return first
	}
	demoID := c.do("GET", "/v3/users?name=demo", "", admin...).want(200).word("users.0.id")
	altID := c.do("GET", "/v3/users?name=alt", "", admin...).want(200).word("users.0.id")
	demoProject := c.do("GET", "/v3/projects?name=demo", "", admin...).want(200).word("projects.0.id")
	service := c.do("GET", "/v3/services?type=object-store", "", admin...).want(200).word("services.0.id")
	roles := map[string]string{}
	for i := range 6 {
		r := c.do("GET", "/v3/roles", "", admin...)
		roles[r.word(fmt.Sprintf("roles.%d.name", i))] = r.word(fmt.Sprintf("roles.%d.id", i))
	}

	domain := twice(admin, "POST", "/v3/domains", `{"domain":{"name":"acme"}}`, 201).word("domain.id")
	twice(admin, "PUT", "/v3/domains/"+domain+"/config", `{"config":{"identity":{"driver":"sql"}}}`, 201)
	twice(admin, "DELETE", "/v3/domains/"+domain+"/config", "", 204)
	twice(admin, "PATCH", "/v3/domains/"+domain, `{"domain":{"enabled":false}}`, 200)
	twice(admin, "DELETE", "/v3/domains/"+domain, "", 204)

	project := twice(admin, "POST", "/v3/projects", `{"project":{"name":"shop"}}`, 201).word("project.id")
	twice(admin, "PATCH", "/v3/projects/"+project, `{"project":{"name":"shop-2"}}`, 200)
	twice(admin, "PUT", "/v3/projects/"+project+"/tags/blue", "", 201)
	twice(admin, "DELETE", "/v3/projects/"+project+"/tags/blue", "", 204)
	user := twice(admin, "POST", "/v3/users", `{"user":{"name":"worker"}}`, 201).word("user.id")
	twice(admin, "PATCH", "/v3/users/"+user, `{"user":{"email":"worker@example.com"}}`, 200)
	group := twice(admin, "POST", "/v3/groups", `{"group":{"name":"ops"}}`, 201).word("group.id")
	twice(admin, "PATCH", "/v3/groups/"+group, `{"group":{"description":"who operate"}}`, 200)
	twice(admin, "PUT", "/v3/groups/"+group+"/users/"+user, "", 204)
	twice(admin, "DELETE", "/v3/groups/"+group+"/users/"+user, "", 204)
	role := twice(admin, "POST", "/v3/roles", `{"role":{"name":"baker"}}`, 201).word("role.id")
	twice(admin, "PATCH", "/v3/roles/"+role, `{"role":{"name":"cook"}}`, 200)
	twice(admin, "PUT", "/v3/roles/"+role+"/implies/"+roles["reader"], "", 201)
	twice(admin, "DELETE", "/v3/roles/"+role+"/implies/"+roles["reader"], "", 204)
	grant := "/v3/projects/" + project + "/users/" + user + "/roles/" + role
	twice(admin, "PUT", grant, "", 204)
	twice(admin, "DELETE", grant, "", 204)

	registered := twice(admin, "POST", "/v3/registered_limits", `{"registered_limits":[{"service_id":"`+service+`","resource_name":"cake","default_limit":3}]}`, 201).
		word("registered_limits.0.id")
	limit := twice(admin, "POST", "/v3/limits", `{"limits":[{"service_id":"`+service+`","project_id":"`+project+`","resource_name":"cake","resource_limit":5}]}`, 201).
		word("limits.0.id")
	twice(admin, "PATCH", "/v3/limits/"+limit, `{"limit":{"resource_limit":6}}`, 200)
	twice(admin, "DELETE", "/v3/limits/"+limit, "", 204)
	twice(admin, "DELETE", "/v3/registered_limits/"+registered, "", 204)

	own := "/v3/users/" + demoID
	app := twice(demo, "POST", own+"/application_credentials",
		`{"application_credential":{"name":"ci","access_rules":[{"service":"compute","method":"GET","path":"/v2.1/servers"}]}}`, 201)
	if app.word("application_credential.secret") == "" {
		t.Error("an application credential has no secret")
	}
	twice(demo, "DELETE", own+"/application_credentials/"+app.word("application_credential.id"), "", 204)
	twice(demo, "DELETE", own+"/access_rules/"+app.word("application_credential.access_rules.0.id"), "", 204)
	access := twice(demo, "POST", own+"/credentials/OS-EC2", `{"tenant_id":"`+demoProject+`"}`, 201).word("credential.access")
	twice(demo, "DELETE", own+"/credentials/OS-EC2/"+access, "", 204)
	credential := twice(demo, "POST", "/v3/credentials", `{"credential":{"type":"cert","blob":"x"}}`, 201).word("credential.id")
	twice(demo, "PATCH", "/v3/credentials/"+credential, `{"credential":{"blob":"y"}}`, 200)
	twice(demo, "DELETE", "/v3/credentials/"+credential, "", 204)
	trust := twice(demo, "POST", "/v3/OS-TRUST/trusts", fmt.Sprintf(`{"trust":{"trustor_user_id":%q,"trustee_user_id":%q,"project_id":%q,
		"impersonation":true,"roles":[{"name":"member"}]}}`, demoID, altID, demoProject), 201).word("trust.id")
	twice(demo, "DELETE", "/v3/OS-TRUST/trusts/"+trust, "", 204)
	consumer := twice(admin, "POST", "/v3/OS-OAUTH1/consumers", `{"consumer":{}}`, 201).word("consumer.id")
	twice(admin, "PATCH", "/v3/OS-OAUTH1/consumers/"+consumer, `{"consumer":{"description":"x"}}`, 200)
	twice(admin, "DELETE", "/v3/OS-OAUTH1/consumers/"+consumer, "", 204)

	region := twice(admin, "POST", "/v3/regions", `{"region":{"id":"north"}}`, 201).word("region.id")
	twice(admin, "PATCH", "/v3/regions/"+region, `{"region":{"description":"cold"}}`, 200)
	twice(admin, "DELETE", "/v3/regions/"+region, "", 204)
	offer := twice(admin, "POST", "/v3/services", `{"service":{"type":"bakery"}}`, 201).word("service.id")
	endpoint := twice(admin, "POST", "/v3/endpoints", `{"endpoint":{"service_id":"`+offer+`","interface":"public","url":"http://x"}}`, 201).word("endpoint.id")
	twice(admin, "PATCH", "/v3/endpoints/"+endpoint, `{"endpoint":{"url":"http://y"}}`, 200)
	twice(admin, "DELETE", "/v3/endpoints/"+endpoint, "", 204)
	twice(admin, "DELETE", "/v3/services/"+offer, "", 204)
	policy := twice(admin, "POST", "/v3/policies", `{"policy":{"type":"application/json","blob":"{}"}}`, 201).word("policy.id")
	twice(admin, "DELETE", "/v3/policies/"+policy, "", 204)
	for _, path := range []string{"/v3/roles/" + role, "/v3/groups/" + group, "/v3/users/" + user, "/v3/projects/" + project} {
		twice(admin, "DELETE", path, "", 204)
	}
}

// A user fills no state, and is told so in Keystone's words.
func TestWhatAUserMayKeep(t *testing.T) {
	c := newCloud(t)
	admin, demo := c.login("admin"), c.login("demo")
	demoID := c.do("GET", "/v3/users?name=demo", "", admin...).want(200).word("users.0.id")
	for path, body := range map[string]string{
		"/v3/credentials": `{"credential":{"type":"cert","blob":"%d"}}`,
		"/v3/users/" + demoID + "/application_credentials": `{"application_credential":{"name":"%d"}}`,
	} {
		status, n := 0, 0
		for ; status != 403 && n < 1000; n++ {
			r := c.do("POST", path, strings.ReplaceAll(body, "%d", fmt.Sprint(n)), demo...)
			if status = r.status; status == 403 && !strings.Contains(r.word("error.message"), "no more may be kept") {
				t.Errorf("%s: %s", path, r.text)
			}
		}
		if n < 100 || n == 1000 {
			t.Errorf("%s: %d are kept", path, n)
		}
	}
	long := strings.Repeat("x", 70_000)
	for path, body := range map[string]string{
		"/v3/projects":            `{"project":{"name":"x","description":"` + long + `"}}`,
		"/v3/users":               `{"user":{"name":"x","description":"` + long + `"}}`,
		"/v3/users?email":         `{"user":{"name":"x","email":"` + long + `"}}`,
		"/v3/users?options":       `{"user":{"name":"x","options":{"multi_factor_auth_rules":[["` + long + `"]]}}}`,
		"/v3/groups":              `{"group":{"name":"x","description":"` + long + `"}}`,
		"/v3/roles":               `{"role":{"name":"x","description":"` + long + `"}}`,
		"/v3/regions":             `{"region":{"id":"x","description":"` + long + `"}}`,
		"/v3/services":            `{"service":{"type":"x","description":"` + long + `"}}`,
		"/v3/OS-OAUTH1/consumers": `{"consumer":{"description":"` + long + `"}}`,
	} {
		c.do("POST", path, body, admin...).want(400)
	}
	c.do("POST", "/v3/users/"+demoID+"/application_credentials", `{"application_credential":{"name":"x","description":"`+long+`"}}`, demo...).want(400)
}

// A project's family is shown to those who hold a role in it.
func TestFamily(t *testing.T) {
	c := newCloud(t)
	admin := c.login("admin")
	demoID := c.do("GET", "/v3/users?name=demo", "", admin...).want(200).word("users.0.id")
	top := c.do("GET", "/v3/projects?name=demo", "", admin...).want(200).word("projects.0.id")
	child := func(name, of string) string {
		return c.do("POST", "/v3/projects", fmt.Sprintf(`{"project":{"name":%q,"parent_id":%q}}`, name, of), admin...).want(201).word("project.id")
	}
	seen := child("seen", top)
	child("unseen", top)
	member := ""
	for i := range 6 {
		if r := c.do("GET", "/v3/roles", "", admin...); r.word(fmt.Sprintf("roles.%d.name", i)) == "member" {
			member = r.word(fmt.Sprintf("roles.%d.id", i))
		}
	}
	c.do("PUT", "/v3/projects/"+seen+"/users/"+demoID+"/roles/"+member, "", admin...).want(204)
	for who, want := range map[string]int{"demo": 1, "admin": 2} {
		r := c.do("GET", "/v3/projects/"+top+"?subtree_as_list", "", c.login(who)...).want(200)
		if got := len(r.at("project.subtree").([]any)); got != want {
			t.Errorf("%s sees %d projects below, want %d: %s", who, got, want, r.text)
		}
	}
	if r := c.do("GET", "/v3/projects/"+seen+"?parents_as_list", "", c.login("demo")...).want(200); r.word("project.parents.0.project.id") != top {
		t.Errorf("its parent is not shown: %s", r.text)
	}
}
