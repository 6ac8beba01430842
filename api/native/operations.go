package native

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/operation"
)

// A reason is the answer to why: a decision that was taken about a thing.
type reason struct {
	Kind        string          `json:"kind"`
	ID          resource.ID     `json:"id"`
	OperationID resource.ID     `json:"operation_id"`
	Verb        string          `json:"verb"`
	AskedAt     time.Time       `json:"asked_at"`
	Outcome     string          `json:"outcome"`
	Message     string          `json:"message"`
	Chosen      bool            `json:"chosen"` // whether something was
	Why         json.RawMessage `json:"why"`
}

// why explains the newest decision about a thing, without facts about others but for an admin.
func (s *Server) why(w http.ResponseWriter, r *http.Request) error {
	tx, k, see, o, err := s.one(r)
	if err != nil {
		return err
	}
	ops := s.byName[operation.Table().Kind()]
	id := o.GetMeta().ID
	for op := range operation.Table().Peek(tx, "target", state.Range{Prefix: state.KeyOf(id), Reverse: true}) {
		if op.Why == nil || !ops.sees(tx, see, op) {
			continue
		}
		var b bytes.Buffer
		if err := ops.shape.encode(&b, op, ops.levelOf(see, op)); err != nil {
			return fmt.Errorf("encode operation %s: %w", op.ID, err)
		}
		var shown struct{ Why json.RawMessage }
		if err := json.Unmarshal(b.Bytes(), &shown); err != nil {
			return fmt.Errorf("read operation %s again: %w", op.ID, err)
		}
		setRevision(w, tx.Revision())
		s.write(w, r, http.StatusOK, reason{Kind: k.name, ID: id, OperationID: op.ID, Verb: op.Verb, AskedAt: op.CreatedAt,
			Outcome: string(op.Outcome), Message: op.Message, Chosen: op.Why.Chosen != "", Why: shown.Why})
		return nil
	}
	return fault.Errorf(fault.NotFound, "No decision about this %s is kept.", k.name).WithCode("no-decision")
}

// cancel ends an operation. Its target may still be on its way when this answers.
func (s *Server) cancel(w http.ResponseWriter, r *http.Request) error {
	k := s.byName[operation.Table().Kind()]
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return missing(k, r.PathValue("id"))
	}
	o, err := s.Operations.Cancel(r.Context(), id)
	if fault.Is(err, fault.NotFound) {
		return missing(k, id)
	} else if err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusAccepted, k, o)
}

// writeChanged answers with an object that the request has changed.
func (s *Server) writeChanged(w http.ResponseWriter, r *http.Request, status int, k *kind, o resource.Object) error {
	a := identity.ActorOf(r.Context())
	var b bytes.Buffer
	if err := k.shape.encode(&b, o, k.levelOf(sightOf(a, a.Admin()), o)); err != nil {
		return fmt.Errorf("encode %s %s: %w", k.name, o.GetMeta().ID, err)
	}
	b.WriteByte('\n')
	s.send(w, r, status, o.GetMeta().Revision, b.Bytes())
	return nil
}

// A hostPatch is what an operator may say of a host. What is left out stays.
type hostPatch struct {
	Disabled *bool   `json:"disabled"`
	Reason   *string `json:"disabled_reason"`
}

// patchHost keeps new servers off a host, or lets them on it again.
func (s *Server) patchHost(w http.ResponseWriter, r *http.Request) error {
	k := s.byName[host.Table().Kind()]
	id, err := resource.ParseID(r.PathValue("id"))
	if err != nil {
		return missing(k, r.PathValue("id"))
	}
	var p hostPatch
	if err := readJSON(r, &p); err != nil {
		return err
	}
	hosts := host.Service{State: s.State}
	h, err := hosts.Get(r.Context(), id)
	if err != nil {
		return missing(k, id)
	}
	disabled, why := h.Disabled, h.DisabledReason
	if p.Disabled != nil {
		disabled = *p.Disabled
	}
	if p.Reason != nil {
		why = *p.Reason
	}
	switch {
	case len(why) > 255:
		return fault.InvalidField("disabled_reason", "must be at most 255 bytes long").WithCode("invalid-value")
	case !disabled && p.Reason != nil && why != "":
		return fault.InvalidField("disabled_reason", "is for a host that is disabled").WithCode("invalid-value")
	case !disabled:
		why = ""
	}
	if err := hosts.SetDisabled(r.Context(), id, disabled, why); err != nil {
		return err
	}
	if h, err = hosts.Get(r.Context(), id); err != nil {
		return err
	}
	return s.writeChanged(w, r, http.StatusOK, k, h)
}

// readJSON reads the whole body, which must be one value with no fields but those known.
func readJSON(r *http.Request, into any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fault.Errorf(fault.Invalid, "The body must be JSON as the description says: an object with no other fields.").WithCode("invalid-body")
	}
	if _, err := d.Token(); err != io.EOF {
		return fault.Errorf(fault.Invalid, "Something follows the JSON in the body.").WithCode("invalid-body")
	}
	return nil
}

// A health is how the control plane is. What is beside Status only an admin is told.
type health struct {
	Status string       `json:"status"` // "ok", or "read-only": no change can be stored now
	Facts  *healthFacts `json:"facts,omitempty"`
}

type healthFacts struct {
	Revision          int64 `json:"revision"`
	Hosts             int   `json:"hosts"`
	HostsLost         int   `json:"hosts_lost"`
	OperationsOverdue int   `json:"operations_overdue"` // running past their deadlines
}

func (s *Server) health(w http.ResponseWriter, r *http.Request) error {
	status, h := http.StatusOK, health{Status: "ok"}
	if s.State.Broken() != nil || s.State.Confirm(r.Context()) != nil { // one of several that follows is well if it can ask the others
		status, h.Status = http.StatusServiceUnavailable, "read-only"
	}
	if a, err := s.actor(r); err == nil && a.Admin() {
		h.Facts = s.facts()
	}
	s.write(w, r, status, h)
	return nil
}

func (s *Server) facts() *healthFacts {
	tx := s.State.Latest()
	f := &healthFacts{Revision: tx.Revision()}
	for h := range host.Table().Peek(tx, "", state.Range{}) {
		f.Hosts++
		if !h.Up() {
			f.HostsLost++
		}
	}
	for o := range operation.Table().Peek(tx, "deadline", state.Range{}) {
		if o.Deadline.After(s.Now()) {
			break
		}
		f.OperationsOverdue++
	}
	return f
}
