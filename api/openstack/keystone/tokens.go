package keystone

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/identity"
)

func (s *server) tokenRoutes() map[string]openstack.Handler {
	return map[string]openstack.Handler{
		"GET /v3/auth/tokens":    s.showToken, // and HEAD
		"DELETE /v3/auth/tokens": s.revokeToken,
		"GET /v3/auth/catalog":   s.authCatalog,
		"GET /v3/auth/projects":  s.authProjects,
		"GET /v3/auth/domains":   s.authDomains,
		"GET /v3/auth/system":    s.authSystem,
	}
}

// parseProof reads the body of POST /v3/auth/tokens.
func (s *server) parseProof(r *http.Request) (identity.Proof, error) {
	var p identity.Proof
	in, err := body(r, "auth")
	if err != nil {
		return p, err
	}
	if err := in.require("identity"); err != nil {
		return p, err
	}
	id := in.sub("identity")
	if err := id.require("methods"); err != nil {
		return p, err
	}
	id.texts("methods", &p.Methods)
	parts := []*fields{id}
	if len(p.Methods) > identity.MostMethods {
		return p, fault.Errorf(fault.Invalid, "Invalid input for field 'methods': it is too long.")
	}
	for _, method := range p.Methods {
		proof := id.sub(method)
		switch method {
		case "password":
			p.User = userRef(proof.part("user", &parts), "password", &p.Password)
		case "totp":
			p.User = userRef(proof.part("user", &parts), "passcode", &p.Passcode)
		case "token":
			proof.text("id", &p.Token)
		case "application_credential":
			readApplicationProof(proof, &p, &parts)
		}
		parts = append(parts, proof)
	}
	if slices.Contains(p.Methods, "oauth1") {
		if err := s.readOAuthProof(r, &p); err != nil {
			return p, err
		}
	}
	if raw, ok := in.take("scope"); ok {
		if err := parseScope(raw, &p.Scope); err != nil {
			return p, err
		}
	}
	in.join(parts...)
	if in.err == nil {
		in.err = complete(&p)
	}
	return p, in.err
}

// part is sub that remembers the part for its error.
func (in *fields) part(name string, parts *[]*fields) *fields {
	sub := in.sub(name)
	*parts = append(*parts, sub)
	return sub
}

// userRef reads {"id": …} or {"name": …, "domain": …} with the secret beside it.
func userRef(in *fields, secret string, to *string) identity.UserRef {
	var u identity.UserRef
	in.id("id", &u.ID)
	in.text("name", &u.Name)
	domain := in.sub("domain")
	u.Domain = domainRef(domain)
	if secret != "" {
		in.text(secret, to)
	}
	in.join(domain)
	return u
}

func domainRef(in *fields) identity.DomainRef {
	var d identity.DomainRef
	in.id("id", &d.ID)
	in.text("name", &d.Name)
	return d
}

func readApplicationProof(in *fields, p *identity.Proof, parts *[]*fields) {
	in.id("id", &p.CredentialID)
	in.text("name", &p.Credential)
	in.text("secret", &p.Secret)
	p.Owner = userRef(in.part("user", parts), "", nil)
}

// readOAuthProof reads what stands in the header and not in the body.
func (s *server) readOAuthProof(r *http.Request, p *identity.Proof) error {
	o, err := s.parseOAuth(r, time.Now())
	if err != nil {
		return err
	}
	p.ConsumerID, p.AccessTokenID, p.Signed = idOf(o.get("oauth_consumer_key")), idOf(o.get("oauth_token")), o.signed
	return nil
}

// complete refuses a proof that lacks what its methods need.
func complete(p *identity.Proof) error {
	lacks := func(what string) error {
		return fault.Errorf(fault.Invalid, "Expecting to find %s in identity.", what)
	}
	for _, method := range p.Methods {
		switch method {
		case "password", "totp":
			if p.User.ID.IsZero() && (p.User.Name == "" || p.User.Domain == identity.DomainRef{}) {
				return lacks("a user's id, or its name and domain,")
			}
		case "token":
			if p.Token == "" {
				return lacks("the token's id")
			}
		case "application_credential":
			if p.CredentialID.IsZero() && (p.Credential == "" || p.Owner.ID.IsZero() && p.Owner.Name == "") {
				return lacks("an application credential's id, or its name and user,")
			}
		}
	}
	return nil
}

// parseScope reads the scope of a request for a token.
func parseScope(raw json.RawMessage, to *identity.ScopeRef) error {
	var word string
	if json.Unmarshal(raw, &word) == nil && !isNull(raw) {
		if word != "unscoped" {
			return fault.Errorf(fault.Invalid, "Invalid input for field 'scope': %q is not a scope.", word)
		}
		to.Unscoped = true
		return nil
	}
	in, ok := object(raw)
	if !ok {
		return fault.Errorf(fault.Invalid, "Invalid input for field 'scope': it must be an object.")
	}
	if len(in.raw) != 1 {
		return fault.Errorf(fault.Invalid, "Invalid input for field 'scope': exactly one scope must be given.")
	}
	var parts []*fields
	for name := range in.raw {
		switch name {
		case "unscoped":
			to.Unscoped = true
		case "project":
			p := in.part(name, &parts)
			p.id("id", &to.ProjectID)
			p.text("name", &to.ProjectName)
			to.ProjectDomain = domainRef(p.part("domain", &parts))
			if to.ProjectID.IsZero() && (to.ProjectName == "" || to.ProjectDomain == identity.DomainRef{}) {
				in.wrong("scope", "a project's id, or its name and domain")
			}
		case "domain":
			to.Domain = domainRef(in.part(name, &parts))
			if (to.Domain == identity.DomainRef{}) {
				in.wrong("scope", "a domain's id or name")
			}
		case "system":
			system := in.part(name, &parts)
			system.flag("all", &to.System)
			if !to.System {
				in.wrong("scope", "the whole system: {\"all\": true}")
			}
		case "OS-TRUST:trust":
			in.part(name, &parts).id("id", &to.TrustID)
			if to.TrustID.IsZero() {
				in.wrong("scope", "a trust's id")
			}
		default:
			in.wrong("scope", "a project, a domain, the system or a trust")
		}
	}
	in.join(parts...)
	return in.err
}

func (s *server) authenticate(w http.ResponseWriter, r *http.Request) error {
	proof, err := s.parseProof(r)
	if err != nil {
		return err
	}
	token, session, err := s.identity.Authenticate(r.Context(), proof)
	if f := fault.From(err); f != nil && f.Code == identity.BadToken {
		return fault.Errorf(fault.NotFound, "%s", f.Message) // Keystone's answer, alone among the methods
	}
	if err != nil {
		return err
	}
	return s.writeToken(w, r, http.StatusCreated, token, session)
}

// subject verifies the token that the request is about.
func (s *server) subject(r *http.Request) (string, *identity.Session, error) {
	token := r.Header.Get("X-Subject-Token")
	if token == "" {
		return "", nil, fault.Errorf(fault.Invalid, "The header X-Subject-Token must name a token.")
	}
	n, err := s.identity.Session(r.Context(), token)
	if fault.Is(err, fault.Unauthorized) {
		err = fault.Errorf(fault.NotFound, "Could not find token.")
	}
	return token, n, err
}

func (s *server) showToken(w http.ResponseWriter, r *http.Request) error {
	token, n, err := s.subject(r)
	if err != nil {
		return err
	}
	if err := s.identity.MayValidate(r.Context(), n); err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		w.Header().Set("X-Subject-Token", token)
		w.Header().Set("Vary", "X-Auth-Token")
		w.WriteHeader(http.StatusOK)
		return nil
	}
	return s.writeToken(w, r, http.StatusOK, token, n)
}

func (s *server) revokeToken(w http.ResponseWriter, r *http.Request) error {
	_, n, err := s.subject(r)
	if err != nil {
		return err
	}
	if err := s.identity.RevokeToken(r.Context(), n); err != nil {
		return err
	}
	return noContent(w)
}

func (s *server) writeToken(w http.ResponseWriter, r *http.Request, status int, token string, n *identity.Session) error {
	out := tokenShape(n)
	_, without := r.URL.Query()["nocatalog"]
	if scoped := n.Scope != (identity.Scope{}); scoped && !without {
		catalog, err := s.catalog(r, n.Scope, n.UserID)
		if err != nil {
			return err
		}
		out["catalog"] = catalog
	}
	w.Header().Set("X-Subject-Token", token)
	return write(w, status, "token", out)
}

func auditID(id resource.ID) string { return base64.RawURLEncoding.EncodeToString(id[:]) }

func tokenShape(n *identity.Session) shape {
	audit := []string{auditID(n.AuditID)}
	if !n.ParentID.IsZero() {
		audit = append(audit, auditID(n.ParentID))
	}
	out := shape{
		"methods": n.Methods.Names(), "audit_ids": audit, "issued_at": stamp(n.IssuedAt), "expires_at": stamp(n.ExpiresAt),
		"user": shape{
			"id": spell(n.UserID), "name": n.User.Name, "password_expires_at": stampOrNull(n.User.PasswordExpiresAt),
			"domain": nameShape(n.UserDomain),
		},
	}
	switch {
	case n.Project != nil:
		out["project"] = shape{"id": spell(n.Project.ID), "name": n.Project.Name, "domain": nameShape(n.Domain)}
		out["is_domain"] = false
	case n.Domain != nil:
		out["domain"] = nameShape(n.Domain)
	case n.Scope.System:
		out["system"] = shape{"all": true}
	}
	if n.Scope != (identity.Scope{}) {
		roles := []shape{}
		for _, role := range n.Roles {
			roles = append(roles, shape{"id": spell(role.ID), "name": role.Name})
		}
		out["roles"] = roles
	}
	if c := n.Credential; c != nil {
		out["application_credential"] = shape{"id": spell(c.ID), "name": c.Name, "restricted": !c.Unrestricted}
		if n.Rules != nil {
			out["application_credential"].(shape)["access_rules"] = rulesShape(n.Rules)
		}
	}
	if t := n.Access; t != nil {
		out["OS-OAUTH1"] = shape{"access_token_id": spell(t.ID), "consumer_id": spell(t.ConsumerID)}
	}
	if t := n.Trust; t != nil {
		out["OS-TRUST:trust"] = shape{
			"id": spell(t.ID), "impersonation": t.Impersonate,
			"trustor_user": shape{"id": spell(t.TrustorID)}, "trustee_user": shape{"id": spell(t.TrusteeID)},
		}
	}
	return out
}

func nameShape(p *identity.Project) shape { return shape{"id": spell(p.ID), "name": p.Name} }

// service is a service in a catalog. It is no shape, for most of what a token's answer costs is to spell its catalog.
type service struct {
	Endpoints []endpoint `json:"endpoints"`
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Type      string     `json:"type"`
}

type endpoint struct {
	ID        string  `json:"id"`
	Interface string  `json:"interface"`
	Region    *string `json:"region"`
	RegionID  *string `json:"region_id"`
	URL       string  `json:"url"`
}

// catalog is the catalog as tokens and GET /v3/auth/catalog show it.
func (s *server) catalog(r *http.Request, scope identity.Scope, user resource.ID) ([]service, error) {
	entries, err := s.identity.Catalog(r.Context(), scope, user, wire.BaseURL(r))
	if err != nil {
		return nil, err
	}
	out := make([]service, 0, len(entries))
	for _, entry := range entries {
		at := make([]endpoint, 0, len(entry.Endpoints))
		for _, e := range entry.Endpoints {
			var region *string
			if e.Region != "" {
				region = &e.Region
			}
			at = append(at, endpoint{spell(e.ID), e.Interface, region, region, e.URL})
		}
		out = append(out, service{at, spell(entry.Offer.ID), entry.Offer.Name, entry.Offer.Type})
	}
	return out, nil
}

func scopeOf(ctx context.Context) identity.Scope {
	a := identity.ActorOf(ctx)
	return identity.Scope{ProjectID: a.ProjectID, DomainID: a.DomainID, System: a.System}
}

func (s *server) authCatalog(w http.ResponseWriter, r *http.Request) error {
	scope := scopeOf(r.Context())
	if scope == (identity.Scope{}) {
		return fault.Errorf(fault.Forbidden, "A token without a scope has no catalog.")
	}
	catalog, err := s.catalog(r, scope, identity.ActorOf(r.Context()).UserID)
	if err != nil {
		return err
	}
	w.Header().Set("Vary", "X-Auth-Token")
	return wire.WriteJSON(w, http.StatusOK, shape{"catalog": catalog, "links": shape{"self": s.base(r) + r.URL.RequestURI(), "previous": nil, "next": nil}})
}

func (s *server) authProjects(w http.ResponseWriter, r *http.Request) error {
	return s.scopes(w, r, identity.ActorOf(r.Context()).UserID, false)
}

func (s *server) authDomains(w http.ResponseWriter, r *http.Request) error {
	return s.scopes(w, r, identity.ActorOf(r.Context()).UserID, true)
}

func (s *server) authSystem(w http.ResponseWriter, r *http.Request) error {
	has, err := s.identity.HasSystem(r.Context(), identity.ActorOf(r.Context()).UserID)
	if err != nil {
		return err
	}
	system := []shape{}
	if has {
		system = append(system, shape{"all": true})
	}
	return s.writeList(w, r, "system", system)
}
