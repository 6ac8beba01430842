// Package ec2 speaks the query protocol of Amazon EC2, version 2016-11-15: a form in, XML out,
// requests signed with Signature Version 4.
//
// What EC2 calls a VPC is a network of ours, and its subnets are the network's. Tags of an
// instance are its owner's key-value pairs; tags of a network's parts are written "key=value" there.
package ec2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/api/wire/sigv4"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// Options of New.
type Options struct {
	Keys     Keys
	State    *state.State
	Compute  *compute.Service
	Images   *image.Service
	Networks *network.Service
	Region   string
	Now      func() time.Time // time.Now when nil
}

// Keys finds the secret of an access key, and who uses it.
type Keys interface {
	// EC2Secret answers a fault of kind Unauthorized for a key that there is not.
	EC2Secret(ctx context.Context, access string) (secret string, actor *identity.Actor, err error)
}

// Server answers EC2 requests.
type Server struct{ Options }

// New makes a server. It wants the path as the client sent it, with no prefix stripped: the
// signature covers it.
func New(o Options) *Server {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Server{o}
}

const (
	maxBody   = 1 << 20
	namespace = "http://ec2.amazonaws.com/doc/2016-11-15/"
)

// A call is one request whose signature was verified.
type call struct {
	ctx   context.Context
	form  url.Values
	actor *identity.Actor
	base  string // the address that the client used
	plan  *state.Plan
}

// An action answers with what goes between the response's tags.
type action func(s *Server, c *call) (any, error)

// actions by name, sorted.
var actions = map[string]action{
	"AuthorizeSecurityGroupEgress":  authorize(false),
	"AuthorizeSecurityGroupIngress": authorize(true),
	"CreateKeyPair":                 (*Server).createKeyPair,
	"CreateSecurityGroup":           (*Server).createSecurityGroup,
	"CreateTags":                    (*Server).createTags,
	"DeleteKeyPair":                 (*Server).deleteKeyPair,
	"DeleteSecurityGroup":           (*Server).deleteSecurityGroup,
	"DeleteTags":                    (*Server).deleteTags,
	"DescribeAccountAttributes":     (*Server).describeAccountAttributes,
	"DescribeAvailabilityZones":     (*Server).describeZones,
	"DescribeImages":                (*Server).describeImages,
	"DescribeInstanceStatus":        (*Server).describeInstanceStatus,
	"DescribeInstanceTypes":         (*Server).describeInstanceTypes,
	"DescribeInstances":             (*Server).describeInstances,
	"DescribeKeyPairs":              (*Server).describeKeyPairs,
	"DescribeRegions":               (*Server).describeRegions,
	"DescribeSecurityGroups":        (*Server).describeSecurityGroups,
	"DescribeSubnets":               (*Server).describeSubnets,
	"DescribeTags":                  (*Server).describeTags,
	"DescribeVpcs":                  (*Server).describeVpcs,
	"GetConsoleOutput":              (*Server).getConsoleOutput,
	"ImportKeyPair":                 (*Server).importKeyPair,
	"RebootInstances":               (*Server).rebootInstances,
	"RevokeSecurityGroupEgress":     revoke(false),
	"RevokeSecurityGroupIngress":    revoke(true),
	"RunInstances":                  (*Server).runInstances,
	"StartInstances":                (*Server).startInstances,
	"StopInstances":                 (*Server).stopInstances,
	"TerminateInstances":            (*Server).terminateInstances,
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer, name, err := s.serve(r)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	id := strings.TrimPrefix(wire.RequestID(r.Context()), "req-")
	text, err := spell(name, id, answer)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("X-Amzn-Requestid", id)
	w.Write(text)
}

// spell puts what every answer has around an answer's own fields.
func spell(name, id string, answer any) ([]byte, error) {
	var inner bytes.Buffer
	if err := xml.NewEncoder(&inner).EncodeElement(answer, xml.StartElement{Name: xml.Name{Local: "x"}}); err != nil {
		return nil, err
	}
	fields := strings.TrimSuffix(strings.TrimPrefix(inner.String(), "<x>"), "</x>")
	return fmt.Appendf(nil, "%s<%sResponse xmlns=%q><requestId>%s</requestId>%s</%sResponse>", xml.Header, name, namespace, id, fields, name), nil
}

// done answers actions that say only that they were done.
type done struct {
	Value bool `xml:"return"`
}

// serve verifies a request and runs its action.
func (s *Server) serve(r *http.Request) (answer any, name string, err error) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return nil, "", refuse("InvalidAction", "The method %s is not known here.", r.Method)
	}
	body, err := wire.Body(r, maxBody)
	if err != nil {
		return nil, "", err
	}
	form := r.URL.Query()
	if r.Method == http.MethodPost {
		posted, err := url.ParseQuery(string(body))
		if err != nil {
			return nil, "", refuse("MalformedQueryString", "The request's form cannot be read.")
		}
		for key, values := range posted {
			form[key] = values
		}
	}
	actor, err := s.verify(r, body)
	if err != nil {
		return nil, "", err
	}
	name = form.Get("Action")
	run, ok := actions[name]
	if !ok {
		return nil, "", refuse("InvalidAction", "The action %s is not valid for this web service.", printable(name))
	}
	ctx, plan, err := wire.Context(r.WithContext(identity.As(r.Context(), actor)), "ec2", actor.UserID, actor.ProjectID, body)
	if err != nil {
		return nil, "", err
	}
	c := &call{ctx: once(ctx, form, actor), form: form, actor: actor, base: wire.BaseURL(r), plan: plan}
	if form.Get("DryRun") == "true" {
		if c.plan == nil {
			c.plan = new(state.Plan)
			c.ctx = state.WithPlan(c.ctx, c.plan)
		}
		if _, err := run(s, c); err != nil {
			return nil, "", err
		}
		return nil, "", &problem{status: http.StatusPreconditionFailed, code: "DryRunOperation",
			message: "Request would have succeeded, but DryRun flag is set."}
	}
	answer, err = run(s, c)
	return answer, name, err
}

// once binds a client token to its request (EC2 API Reference, "Ensuring idempotency").
func once(ctx context.Context, form url.Values, actor *identity.Actor) context.Context {
	token := form.Get("ClientToken")
	if token == "" {
		return ctx
	}
	same := url.Values{}
	for key, values := range form {
		if !strings.HasPrefix(key, "X-Amz-") {
			same[key] = values
		}
	}
	sum := sha256.Sum256([]byte(same.Encode()))
	return state.WithOnce(ctx, &state.Once{Scope: "ec2/" + actor.ProjectID.String(), Key: token, Hash: hex.EncodeToString(sum[:])})
}

// verify answers who signed the request.
func (s *Server) verify(r *http.Request, body []byte) (*identity.Actor, error) {
	signature, err := sigv4.Parse(r)
	if err != nil {
		return nil, signatureProblem(err)
	}
	secret, actor, err := s.Keys.EC2Secret(r.Context(), signature.AccessKey)
	if err != nil {
		if fault.Is(err, fault.Unauthorized) {
			return nil, &problem{status: http.StatusUnauthorized, code: "AuthFailure", message: "AWS was not able to validate the provided access credentials"}
		}
		return nil, err
	}
	sum := sha256.Sum256(body)
	path, _, _ := strings.Cut(r.RequestURI, "?")
	if err := signature.Verify(r, path, "ec2", secret, hex.EncodeToString(sum[:]), s.Now()); err != nil {
		return nil, signatureProblem(err)
	}
	return actor, nil
}

// signatureProblem: EC2 API Reference, "Error codes", "Common client errors".
func signatureProblem(err error) error {
	switch {
	case errors.Is(err, sigv4.ErrMissing):
		return &problem{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
	case errors.Is(err, sigv4.ErrExpired):
		return &problem{http.StatusForbidden, "RequestExpired", "Request has expired. Timestamp date is too far from the time of the server."}
	case errors.Is(err, sigv4.ErrMalformed):
		return &problem{http.StatusForbidden, "IncompleteSignature", "The request signature does not conform to AWS standards."}
	}
	return &problem{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"}
}

// A problem is an error in EC2's own words.
type problem struct {
	status  int
	code    string
	message string
}

func (p *problem) Error() string { return p.message }

func refuse(code, format string, args ...any) error {
	return &problem{http.StatusBadRequest, code, fault.Errorf(fault.Invalid, format, args...).Message}
}

// codes are EC2's words for faults that carry a code of the core, and then for kinds.
var codes = map[string]string{
	"idempotency-mismatch":           "IdempotentParameterMismatch",
	"keypair-not-found":              "InvalidKeyPair.NotFound",
	"keypair-exists":                 "InvalidKeyPair.Duplicate",
	"server-not-found":               "InvalidInstanceID.NotFound",
	"image-not-found":                "InvalidAMIID.NotFound",
	"flavor-not-found":               "InvalidParameterValue",
	"network-not-found":              "InvalidVpcID.NotFound",
	"subnet-not-found":               "InvalidSubnetID.NotFound",
	"security-group-not-found":       "InvalidGroup.NotFound",
	"security-group-in-use":          "DependencyViolation",
	"security-group-rule-exists":     "InvalidPermission.Duplicate",
	"security-group-rule-same-taken": "InvalidPermission.Duplicate",
	"zone-not-found":                 "InvalidParameterValue",
	"no-host":                        "InsufficientInstanceCapacity",
}

var kinds = map[fault.Kind]struct {
	status int
	code   string
}{
	fault.Invalid:      {http.StatusBadRequest, "InvalidParameterValue"},
	fault.Unauthorized: {http.StatusUnauthorized, "AuthFailure"},
	fault.Forbidden:    {http.StatusForbidden, "UnauthorizedOperation"},
	fault.NotFound:     {http.StatusBadRequest, "InvalidParameterValue"},
	fault.Conflict:     {http.StatusBadRequest, "IncorrectState"},
	fault.Exists:       {http.StatusBadRequest, "InvalidParameterValue"},
	fault.Exhausted:    {http.StatusInternalServerError, "InsufficientInstanceCapacity"},
	fault.OverQuota:    {http.StatusBadRequest, "ResourceCountExceeded"},
	fault.TooLarge:     {http.StatusRequestEntityTooLarge, "RequestEntityTooLarge"},
	fault.Unsupported:  {http.StatusBadRequest, "UnsupportedOperation"},
	fault.Precondition: {http.StatusBadRequest, "InvalidParameterValue"},
	fault.Unavailable:  {http.StatusServiceUnavailable, "Unavailable"},
	fault.Gone:         {http.StatusBadRequest, "InvalidParameterValue"},
	fault.Internal:     {http.StatusInternalServerError, "InternalError"},
}

// problemOf spells any error as EC2 does.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	f := fault.From(err)
	if f == nil {
		return &problem{http.StatusInternalServerError, "InternalError", "An internal error has occurred"}
	}
	k := kinds[f.Kind]
	if code := codes[f.Code]; code != "" {
		k.code = code
	}
	if f.Kind == fault.OverQuota && f.Details["quota"] == compute.QuotaServers {
		k.code = "InstanceLimitExceeded"
	}
	return &problem{k.status, k.code, f.Message}
}

// errorResponse is EC2's shape of an error.
type errorResponse struct {
	XMLName   xml.Name `xml:"Response"`
	Code      string   `xml:"Errors>Error>Code"`
	Message   string   `xml:"Errors>Error>Message"`
	RequestID string   `xml:"RequestID"`
}

func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err)
	if p.status == http.StatusInternalServerError && fault.From(err) == nil {
		slog.ErrorContext(r.Context(), "request failed", "request", wire.RequestID(r.Context()), "service", "ec2", "err", err)
	}
	text, err := xml.Marshal(errorResponse{Code: p.code, Message: p.message, RequestID: strings.TrimPrefix(wire.RequestID(r.Context()), "req-")})
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.WriteHeader(p.status)
	w.Write(append([]byte(xml.Header), text...))
}

// printable bounds what of a client's words goes back into a message.
func printable(s string) string {
	if len(s) > 64 {
		s = s[:64]
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

// ownID reads one of EC2's IDs, such as "i-0123456789abcdef0".
func ownID(prefix, s string) (tail string, ok bool) {
	tail, ok = strings.CutPrefix(s, prefix+"-")
	if !ok || len(tail) != 17 {
		return "", false
	}
	for i := range len(tail) {
		if !strings.ContainsRune("0123456789abcdef", rune(tail[i])) {
			return "", false
		}
	}
	return tail, true
}

func idOf(prefix string, id resource.ID) string { return prefix + "-" + id.Tail() }
