// Package ec2 speaks the query protocol of Amazon EC2, version 2016-11-15: a form in, XML out,
// requests signed with Signature Version 4.
//
// What EC2 calls a VPC is a network of ours, and its subnets are the network's. The account is the
// project: an actor's other projects, and what others share with everybody but for networks and images, are
// not there. Tags of an instance are its owner's key-value pairs, and Name is its name; tags of a
// network's parts and of images are written "key=value" there.
package ec2

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
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
	in    *param
	actor *identity.Actor
	base  string // the address that the client used
	now   time.Time
	past  bool // it asks about the past
}

// An action is one thing that can be asked for. run answers with what goes between the response's tags.
type action struct {
	run   func(s *Server, c *call) (any, error)
	takes map[string]bool
	only  map[string]string // parameters with the one value that says what is done anyway
	lacks map[string]bool   // parameters of AWS that are not supported; "Name.*" for all below a name
}

func takes(run func(*Server, *call) (any, error), params ...string) *action {
	return &action{run: run, takes: known(strings.Join(params, " "))}
}

func (a *action) without(params string) *action {
	a.lacks = known(params)
	return a
}

// Parameters that several actions take.
const (
	filtered   = "Filter.N.Name Filter.N.Value.N"
	paged      = filtered + " MaxResults NextToken"
	tagged     = "TagSpecification.N.ResourceType TagSpecification.N.Tag.N.Key TagSpecification.N.Tag.N.Value"
	permitting = "GroupId GroupName IpProtocol FromPort ToPort CidrIp SourceSecurityGroupName SourceSecurityGroupOwnerId" +
		" IpPermissions.N.IpProtocol IpPermissions.N.FromPort IpPermissions.N.ToPort" +
		" IpPermissions.N.IpRanges.N.CidrIp IpPermissions.N.IpRanges.N.Description" +
		" IpPermissions.N.Ipv6Ranges.N.CidrIpv6 IpPermissions.N.Ipv6Ranges.N.Description" +
		" IpPermissions.N.Groups.N.GroupId IpPermissions.N.Groups.N.GroupName IpPermissions.N.Groups.N.UserId IpPermissions.N.Groups.N.Description" +
		" IpPermissions.N.UserIdGroupPairs.N.GroupId IpPermissions.N.UserIdGroupPairs.N.GroupName" +
		" IpPermissions.N.UserIdGroupPairs.N.UserId IpPermissions.N.UserIdGroupPairs.N.Description"
	notPermitting = "IpPermissions.* TagSpecification.* SecurityGroupRuleId.*"
)

// actions by name, sorted, with what each takes (API Reference, "Actions").
var actions = map[string]*action{
	"AuthorizeSecurityGroupEgress":  takes(authorize(false), permitting).without(notPermitting),
	"AuthorizeSecurityGroupIngress": takes(authorize(true), permitting).without(notPermitting),
	"CreateKeyPair":                 takes((*Server).createKeyPair, "KeyName KeyType KeyFormat").without("TagSpecification.*"),
	"CreateSecurityGroup":           takes((*Server).createSecurityGroup, "GroupName GroupDescription VpcId", tagged),
	"CreateTags":                    takes((*Server).createTags, "ResourceId.N Tag.N.Key Tag.N.Value"),
	"DeleteKeyPair":                 takes((*Server).deleteKeyPair, "KeyName KeyPairId"),
	"DeleteSecurityGroup":           takes((*Server).deleteSecurityGroup, "GroupId GroupName"),
	"DeleteTags":                    takes((*Server).deleteTags, "ResourceId.N Tag.N.Key Tag.N.Value"),
	"DescribeAccountAttributes":     takes((*Server).describeAccountAttributes, "AttributeName.N"),
	"DescribeAvailabilityZones":     takes((*Server).describeZones, filtered, "ZoneName.N ZoneId.N AllAvailabilityZones"),
	"DescribeImages":                takes((*Server).describeImages, paged, "ImageId.N Owner.N ExecutableBy.N IncludeDeprecated IncludeDisabled"),
	"DescribeInstanceStatus":        takes((*Server).describeInstanceStatus, paged, "InstanceId.N IncludeAllInstances"),
	"DescribeInstanceTypes":         takes((*Server).describeInstanceTypes, paged, "InstanceType.N"),
	"DescribeInstances":             takes((*Server).describeInstances, paged, "InstanceId.N"),
	"DescribeKeyPairs":              takes((*Server).describeKeyPairs, filtered, "KeyName.N KeyPairId.N IncludePublicKey"),
	"DescribeRegions":               takes((*Server).describeRegions, filtered, "RegionName.N AllRegions"),
	"DescribeSecurityGroups":        takes((*Server).describeSecurityGroups, paged, "GroupId.N GroupName.N"),
	"DescribeSubnets":               takes((*Server).describeSubnets, paged, "SubnetId.N"),
	"DescribeTags":                  takes((*Server).describeTags, paged),
	"DescribeVpcs":                  takes((*Server).describeVpcs, paged, "VpcId.N"),
	"GetConsoleOutput":              takes((*Server).getConsoleOutput, "InstanceId Latest"),
	"ImportKeyPair":                 takes((*Server).importKeyPair, "KeyName PublicKeyMaterial").without("TagSpecification.*"),
	"RebootInstances":               takes((*Server).rebootInstances, "InstanceId.N"),
	"RevokeSecurityGroupEgress":     takes(revoke(false), permitting).without(notPermitting),
	"RevokeSecurityGroupIngress":    takes(revoke(true), permitting).without(notPermitting),
	"RunInstances":                  launching,
	"StartInstances":                takes((*Server).startInstances, "InstanceId.N").without("AdditionalInfo"),
	"StopInstances": {run: (*Server).stopInstances, takes: known("InstanceId.N Force"),
		only: map[string]string{"Hibernate": "false"}},
	"TerminateInstances": takes((*Server).terminateInstances, "InstanceId.N"),
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.serve(w, r); err != nil {
		s.fail(w, r, err)
	}
}

// serve verifies a request, runs its action and answers.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) error {
	form, body, err := read(r)
	if err != nil {
		return err
	}
	actor, err := s.verify(r, body)
	if err != nil {
		return err
	}
	name := form.Get("Action")
	if name == "" {
		return refuse("MissingAction", "The request must contain the parameter Action")
	}
	do, ok := actions[name]
	if !ok {
		return refuse("InvalidAction", "The action %s is not valid for this web service.", printable(name))
	}
	if err := do.check(form); err != nil {
		return err
	}
	in, err := parse(form)
	if err != nil {
		return err
	}
	asked := r.WithContext(identity.As(r.Context(), actor))
	asked.Method = http.MethodPost // actions that change something come with GET, too
	ctx, plan, err := wire.Context(asked, "ec2", actor.UserID, actor.ProjectID, body)
	if err != nil {
		return err
	}
	if ctx, err = once(ctx, form, actor); err != nil {
		return err
	}
	dry, err := in.bool("DryRun")
	if err != nil {
		return err
	}
	if dry && plan == nil {
		plan = new(state.Plan)
		ctx = state.WithPlan(ctx, plan)
	}
	answer, err := do.run(s, &call{ctx: ctx, in: in, actor: actor, base: wire.BaseURL(r), now: s.Now(), past: r.Header.Get(wire.AsOfHeader) != ""})
	switch {
	case err != nil:
		return err
	case dry:
		return &problem{http.StatusPreconditionFailed, "DryRunOperation", "Request would have succeeded, but DryRun flag is set."}
	case plan != nil:
		document, err := wire.PlanDocument(ctx, plan)
		if err != nil {
			return err
		}
		return wire.WriteJSON(w, http.StatusOK, document)
	}
	text, err := spell(name, requestID(r), answer)
	if err != nil {
		return fmt.Errorf("write the answer of %s: %w", name, err)
	}
	write(w, http.StatusOK, requestID(r), text)
	return nil
}

// read takes a request's parameters from its query and its body.
func read(r *http.Request) (form url.Values, body []byte, err error) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return nil, nil, &problem{http.StatusMethodNotAllowed, "InvalidAction", "Requests are sent with GET or POST."}
	}
	if body, err = wire.Body(r, maxBody); err != nil {
		return nil, nil, err
	}
	malformed := refuse("MalformedQueryString", "The query string contains a syntax error.")
	if form, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return nil, nil, malformed
	}
	if r.Method == http.MethodGet {
		return form, body, nil
	}
	posted, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, nil, malformed
	}
	for name, values := range posted {
		form[name] = append(form[name], values...)
	}
	return form, body, nil
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

// maxClientToken is how long a client token may be.
const maxClientToken = 64

// once binds a client token to its request (EC2 API Reference, "Ensuring idempotency").
func once(ctx context.Context, form url.Values, actor *identity.Actor) (context.Context, error) {
	token := form.Get("ClientToken")
	if token == "" {
		return ctx, nil
	}
	if len(token) > maxClientToken || printable(token) != token {
		return nil, refuse("InvalidParameterValue", "ClientToken must be at most %d ASCII characters.", maxClientToken)
	}
	same := url.Values{}
	for key, values := range form {
		if !everywhere[key] || key == "Action" {
			same[key] = values
		}
	}
	sum := sha256.Sum256([]byte(same.Encode()))
	return state.WithOnce(ctx, &state.Once{Scope: "ec2/" + actor.ProjectID.String(), Key: token, Hash: hex.EncodeToString(sum[:])}), nil
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
			return nil, unauthenticated()
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

// together runs several changes as one transaction: all of them happen or none. What it answers is
// what the same request gets that comes again with its idempotency key.
func together[T any](s *Server, c *call, do func(*call, *state.Tx) (T, error)) (T, error) {
	return state.Do(c.ctx, s.State, func(tx *state.Tx) (T, error) {
		inside := *c
		inside.ctx = state.Join(c.ctx, tx)
		return do(&inside, tx)
	})
}

// ownID reads one of EC2's IDs, such as "i-0123456789abcdef0".
func ownID(prefix, s string) (tail string, ok bool) {
	tail, ok = strings.CutPrefix(s, prefix+"-")
	if !ok || len(tail) != 17 || strings.Trim(tail, "0123456789abcdef") != "" {
		return "", false
	}
	return tail, true
}

func idOf(prefix string, id resource.ID) string { return prefix + "-" + id.Tail() }
