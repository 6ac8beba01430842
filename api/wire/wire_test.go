package wire

import (
	"net/http/httptest"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Each of a user's sessions has idempotency keys of its own, and nobody has any.
func TestKeysOfDifferentActorsNeverMeet(t *testing.T) {
	st, err := state.Open(t.Context(), state.NewMemory(16), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	user, project := resource.ID{15: 1}, resource.ID{15: 2}
	actors := map[string]*identity.Actor{
		"nobody":                    {},
		"the user":                  {UserID: user, ProjectID: project},
		"elsewhere":                 {UserID: user, ProjectID: resource.ID{15: 3}},
		"in a domain":               {UserID: user, DomainID: resource.ID{15: 3}},
		"over the system":           {UserID: user, System: true},
		"another user":              {UserID: resource.ID{15: 4}, ProjectID: project},
		"an application credential": {UserID: user, ProjectID: project, ApplicationCredentialID: resource.ID{15: 5}},
		"a trust":                   {UserID: user, ProjectID: project, TrustID: resource.ID{15: 5}},
		"an access token":           {UserID: user, ProjectID: project, AccessTokenID: resource.ID{15: 5}},
		"an access key":             {UserID: user, ProjectID: project, AccessKeyID: resource.ID{15: 5}},
	}
	ask := func(a *identity.Actor) resource.ID {
		r := httptest.NewRequest("POST", "/things", nil)
		r.Header.Set(OnceHeader, "key")
		ctx, _, err := Context(r.WithContext(identity.As(r.Context(), a)), "test", a.UserID, a.ProjectID, nil)
		if err != nil {
			t.Fatal(err)
		}
		id, err := state.Do(ctx, st, func(tx *state.Tx) (resource.ID, error) { return tx.NewID(), nil })
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	seen := map[resource.ID]string{}
	for name, a := range actors {
		first, again := ask(a), ask(a)
		if (first == again) != (name != "nobody") {
			t.Errorf("%s asks twice, and gets %s and %s", name, first, again)
		}
		if other, met := seen[first]; met {
			t.Errorf("%s gets the answer of %s", name, other)
		}
		seen[first] = name
	}
}
