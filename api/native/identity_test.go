package native

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A populace is a world with the accounts of a new cloud, and secrets of every sort that is kept.
type populace struct {
	*world
	identity *identity.Service
	user     *identity.Actor // holds the token "demo"
	group    resource.ID     // demo is in it
	secrets  []string        // none of these may ever be shown, nor their hashes
}

func populate(t *testing.T) *populace {
	w := newWorld(t)
	p := &populace{world: w, identity: identity.New(w.state, identity.Config{Hash: identity.HashCost{MemoryKiB: 8, Passes: 1}})}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	admin := identity.As(t.Context(), w.tokens["admin"])
	must(identity.Bootstrap(identity.Internal(t.Context()), w.state, identity.BootstrapOptions{AdminPassword: "MARKER-admin", DemoPassword: "MARKER-demo",
		AltPassword: "MARKER-alt"}))
	var err error
	p.user, err = p.identity.ActorFor(t.Context(), "demo", "demo")
	must(err)
	w.tokens["demo"] = p.user
	own := identity.As(t.Context(), p.user)
	_, err = p.identity.CreateUser(admin, &identity.User{Meta: resource.Meta{Name: "else"}, DomainID: identity.DefaultDomain, Enabled: true,
		Extra: identity.Extra{"phone": json.RawMessage(`"5"`)}}, "MARKER-else")
	must(err)
	group, err := p.identity.CreateGroup(admin, &identity.Group{Meta: resource.Meta{Name: "friends"}, DomainID: identity.DefaultDomain})
	must(err)
	p.group = group.ID
	must(p.identity.AddMember(admin, group.ID, p.user.UserID))
	_, err = p.identity.CreateGroup(admin, &identity.Group{Meta: resource.Meta{Name: "strangers"}, DomainID: identity.DefaultDomain})
	must(err)
	key, err := p.identity.CreateAccessKey(own, p.user.UserID, p.user.ProjectID)
	must(err)
	_, err = p.identity.CreateCredential(own, &identity.Credential{Type: "totp", UserID: p.user.UserID, Blob: "MARKER-seed"})
	must(err)
	_, made, err := p.identity.CreateApplicationCredential(own, p.user.UserID, identity.NewApplicationCredential{Name: "app", Secret: "MARKER-app"})
	must(err)
	consumer, err := p.identity.CreateConsumer(admin, &identity.Consumer{Description: "c"})
	must(err)
	w.server(p.user.ProjectID, "demos", func(s *compute.Server) { s.UserData = []byte("MARKER-data") })
	p.secrets = []string{"MARKER", "SECRET", key.Secret, made, consumer.Secret}
	for u := range identity.Users().Peek(w.state.Latest(), "", state.Range{}) {
		if u.PasswordHash != "" {
			p.secrets = append(p.secrets, u.PasswordHash, u.PasswordHash[len(u.PasswordHash)-20:])
		}
	}
	return p
}

// silent fails when a text holds a secret, as it is or in base64.
func (p *populace) silent(what string, text []byte) {
	p.t.Helper()
	for _, secret := range append(slices.Clone(p.secrets), "TUFSS0VS", "U0VDUkVU") {
		if secret == "" || strings.Contains(string(text), secret) {
			p.t.Errorf("%s gives %q away: %s", what, secret, text)
		}
	}
}

func TestAccounts(t *testing.T) {
	p := populate(t)
	for _, c := range []struct{ token, path, want string }{
		{"demo", "/projects", "demo"},
		{"admin", "/projects?all_projects=true&sort=name", "Default admin alt demo service"},
		{"demo", "/users", "demo"},
		{"admin", "/users?all_projects=true&sort=name", "admin alt demo else"},
		{"admin", "/users?all_projects=true&name=else", "else"},
		{"demo", "/users?name=else", ""},
		{"demo", "/groups", "friends"},
		{"admin", "/groups?all_projects=true&sort=name", "friends strangers"},
		{"one", "/groups", ""},
		{"unscoped", "/users", ""},
	} {
		if got := names(p.list(c.token, c.path)); got != c.want {
			t.Errorf("%s lists %s: %q, want %q", c.token, c.path, got, c.want)
		}
	}
	if l := p.list("demo", "/assignments"); len(l.Items) == 0 || slices.ContainsFunc(l.Items, func(o object) bool { return o["holder_id"] != p.user.UserID.String() }) {
		t.Errorf("demo's assignments: %v", l.Items)
	}
	if all, own := len(p.list("admin", "/assignments?all_projects=true").Items), len(p.list("demo", "/assignments").Items); all <= own {
		t.Errorf("%d assignments, of them %d demo's", all, own)
	}
	if got := names(p.list("admin", "/roles?sort=name")); !strings.Contains(got, "admin") || !strings.Contains(got, "reader") {
		t.Error(got)
	}
	p.get("demo", "/roles").must(t, 403)
	for u := range identity.Users().Peek(p.state.Latest(), "", state.Range{}) {
		want := 404
		if u.ID == p.user.UserID {
			want = 200
		}
		p.get("demo", "/users/"+u.ID.String()).must(t, want)
	}
	var me object
	p.get("demo", "/users/"+p.user.UserID.String()).must(t, 200).into(t, &me)
	if _, there := me["epoch"]; there || me["enabled"] != true || me["password_set_at"] == nil {
		t.Errorf("%v", me)
	}
	for name := range me {
		if strings.Contains(name, "hash") || strings.Contains(name, "past") {
			t.Errorf("a user shows %s", name)
		}
	}
	p.get("admin", "/users?all_projects=true&password_hash=x").must(t, 400)
	p.get("admin", "/users?all_projects=true&sort=password_hash").must(t, 400)
}

// Secrets of every sort are in no answer: not in lists nor single objects, now or as they were, nor in what a watch
// or a plan tells.
func TestNoSecretIsShown(t *testing.T) {
	p := populate(t)
	admin := identity.As(t.Context(), p.tokens["admin"])
	at := fmt.Sprint(p.state.Latest().Revision())
	password := "MARKER-new"
	unchanged := func(*identity.User) error { return nil }
	if _, err := p.identity.UpdateUser(admin, p.user.UserID, unchanged, &password); err != nil {
		t.Fatal(err)
	}
	for u := range identity.Users().Peek(p.state.Latest(), "", state.Range{}) {
		if u.PasswordHash != "" {
			p.secrets = append(p.secrets, u.PasswordHash)
		}
	}
	for _, k := range p.native.kinds {
		for _, ask := range []struct{ token, query string }{{"demo", ""}, {"admin", ""}, {"admin", "?all_projects=true"}} {
			for _, headers := range [][]string{nil, {"Unkai-As-Of", at}} {
				a := p.get(ask.token, "/"+k.path+ask.query, headers...)
				p.silent(ask.token+" "+k.path+ask.query, a.body)
				if a.status != 200 {
					continue
				}
				var l listed
				a.into(t, &l)
				for _, item := range l.Items {
					p.silent(k.path, p.get(ask.token, fmt.Sprintf("/%s/%s", k.path, item["id"]), headers...).body)
				}
			}
		}
	}
	for _, token := range []string{"demo", "admin"} {
		query := ""
		if token == "admin" {
			query = "&all_projects=true"
		}
		f := p.follow(token, "/watch?since=1"+query)
		seen := map[string]bool{}
		for !seen["updated user"] {
			l := f.next()
			p.silent("a watch", []byte(l.text))
			seen[l.Type+" "+l.Kind] = true
			if l.Type+l.Kind == "updateduser" && (len(l.Changed) != 1 || l.Changed[0] != "password_set_at") && token == "demo" {
				t.Errorf("changed: %v", l.Changed)
			}
		}
		f.stop()
	}
	plan := new(state.Plan)
	password = "MARKER-newest"
	if _, err := p.identity.UpdateUser(state.WithPlan(admin, plan), p.user.UserID, unchanged, &password); err != nil {
		t.Fatal(err)
	}
	for _, token := range []string{"demo", "admin"} {
		document, err := p.native.Planned(identity.As(t.Context(), p.tokens[token]), plan)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		p.silent("a plan", text)
		if !strings.Contains(string(text), `"user"`) {
			t.Errorf("%s is not told that the user would change: %s", token, text)
		}
	}
}

// A group comes into its members' sight with their membership, and leaves it.
func TestWatchGroups(t *testing.T) {
	p := populate(t)
	admin := identity.As(t.Context(), p.tokens["admin"])
	f := p.follow("demo", fmt.Sprintf("/groups?watch=true&since=%d", p.list("demo", "/groups").Revision))
	if err := p.identity.RemoveMember(admin, p.group, p.user.UserID); err != nil {
		t.Fatal(err)
	}
	if l := f.expect("deleted group -")[0]; l.ID != p.group.String() {
		t.Error(l.text)
	}
	p.get("demo", "/groups/"+p.group.String()).must(t, 404)
	if err := p.identity.AddMember(admin, p.group, p.user.UserID); err != nil {
		t.Fatal(err)
	}
	f.expect("created group friends")
}
