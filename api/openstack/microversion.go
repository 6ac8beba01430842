package openstack

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
)

// A Version is a microversion, e.g. {2, 60}.
type Version struct{ Major, Minor int }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// AtLeast reports whether v is this version or a newer one.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Microversions of one service (API-SIG guideline "Microversion Specification").
type Microversions struct {
	Type     string // the service type in OpenStack-API-Version: "compute"
	Legacy   string // an older header, e.g. "X-OpenStack-Nova-API-Version"; "" for none
	Min, Max Version
}

type versionKey struct{}

// MicroversionOf is what the request negotiated; the service's minimum if it asked for none.
func MicroversionOf(ctx context.Context) Version {
	v, _ := ctx.Value(versionKey{}).(Version)
	return v
}

func (m *Microversions) negotiate(ctx context.Context, w http.ResponseWriter, r *http.Request) (context.Context, error) {
	header := w.Header()
	header.Add("Vary", "OpenStack-API-Version")
	if m.Legacy != "" {
		header.Add("Vary", m.Legacy)
	}
	asked := m.asked(r)
	v := m.Min
	switch {
	case asked == "":
	case asked == "latest":
		v = m.Max
	default:
		var ok bool
		if v, ok = ParseVersion(asked); !ok {
			return nil, fault.Errorf(fault.Invalid, "API Version String %s is of invalid format. Must be of format MajorNum.MinorNum.", asked)
		}
		if !v.AtLeast(m.Min.Major, m.Min.Minor) || v != m.Max && v.AtLeast(m.Max.Major, m.Max.Minor) {
			m.echo(header, v)
			return nil, fault.Errorf(fault.Precondition, "Version %s is not supported by the API. Minimum is %s and maximum is %s.", v, m.Min, m.Max).
				WithCode("microversion")
		}
	}
	m.echo(header, v)
	return context.WithValue(ctx, versionKey{}, v), nil
}

func (m *Microversions) asked(r *http.Request) string {
	for _, value := range r.Header.Values("OpenStack-API-Version") {
		for one := range strings.SplitSeq(value, ",") {
			typ, v, ok := strings.Cut(strings.TrimSpace(one), " ")
			if ok && strings.EqualFold(typ, m.Type) {
				return strings.TrimSpace(v)
			}
		}
	}
	if m.Legacy != "" {
		return r.Header.Get(m.Legacy)
	}
	return ""
}

func (m *Microversions) echo(h http.Header, v Version) {
	h.Set("OpenStack-API-Version", m.Type+" "+v.String())
	if m.Legacy != "" {
		h.Set(m.Legacy, v.String())
	}
}

// ParseVersion reads "2.60".
func ParseVersion(s string) (Version, bool) {
	a, b, ok := strings.Cut(s, ".")
	if !ok || strings.HasPrefix(a, "0") || len(b) > 1 && b[0] == '0' {
		return Version{}, false
	}
	major, err1 := strconv.ParseUint(a, 10, 16)
	minor, err2 := strconv.ParseUint(b, 10, 16)
	return Version{int(major), int(minor)}, err1 == nil && err2 == nil
}
