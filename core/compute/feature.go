package compute

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/host"
)

// What a flavor's extra specifications ask of hosts in Placement's words: "trait:NAME" is required or forbidden,
// "resources:CLASS" is an amount of a custom resource class.
const (
	traitKey    = "trait:"
	resourceKey = "resources:"
)

// groupKey is a demand of one of several groups, which could lie on different parts of a host.
var groupKey = regexp.MustCompile(`^(resources|trait)[a-zA-Z0-9_-]{1,64}:`)

// checkExtra refuses what would look like a demand and be none.
func checkExtra(key, value string) error {
	if groupKey.MatchString(key) {
		return fault.InvalidField("extra_specs", "cannot hold %.80s: a host is one provider of resources here, so that there are no groups", key)
	}
	if name, ok := strings.CutPrefix(key, traitKey); ok {
		if name == "" || value != "required" && value != "forbidden" {
			return fault.InvalidField("extra_specs", "must say required or forbidden of a trait, and %.80s does not", key)
		}
	}
	class, ok := strings.CutPrefix(key, resourceKey)
	if !ok {
		return nil
	}
	switch class {
	case "":
		return fault.InvalidField("extra_specs", "must name the resource class in %s", key)
	case host.ClassVCPU, host.ClassMemory, host.ClassDisk:
		return fault.InvalidField("extra_specs", "cannot hold %s: of it a server takes what the flavor gives it, no more and no less", key)
	}
	if _, ok := amountOf(value); !ok {
		return fault.InvalidField("extra_specs", "must have an integer from 0 to 2147483647 for %.80s", key)
	}
	return nil
}

func amountOf(value string) (int64, bool) {
	n, err := strconv.ParseUint(value, 10, 31)
	return int64(n), err == nil
}

// traits are what the shape asks of a host in words.
func (s *Shape) traits() (required, forbidden []string) {
	for key, value := range s.Extra {
		name, ok := strings.CutPrefix(key, traitKey)
		switch {
		case ok && value == "required":
			required = append(required, name)
		case ok && value == "forbidden":
			forbidden = append(forbidden, name)
		}
	}
	return required, forbidden
}

// claims are what the shape takes of a host besides its load, by resource class; nil if nothing.
func (s *Shape) claims() map[string]int64 {
	var claims map[string]int64
	for key, value := range s.Extra {
		class, ok := strings.CutPrefix(key, resourceKey)
		if !ok || class == host.ClassVCPU || class == host.ClassMemory || class == host.ClassDisk {
			continue // of an older release, which did not refuse the latter
		}
		if n, ok := amountOf(value); ok && n > 0 {
			if claims == nil {
				claims = map[string]int64{}
			}
			claims[class] = n
		}
	}
	return claims
}

// claims are what the server takes in all: like taken, the larger of what it has and what it may come to have, or have again.
func (s *Server) claims() map[string]int64 {
	claims := map[string]int64{}
	hold(claims, s.Shape.claims())
	if s.Before != nil {
		hold(claims, s.Before.Shape.claims())
	}
	if s.Move != nil {
		hold(claims, s.Move.Was.claims())
	}
	return claims
}

// claimsOn are what it takes of one of its hosts: each offers what the shape asks for that the server has there, or would have.
func (s *Server) claimsOn(h resource.ID) map[string]int64 {
	claims := map[string]int64{}
	if s.Move == nil || h != s.HostID {
		if h == s.HostID || s.Move != nil {
			hold(claims, s.Shape.claims())
		}
	} else {
		hold(claims, s.Move.Was.claims())
	}
	if s.Before != nil && (s.Before.HostID == h || s.Before.HostID.IsZero()) {
		hold(claims, s.Before.Shape.claims())
	}
	return claims
}

func hold(claims, more map[string]int64) {
	for class, n := range more {
		claims[class] = max(claims[class], n)
	}
}

// claimShares are what a server that has a host adds to the tally of claims: for its host, for one on which it holds room beside
// that, for its project, and for its owner there.
func claimShares(s *Server) []state.Share {
	if s.HostID.IsZero() {
		return nil
	}
	var shares []state.Share
	for _, h := range s.Hosts() {
		claims := s.claimsOn(h)
		for _, class := range slices.Sorted(maps.Keys(claims)) {
			shares = append(shares, state.Share{Key: hostClaim(h, class), Amounts: state.Amounts{claims[class]}})
		}
	}
	claims := s.claims()
	for _, class := range slices.Sorted(maps.Keys(claims)) {
		amounts := state.Amounts{claims[class]}
		shares = append(shares, state.Share{Key: projectClaim(s.ProjectID, class), Amounts: amounts},
			state.Share{Key: userClaim(s.ProjectID, s.UserID, class), Amounts: amounts})
	}
	return shares
}

func hostClaim(h resource.ID, class string) state.Key    { return state.KeyOf("host", h, class) }
func projectClaim(p resource.ID, class string) state.Key { return state.KeyOf("project", p, class) }
func userClaim(p, u resource.ID, class string) state.Key { return state.KeyOf("user", p, u, class) }

// claimed is what a host's servers take of a class.
func claimed(tx *state.Tx, h resource.ID, class string) int64 {
	_, sums := servers.Sum(tx, "claims", hostClaim(h, class))
	return sums[0]
}

func (p *placing) hasRequired(h *host.Host) bool {
	return !slices.ContainsFunc(p.required, func(t string) bool { return !h.HasTrait(t) })
}

func (p *placing) hasForbidden(h *host.Host) bool {
	return slices.ContainsFunc(p.forbidden, h.HasTrait)
}

// offers asks whether a host has an inventory, of which the portion can be had, of everything that is claimed.
func (p *placing) offers(h *host.Host) bool {
	var had map[string]int64
	if p.stays != nil {
		had = p.stays.claims()
	}
	for class, n := range p.claims {
		if p.stays != nil && n <= had[class] {
			continue
		}
		if v, ok := h.Offers[class]; !ok || !v.Fits(claimed(p.tx, h.ID, class)-had[class], n) {
			return false
		}
	}
	return true
}
