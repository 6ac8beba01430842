package wire

import (
	"context"
	"encoding/json"
	"net/http"
	"reflect"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A Planned is the answer to a request with the plan header: what would change.
type Planned struct {
	RequestID string          `json:"request_id"`
	Changes   []PlannedChange `json:"changes"`
}

// A PlannedChange is one object that the request would make, change or delete.
type PlannedChange struct {
	Action string                     `json:"action"` // "create", "update" or "delete"
	Kind   string                     `json:"kind"`
	ID     resource.ID                `json:"id"`
	Name   string                     `json:"name,omitempty"`
	Fields map[string]json.RawMessage `json:"fields,omitempty"` // those that would change, with their new values; for an admin only
}

// A Describer tells the context's actor what a plan would change, as far as it may see it.
type Describer func(ctx context.Context, p *state.Plan) (any, error)

type describerKey struct{}

// Describing has plans in every dialect below it told by one who knows what each actor may see.
func Describing(next http.Handler, d Describer) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), describerKey{}, d)))
	})
}

// PlanDocument tells what a plan would change. Without a Describer nobody knows which fields are for
// operators, so that only an admin is told of fields; those tagged `secret:"true"` nobody is. Others are told
// of what is their project's, or no project's.
func PlanDocument(ctx context.Context, p *state.Plan) (any, error) {
	if d, ok := ctx.Value(describerKey{}).(Describer); ok {
		return d(ctx, p)
	}
	doc := Planned{RequestID: RequestID(ctx), Changes: []PlannedChange{}}
	actor := identity.ActorOf(ctx)
	for _, e := range p.Changes() {
		object, c := e.After, PlannedChange{Action: "update", Kind: e.Kind, ID: e.ID}
		switch {
		case e.Before == nil:
			c.Action = "create"
		case e.After == nil:
			c.Action, object = "delete", e.Before
		}
		m := object.GetMeta()
		c.Name = m.Name
		if _, ours := object.(*state.Receipt); ours || !actor.Admin() && !m.ProjectID.IsZero() && m.ProjectID != actor.ProjectID {
			continue
		}
		if e.After != nil && actor.Admin() {
			c.Fields = changed(e.Before, e.After)
		}
		doc.Changes = append(doc.Changes, c)
	}
	return doc, nil
}

// changed gives the fields of after that differ from before, by their names in the core.
func changed(before, after resource.Object) map[string]json.RawMessage {
	fields := map[string]json.RawMessage{}
	now := reflect.ValueOf(after).Elem()
	var was reflect.Value
	if before != nil {
		was = reflect.ValueOf(before).Elem()
	}
	for i := range now.NumField() {
		f := now.Type().Field(i)
		if f.Name == "Meta" || f.Tag.Get("secret") == "true" {
			continue
		}
		if was.IsValid() && reflect.DeepEqual(was.Field(i).Interface(), now.Field(i).Interface()) {
			continue
		}
		if !was.IsValid() && now.Field(i).IsZero() {
			continue
		}
		if text, err := json.Marshal(now.Field(i).Interface()); err == nil {
			fields[f.Name] = text
		}
	}
	return fields
}
