package ec2

import (
	"encoding/xml"
	"errors"
	"log/slog"
	"net/http"
	"strings"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/api/wire/sigv4"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A problem is an error in EC2's own words (API Reference, "Error codes for the Amazon EC2 API").
type problem struct {
	status  int
	code    string
	message string
}

func (p *problem) Error() string { return p.message }

func refuse(code, format string, args ...any) error {
	return &problem{http.StatusBadRequest, code, fault.Errorf(fault.Invalid, format, args...).Message}
}

// unauthenticated is the one answer for a key that there is not and for a signature made with another secret:
// EC2 does not tell which keys there are.
func unauthenticated() error {
	return &problem{http.StatusUnauthorized, "AuthFailure", "AWS was not able to validate the provided access credentials"}
}

func signatureProblem(err error) error {
	switch {
	case errors.Is(err, sigv4.ErrMissing):
		return &problem{http.StatusForbidden, "MissingAuthenticationToken", "Request is missing Authentication Token"}
	case errors.Is(err, sigv4.ErrExpired):
		return refuse("RequestExpired", "Request has expired. Timestamp date is too far from the time of the server.")
	case errors.Is(err, sigv4.ErrMalformed):
		return refuse("IncompleteSignature", "The request signature does not conform to AWS standards.")
	case errors.Is(err, sigv4.ErrScope):
		return &problem{http.StatusForbidden, "SignatureDoesNotMatch", "Credential should be scoped to the service 'ec2' and to the day of the request."}
	}
	return unauthenticated()
}

// codes are EC2's words for faults that carry a code of the core.
var codes = map[string]string{
	"address-in-use":           "InvalidIPAddress.InUse",
	"addresses-exhausted":      "InsufficientFreeAddressesInSubnet",
	"default-group-exists":     "InvalidGroup.Reserved",
	"default-group-kept":       "CannotDelete",
	"flavor-not-found":         "InvalidParameterValue",
	"idempotency-mismatch":     "IdempotentParameterMismatch",
	"image-not-found":          "InvalidAMIID.NotFound",
	"image-not-active":         "InvalidAMIID.Unavailable",
	"image-not-usable":         "InvalidAMIID.Unavailable",
	"keypair-invalid":          "InvalidKey.Format",
	"keypair-name-taken":       "InvalidKeyPair.Duplicate",
	"keypair-not-found":        "InvalidKeyPair.NotFound",
	"network-not-found":        "InvalidVpcID.NotFound",
	"no-host":                  "InsufficientInstanceCapacity",
	"rule-exists":              "InvalidPermission.Duplicate",
	"security-group-in-use":    "DependencyViolation",
	"security-group-not-found": "InvalidGroup.NotFound",
	"server-locked":            "OperationNotPermitted",
	"server-not-found":         "InvalidInstanceID.NotFound",
	"server-state":             "IncorrectInstanceState",
	"subnet-not-found":         "InvalidSubnetID.NotFound",
	"zone-not-found":           "InvalidParameterValue",
}

// quotas are its words for the quota that was reached.
var quotas = map[string]string{
	compute.QuotaServers:  "InstanceLimitExceeded",
	compute.QuotaCores:    "VcpuLimitExceeded",
	compute.QuotaMetadata: "TagLimitExceeded",
	"security-group":      "SecurityGroupLimitExceeded",
	"security-group-rule": "RulesPerSecurityGroupLimitExceeded",
	"port":                "NetworkInterfaceLimitExceeded",
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
	if code := quotas[f.Details["quota"]]; f.Kind == fault.OverQuota && code != "" {
		k.code = code
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
	if p.code == "InternalError" {
		if r.Context().Err() != nil {
			return // the client went away
		}
		slog.ErrorContext(r.Context(), "request failed", "request", wire.RequestID(r.Context()), "service", "ec2", "err", err)
	}
	id := requestID(r)
	text, err := xml.Marshal(errorResponse{Code: p.code, Message: p.message, RequestID: id})
	if err != nil {
		slog.ErrorContext(r.Context(), "an error could not be written", "request", wire.RequestID(r.Context()), "service", "ec2", "err", err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	write(w, p.status, id, append([]byte(xml.Header), text...))
}

func requestID(r *http.Request) string {
	return strings.TrimPrefix(wire.RequestID(r.Context()), "req-")
}

// write sends a document. An error of it means that the client is gone.
func write(w http.ResponseWriter, status int, id string, text []byte) {
	w.Header().Set("Content-Type", "text/xml;charset=UTF-8")
	w.Header().Set("X-Amzn-Requestid", id)
	w.WriteHeader(status)
	_, _ = w.Write(text)
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
