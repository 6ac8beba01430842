package wire

import (
	"context"
	"encoding/json"
	"reflect"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
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
	Fields map[string]json.RawMessage `json:"fields,omitempty"` // those that would change, with their new values
}

// PlanDocument tells what a plan would change. Fields that a kind keeps secret are
// left out: those whose type says so with a `secret:"true"` tag.
func PlanDocument(ctx context.Context, p *state.Plan) Planned {
	doc := Planned{RequestID: RequestID(ctx), Changes: []PlannedChange{}}
	for _, e := range p.Changes() {
		c := PlannedChange{Kind: e.Kind, ID: e.ID}
		switch {
		case e.Before == nil && e.After == nil:
			continue
		case e.Before == nil:
			c.Action, c.Name = "create", e.After.GetMeta().Name
		case e.After == nil:
			c.Action, c.Name = "delete", e.Before.GetMeta().Name
		default:
			c.Action, c.Name = "update", e.After.GetMeta().Name
		}
		if e.After != nil {
			c.Fields = changed(e.Before, e.After)
		}
		doc.Changes = append(doc.Changes, c)
	}
	return doc
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
