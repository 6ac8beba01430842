package keystone

import (
	"encoding/json"
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) userRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/users":                  s.listUsers,
		"POST /v3/users":                 s.createUser,
		"GET /v3/users/{user_id}":        s.showUser,
		"PATCH /v3/users/{user_id}":      s.updateUser,
		"DELETE /v3/users/{user_id}":     s.deleteUser,
		"GET /v3/users/{user_id}/groups": s.userGroups,
	}
}

func (s *server) userShape(r *http.Request, u *identity.User) shape {
	out := shape{
		"id": spell(u.ID), "name": u.Name, "domain_id": spell(u.DomainID), "enabled": u.Enabled,
		"password_expires_at": stampOrNull(u.PasswordExpiresAt), "options": optionsShape(&u.Options),
		"links": s.self(r, "users", spell(u.ID)),
	}
	// Keystone shows these only when they are there.
	if u.Description != "" {
		out["description"] = u.Description
	}
	if u.Email != "" {
		out["email"] = u.Email
	}
	if !u.DefaultProjectID.IsZero() {
		out["default_project_id"] = spell(u.DefaultProjectID)
	}
	return withExtra(out, u.Extra)
}

// userOptions are Keystone's names of our options.
func userOptions(o *identity.UserOptions) map[string]**bool {
	return map[string]**bool{
		"lock_password": &o.LockPassword, "ignore_lockout_failure_attempts": &o.IgnoreLockout,
		"ignore_password_expiry": &o.IgnorePasswordExpiry, "ignore_change_password_upon_first_use": &o.IgnoreFirstUse,
		"ignore_user_inactivity": &o.IgnoreInactivity, "multi_factor_auth_enabled": &o.MultiFactor,
	}
}

func optionsShape(o *identity.UserOptions) shape {
	out := shape{}
	for name, value := range userOptions(o) {
		if *value != nil {
			out[name] = **value
		}
	}
	if o.MultiFactorRules != nil {
		out["multi_factor_auth_rules"] = o.MultiFactorRules
	}
	return out
}

// editUser reads a user's attributes, apart from the password and the domain.
func editUser(in *fields) func(*identity.User) error {
	return func(u *identity.User) error {
		in.text("name", &u.Name)
		in.flag("enabled", &u.Enabled)
		in.note("description", &u.Description)
		in.note("email", &u.Email)
		in.id("default_project_id", &u.DefaultProjectID)
		options := in.sub("options")
		for name, value := range userOptions(&u.Options) {
			options.option(name, value)
		}
		readRules(options, &u.Options)
		in.join(options)
		in.extra(&u.Extra)
		return in.err
	}
}

func readRules(in *fields, o *identity.UserOptions) {
	raw, ok := in.take("multi_factor_auth_rules")
	if !ok {
		return
	}
	o.MultiFactorRules = nil
	if err := json.Unmarshal(raw, &o.MultiFactorRules); err != nil {
		in.wrong("multi_factor_auth_rules", "a list of lists of methods")
	}
}

func (s *server) createUser(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "user")
	if err != nil {
		return err
	}
	if err := in.require("name"); err != nil {
		return err
	}
	u := &identity.User{Enabled: true}
	var password string
	in.note("password", &password)
	in.id("domain_id", &u.DomainID)
	if u.DomainID.IsZero() {
		u.DomainID = s.callersDomain(r)
	}
	if err := editUser(in)(u); err != nil {
		return err
	}
	made, err := s.identity.CreateUser(r.Context(), u, password)
	if err != nil {
		return err
	}
	return write(w, http.StatusCreated, "user", s.userShape(r, made))
}

func (s *server) listUsers(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	all, err := s.identity.Users(r.Context(), identity.UserFilter{DomainID: optional(query.Get("domain_id")), Name: query.Get("name")})
	if err != nil {
		return err
	}
	return s.writeUsers(w, r, all)
}

func (s *server) writeUsers(w http.ResponseWriter, r *http.Request, all []*identity.User) error {
	items := []shape{}
	for _, u := range all {
		items = append(items, s.userShape(r, u))
	}
	return s.writeList(w, r, "users", items, "name", "enabled", "domain_id", "default_project_id")
}

func (s *server) showUser(w http.ResponseWriter, r *http.Request) error {
	u, err := s.identity.User(r.Context(), pathID(r, "user_id"))
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "user", s.userShape(r, u))
}

func (s *server) updateUser(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "user")
	if err != nil {
		return err
	}
	var password *string
	var text string
	if in.note("password", &text) {
		password = &text
	}
	if in.err != nil {
		return in.err
	}
	u, err := s.identity.UpdateUser(r.Context(), pathID(r, "user_id"), func(u *identity.User) error {
		in.id("domain_id", &u.DomainID)
		return editUser(in)(u)
	}, password)
	if err != nil {
		return err
	}
	return write(w, http.StatusOK, "user", s.userShape(r, u))
}

func (s *server) deleteUser(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteUser(r.Context(), pathID(r, "user_id")); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) changePassword(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "user")
	if err != nil {
		return err
	}
	if err := in.require("original_password", "password"); err != nil {
		return err
	}
	var present, next string
	in.text("original_password", &present)
	in.text("password", &next)
	if in.err != nil {
		return in.err
	}
	if err := s.identity.ChangePassword(r.Context(), pathID(r, "user_id"), present, next); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) userGroups(w http.ResponseWriter, r *http.Request) error {
	all, err := s.identity.GroupsOf(r.Context(), pathID(r, "user_id"))
	if err != nil {
		return err
	}
	items := []shape{}
	for _, g := range all {
		item := s.groupShape(r, g)
		item["membership_expires_at"] = nil
		items = append(items, item)
	}
	return s.writeList(w, r, "groups", items, "name", "domain_id")
}
