package identity

import (
	"fmt"
	"slices"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

func plant[T any](table *state.Table[T], o *T) func(*state.Tx) error {
	return func(tx *state.Tx) error { return table.Put(tx, o) }
}

// TestOrphansAreFound plants each kind of thing with everything that it can be of gone.
func TestOrphansAreFound(t *testing.T) {
	gone := resource.MustID("01900000-0000-7000-8000-00000000dead")
	id := resource.MustID("01900000-0000-7000-8000-000000000001")
	meta := resource.Meta{ID: id, Name: "orphan"}
	for noun, test := range map[string]struct {
		plant func(*state.Tx) error
		of    []string
	}{
		"project":    {plant(projects, &Project{Meta: meta, DomainID: gone, ParentID: gone}), []string{"domain", "parent"}},
		"user":       {plant(users, &User{Meta: meta, DomainID: gone}), []string{"domain"}},
		"group":      {plant(groups, &Group{Meta: meta, DomainID: gone}), []string{"domain"}},
		"role":       {plant(roles, &Role{Meta: meta, DomainID: gone}), []string{"domain"}},
		"membership": {plant(memberships, &Membership{Meta: meta, UserID: gone, GroupID: gone}), []string{"user", "group"}},
		"implication": {plant(implications, &Implication{Meta: meta, PriorID: gone, ImpliedID: gone}),
			[]string{"role"}},
		"assignment": {plant(assignments, &Assignment{Meta: meta, RoleID: gone, HolderID: gone, Scope: Scope{ProjectID: gone}}),
			[]string{"role", "holder", "scope"}},
		"credential": {plant(credentials, &Credential{Meta: meta, UserID: gone, InProjectID: gone}), []string{"user", "project"}},
		"application credential": {plant(appCredentials, &ApplicationCredential{Meta: meta, UserID: gone, InProjectID: gone, RuleIDs: []resource.ID{gone}}),
			[]string{"user", "project", "rule"}},
		"access rule": {plant(accessRules, &AccessRule{Meta: meta, UserID: gone}), []string{"user"}},
		"trust": {plant(trusts, &Trust{Meta: meta, TrustorID: gone, TrusteeID: gone, InProjectID: gone, RedelegateOf: gone}),
			[]string{"user", "project", "trust"}},
		"request token": {plant(requestTokens, &RequestToken{Meta: meta, ConsumerID: gone, InProjectID: gone, UserID: gone}),
			[]string{"consumer", "project", "user"}},
		"access token": {plant(accessTokens, &AccessToken{Meta: meta, ConsumerID: gone, InProjectID: gone, UserID: gone}),
			[]string{"consumer", "project", "user"}},
		"endpoint":        {plant(endpoints, &Endpoint{Meta: meta, OfferID: gone}), []string{"service"}},
		"endpoint filter": {plant(endpointFilters, &EndpointFilter{Meta: meta, InProjectID: gone, EndpointID: gone}), []string{"project", "endpoint"}},
		"limit":           {plant(limits, &Limit{Meta: meta, OwnerID: gone, DefaultID: gone}), []string{"owner", "registered limit"}},
		"registered limit": {plant(defaultLimits, &DefaultLimit{Meta: meta, OfferID: gone}),
			[]string{"service"}},
		"domain option": {plant(domainOptions, &DomainOption{Meta: meta, DomainID: gone}), []string{"domain"}},
	} {
		t.Run(noun, func(t *testing.T) {
			w := newWorld(t, Config{})
			if wrong := Audit(w.State.Latest()); len(wrong) > 0 {
				t.Fatalf("before anything is wrong: %v", wrong)
			}
			if err := w.State.Update(t.Context(), test.plant); err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, of := range test.of {
				want = append(want, fmt.Sprintf("%s %s is of a %s that is gone", noun, id, of))
			}
			if got := Audit(w.State.Latest()); !slices.Equal(got, want) {
				t.Errorf("found %q, not %q", got, want)
			}
		})
	}
}
