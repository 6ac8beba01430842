package keystone

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) configRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/domains/{domain_id}/config":                     s.showConfig,
		"PUT /v3/domains/{domain_id}/config":                     s.setConfig,
		"PATCH /v3/domains/{domain_id}/config":                   s.setConfig,
		"DELETE /v3/domains/{domain_id}/config":                  s.deleteConfig,
		"PATCH /v3/domains/{domain_id}/config/{group}":           s.setConfig,
		"DELETE /v3/domains/{domain_id}/config/{group}":          s.deleteConfig,
		"PATCH /v3/domains/{domain_id}/config/{group}/{option}":  s.setConfig,
		"DELETE /v3/domains/{domain_id}/config/{group}/{option}": s.deleteConfig,
		// The defaults stand at config/default, config/{group}/default and config/{group}/{option}/default,
		// which a mux cannot tell from {domain_id}/config/{group}…: see configPath.
		"GET /v3/domains/config/default":             s.defaultConfig,
		"GET /v3/domains/{one}/{two}/{three}":        s.configPath,
		"GET /v3/domains/{one}/{two}/{three}/{four}": s.configPath,
	}
}

// configDefaults are the settings that a domain may have of its own (Identity API v3, "Domain
// configuration"), with the values of a domain that has none. Users are ours alone: the settings are
// kept for tools that manage them, and change nothing.
var configDefaults = map[string]map[string]any{
	"identity": {"driver": "sql", "list_limit": nil},
	"ldap": {
		"url": "ldap://localhost", "user": nil, "suffix": "cn=example,cn=com", "query_scope": "one", "page_size": 0, "use_tls": false,
		"tls_cacertfile": nil, "tls_req_cert": "demand", "user_tree_dn": nil, "user_filter": nil, "user_objectclass": "inetOrgPerson",
		"user_id_attribute": "cn", "user_name_attribute": "sn", "user_mail_attribute": "mail", "user_pass_attribute": "userPassword",
		"user_enabled_attribute": "enabled", "group_tree_dn": nil, "group_filter": nil, "group_objectclass": "groupOfNames",
		"group_id_attribute": "cn", "group_name_attribute": "ou", "group_member_attribute": "member", "group_desc_attribute": "description",
	},
}

// complianceGroup is the group that everybody may read, and nobody change.
const complianceGroup = "security_compliance"

// secretOptions may be set but are never shown.
var secretOptions = []string{"password"}

func unsupportedOption(group, option string) error {
	if option == "" {
		return fault.Errorf(fault.Forbidden, "Group %s is not supported for domain specific configurations.", group)
	}
	return fault.Errorf(fault.Forbidden, "Option %s in group %s is not supported for domain specific configurations.", option, group)
}

func (s *server) defaultConfig(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.MayReadDomainOptions(r.Context()); err != nil {
		return err
	}
	group, option := r.PathValue("group"), r.PathValue("option")
	options, ok := configDefaults[group]
	switch {
	case group == "":
		return write(w, http.StatusOK, "config", configDefaults)
	case !ok:
		return unsupportedOption(group, "")
	case option == "":
		return write(w, http.StatusOK, "config", shape{group: options})
	}
	value, ok := options[option]
	if !ok {
		return unsupportedOption(group, option)
	}
	return write(w, http.StatusOK, "config", shape{option: value})
}

// configPath tells the paths of default settings from those of a domain's.
func (s *server) configPath(w http.ResponseWriter, r *http.Request) error {
	one, two, three, four := r.PathValue("one"), r.PathValue("two"), r.PathValue("three"), r.PathValue("four")
	switch {
	case one == "config" && three == "default" && four == "":
		r.SetPathValue("group", two)
		return s.defaultConfig(w, r)
	case one == "config" && four == "default":
		r.SetPathValue("group", two)
		r.SetPathValue("option", three)
		return s.defaultConfig(w, r)
	case two == "config":
		r.SetPathValue("domain_id", one)
		r.SetPathValue("group", three)
		r.SetPathValue("option", four)
		return s.showConfig(w, r)
	}
	return fault.Errorf(fault.NotFound, "The resource could not be found.")
}

func (s *server) showConfig(w http.ResponseWriter, r *http.Request) error {
	domain, group, option := pathID(r, "domain_id"), r.PathValue("group"), r.PathValue("option")
	if group == complianceGroup {
		return s.writePasswordRules(w, domain, option)
	}
	return s.writeConfig(w, r, http.StatusOK, domain, group, option)
}

// passwordRules tells everybody, in Keystone's words, what passwords are accepted.
func (s *server) passwordRules() map[string]any {
	least := s.identity.PasswordRules().MinLength
	return map[string]any{
		"password_regex":             fmt.Sprintf("^.{%d,}$", least),
		"password_regex_description": fmt.Sprintf("A password must have at least %d characters.", least),
	}
}

func (s *server) writePasswordRules(w http.ResponseWriter, domain resource.ID, option string) error {
	rules := s.passwordRules()
	value, ok := rules[option]
	switch {
	case domain != identity.DefaultDomain:
		return fault.Errorf(fault.Forbidden, "The rules for passwords are those of the default domain.")
	case option == "":
		return write(w, http.StatusOK, "config", shape{complianceGroup: rules})
	case !ok:
		return unsupportedOption(complianceGroup, option)
	}
	return write(w, http.StatusOK, "config", shape{option: value})
}

func (s *server) writeConfig(w http.ResponseWriter, r *http.Request, status int, domain resource.ID, group, option string) error {
	if _, ok := configDefaults[group]; group != "" && !ok {
		return unsupportedOption(group, "")
	}
	config, err := s.identity.DomainOptions(r.Context(), domain, group)
	if err != nil {
		return err
	}
	for _, options := range config {
		for _, secret := range secretOptions {
			delete(options, secret)
		}
	}
	if option == "" {
		return write(w, status, "config", config)
	}
	value, ok := config[group][option]
	if !ok {
		return fault.Errorf(fault.NotFound, "Could not find option %s in group %s of the domain's configuration.", option, group)
	}
	return write(w, status, "config", shape{option: value})
}

// setConfig is PUT of a whole configuration, or PATCH of all, one group or one option.
func (s *server) setConfig(w http.ResponseWriter, r *http.Request) error {
	in, err := body(r, "config")
	if err != nil {
		return err
	}
	domain, group, option := pathID(r, "domain_id"), r.PathValue("group"), r.PathValue("option")
	config := map[string]map[string]json.RawMessage{}
	if option != "" {
		value, ok := in.raw[option]
		if !ok || len(in.raw) != 1 {
			return fault.Errorf(fault.Forbidden, "The body must hold just the option %s of the URL.", option)
		}
		config[group] = map[string]json.RawMessage{option: value}
	} else {
		for name, raw := range in.raw {
			if group != "" && name != group {
				return fault.Errorf(fault.Forbidden, "The body must hold just the group %s of the URL.", group)
			}
			options, ok := object(raw)
			if !ok || len(options.raw) == 0 {
				return fault.Errorf(fault.Invalid, "Group %s must be an object with options.", name)
			}
			config[name] = options.raw
		}
	}
	if len(config) == 0 {
		return fault.Errorf(fault.Invalid, "No options specified.")
	}
	for group, options := range config {
		if _, ok := configDefaults[group]; !ok {
			return unsupportedOption(group, "")
		}
		for option := range options {
			if _, ok := configDefaults[group][option]; !ok && !slices.Contains(secretOptions, option) {
				return unsupportedOption(group, option)
			}
		}
	}
	status, whole := http.StatusOK, r.Method == http.MethodPut
	if !whole {
		if _, err := s.identity.DomainOptions(r.Context(), domain, group); err != nil {
			return err
		}
	}
	first, err := s.identity.SetDomainOptions(r.Context(), domain, config, whole)
	if err != nil {
		return err
	}
	if whole && first {
		status = http.StatusCreated
	}
	return s.writeConfig(w, r, status, domain, "", "")
}

func (s *server) deleteConfig(w http.ResponseWriter, r *http.Request) error {
	if err := s.identity.DeleteDomainOptions(r.Context(), pathID(r, "domain_id"), r.PathValue("group"), r.PathValue("option")); err != nil {
		return err
	}
	return noContent(w)
}
