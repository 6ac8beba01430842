package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// What a plan tells when nobody knows what an actor may see: a tenant learns which of its own things
// would change, an admin also how; nobody of receipts.
func TestPlanDocument(t *testing.T) {
	s, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	mine, theirs := resource.ID{15: 1}, resource.ID{15: 2}
	tenant := &identity.Actor{UserID: resource.ID{15: 3}, ProjectID: mine, Roles: []string{"member", "reader"}}
	admin := &identity.Actor{UserID: resource.ID{15: 4}, ProjectID: mine, Roles: []string{"admin"}}
	for actor, want := range map[*identity.Actor]string{tenant: "[create mine 0]", admin: "[create mine 2][create theirs 2]"} {
		p := new(state.Plan)
		ctx := state.WithOnce(state.WithPlan(identity.As(t.Context(), actor), p), &state.Once{Scope: "s", Key: "k", Hash: "h"})
		_, err := state.Do(ctx, s, func(tx *state.Tx) (string, error) {
			for name, project := range map[string]resource.ID{"mine": mine, "theirs": theirs} {
				o := &operation.Operation{Meta: resource.Meta{ID: tx.NewID(), ProjectID: project, Name: name}, Verb: "x", Outcome: operation.Running}
				if err := operation.Table().Put(tx, o); err != nil {
					return "", err
				}
			}
			return "SECRET", nil
		})
		if err != nil {
			t.Fatal(err)
		}
		document, err := PlanDocument(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]string{}
		for _, c := range document.(Planned).Changes {
			said[c.Name] = fmt.Sprintf("[%s %s %d]", c.Action, c.Name, len(c.Fields))
		}
		if got := said["mine"] + said["theirs"]; got != want || len(said) != len(document.(Planned).Changes) {
			t.Errorf("%s, want %s: %+v", got, want, document)
		}
	}
}

func TestDescribing(t *testing.T) {
	told := func(context.Context, *state.Plan) (any, error) { return "as it is seen", nil }
	h := Describing(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		document, err := PlanDocument(r.Context(), new(state.Plan))
		if err != nil {
			t.Error(err)
		}
		if err := WriteJSON(w, http.StatusOK, document); err != nil {
			t.Error(err)
		}
	}), told)
	out := httptest.NewRecorder()
	h.ServeHTTP(out, httptest.NewRequest("POST", "/", nil))
	var got string
	if err := json.Unmarshal(out.Body.Bytes(), &got); err != nil || got != "as it is seen" {
		t.Errorf("%s %v", out.Body, err)
	}
}
