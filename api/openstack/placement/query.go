package placement

import (
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A group is what is asked of one provider: by the parameters without a suffix, or with the same one.
type group struct {
	compute.Need
	suffix string
}

// readResources reads "VCPU:2,MEMORY_MB:1024".
func readResources(text string) (map[string]int64, error) {
	amounts := map[string]int64{}
	for one := range strings.SplitSeq(text, ",") {
		class, amount, ok := strings.Cut(one, ":")
		if !ok || class == "" || strings.Contains(amount, ":") {
			return nil, fault.Errorf(fault.Invalid, "Badly formed resources parameter. Expected resources query string parameter in form: ?resources=VCPU:2,MEMORY_MB:1024. Got: %.60q.", one)
		}
		n, err := strconv.ParseUint(strings.TrimSpace(amount), 10, 64)
		if err != nil && !isTooLarge(err) {
			return nil, fault.Errorf(fault.Invalid, "Requested resource %.60s expected positive integer amount. Got: %.60q.", class, amount)
		}
		if n < 1 {
			return nil, fault.Errorf(fault.Invalid, "Requested resource %.60s requires amount >= 1. Got: %d.", class, n)
		}
		amounts[class] = int64(min(n, tooMuch))
	}
	return amounts, nil
}

// tooMuch is more than anything has, and still can be added up.
const tooMuch = 1 << 48

func isTooLarge(err error) bool {
	n, ok := err.(*strconv.NumError)
	return ok && n.Err == strconv.ErrRange
}

// readTraits reads "A,!B" and, if there is such a thing yet, "in:A,B": of each list one is required.
func readTraits(text string, minor int) (required [][]string, forbidden []string, err error) {
	list, any := strings.CutPrefix(text, "in:")
	if any && minor < 39 {
		return nil, nil, bad("The format 'in:HW_CPU_X86_VMX,CUSTOM_MAGIC' only supported since microversion 1.39. Got: %.60s", text)
	}
	var names []string
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		name := strings.TrimLeft(one, "!")
		switch {
		case name == "":
			return nil, nil, bad("Expected 'required' parameter value of the form: HW_CPU_X86_VMX,!CUSTOM_MAGIC. Got an empty trait in: %.60q", text)
		case name == one:
			names = append(names, name)
		case any || minor < 22:
			return nil, nil, bad("Forbidden traits are not supported there. Got: %.60s", text)
		default:
			forbidden = append(forbidden, name)
		}
	}
	if any {
		return [][]string{names}, nil, nil
	}
	for _, name := range names {
		required = append(required, []string{name})
	}
	return required, forbidden, nil
}

// readMemberOf reads "A", "in:A,B", "!A" or "!in:A,B".
func readMemberOf(text string, minor int) (ids []resource.ID, forbidden bool, err error) {
	list, forbidden := strings.CutPrefix(text, "!")
	list, many := strings.CutPrefix(list, "in:")
	if strings.Contains(list, ",") && !many {
		return nil, false, bad("Multiple values for 'member_of' must be prefixed with the 'in:' or '!in:' keyword using the valid microversion. Got: %.100s", text)
	}
	if forbidden && minor < 32 {
		return nil, false, bad("Forbidden member_of parameters are not supported in the specified microversion")
	}
	for one := range strings.SplitSeq(list, ",") {
		id, err := resource.ParseID(one)
		if err != nil {
			return nil, false, bad("Expected 'member_of' parameter to contain valid UUID(s). Got: %.60q", one)
		}
		ids = append(ids, id)
	}
	return ids, forbidden, nil
}

// readGroup reads the parameters that end with a suffix.
func readGroup(values url.Values, suffix string, minor int) (group, error) {
	g := group{suffix: suffix}
	var err error
	if values.Has("resources" + suffix) {
		if g.Amounts, err = readResources(last(values, "resources"+suffix)); err != nil {
			return g, err
		}
	}
	required := values["required"+suffix]
	if minor < 39 && len(required) > 1 {
		required = required[len(required)-1:]
	}
	for _, text := range required {
		some, forbidden, err := readTraits(text, minor)
		if err != nil {
			return g, err
		}
		g.Required, g.Forbidden = append(g.Required, some...), append(g.Forbidden, forbidden...)
	}
	for _, any := range g.Required {
		if !slices.ContainsFunc(any, func(t string) bool { return !slices.Contains(g.Forbidden, t) }) {
			return g, bad("Conflicting required and forbidden traits found in the following traits keys: required%s: (%.100s)", suffix, strings.Join(any, ", "))
		}
	}
	if err := g.readPlace(values, minor); err != nil {
		return g, err
	}
	return g, nil
}

// readPlace reads in which aggregates, and in which tree, the group's provider is to be.
func (g *group) readPlace(values url.Values, minor int) error {
	members := values["member_of"+g.suffix]
	if minor < 24 && len(members) > 1 {
		return bad("Multiple member_of%s parameters are not supported", g.suffix)
	}
	for _, text := range members {
		ids, forbidden, err := readMemberOf(text, minor)
		switch {
		case err != nil:
			return err
		case forbidden:
			g.NotMemberOf = append(g.NotMemberOf, ids...)
		default:
			g.MemberOf = append(g.MemberOf, ids)
		}
	}
	if name := "in_tree" + g.suffix; values.Has(name) {
		// A host is the root of its tree, and the only provider in it.
		id, err := resource.ParseID(strings.TrimSpace(last(values, name)))
		if err != nil || id.IsZero() {
			return bad("Expected 'in_tree' parameter to be a format of uuid. Got: %.60q", last(values, name))
		}
		g.ID = id
	}
	return nil
}

// What the suffixes of groups may be: numbers from 1.25 on, and words from 1.33 on.
var (
	numbered = regexp.MustCompile(`^(resources|required|member_of|in_tree)([1-9][0-9]*)?$`)
	suffixed = regexp.MustCompile(`^(resources|required|member_of|in_tree)([a-zA-Z0-9_-]{1,64})?$`)
	plain    = regexp.MustCompile(`^(resources|required|member_of|in_tree)()$`)
)

// groupOf tells which group a parameter belongs to; false if it belongs to none, or is not there yet.
func groupOf(name string, minor int) (suffix string, ok bool) {
	pattern := plain
	switch {
	case minor >= 33:
		pattern = suffixed
	case minor >= 25:
		pattern = numbered
	}
	m := pattern.FindStringSubmatch(name)
	if m == nil || minor < groupParameters[m[1]] {
		return "", false
	}
	return m[2], true
}

// groupParameters are by the microversion that brought them to candidates.
var groupParameters = map[string]int{"resources": 10, "required": 17, "member_of": 21, "in_tree": 31}

// wideParameters are about all groups together.
var wideParameters = map[string]int{"limit": 16, "group_policy": 25, "root_required": 35, "same_subtree": 36}

// A candidateQuery asks where a server could be put.
type candidateQuery struct {
	groups []group // in the order of their suffixes
	root   group   // what is asked of the tree's root, which is the host itself
	limit  int     // 0 for none
	apart  bool    // the groups with suffixes must have a provider each
}

func readCandidates(values url.Values, minor int) (candidateQuery, error) {
	var q candidateQuery
	suffixes := map[string]bool{}
	for name := range values {
		if suffix, ok := groupOf(name, minor); ok {
			suffixes[suffix] = true
		}
	}
	for suffix := range suffixes {
		g, err := readGroup(values, suffix, minor)
		if err != nil {
			return q, err
		}
		q.groups = append(q.groups, g)
	}
	slices.SortFunc(q.groups, func(a, b group) int { return strings.Compare(a.suffix, b.suffix) })
	if err := q.readWide(values); err != nil {
		return q, err
	}
	return q, q.check(values)
}

// readWide reads what is about all groups.
func (q *candidateQuery) readWide(values url.Values) error {
	if values.Has("limit") {
		n, err := strconv.ParseUint(last(values, "limit"), 10, 64)
		if err != nil && !isTooLarge(err) || n < 1 {
			return bad("Failed validating 'limit': it must be an integer of at least 1, and not %.60q", last(values, "limit"))
		}
		q.limit = int(min(n, 1<<30))
	}
	if values.Has("group_policy") {
		switch last(values, "group_policy") {
		case "isolate":
			q.apart = true
		case "none":
		default:
			return bad("'group_policy' must be none or isolate")
		}
	}
	if roots := values["root_required"]; len(roots) > 1 {
		return fault.Errorf(fault.Invalid, "Query parameter 'root_required' may be specified only once.").WithCode("query-twice")
	} else if len(roots) == 1 {
		var err error
		// 38: there are no lists of which one will do, in any microversion.
		if q.root, err = readGroup(url.Values{"required": roots}, "", 38); err != nil {
			return err
		}
	}
	return nil
}

// check holds the groups against each other.
func (q *candidateQuery) check(values url.Values) error {
	subtree := map[string]bool{}
	for _, text := range values["same_subtree"] {
		for suffix := range strings.SplitSeq(text, ",") {
			suffix = strings.TrimSpace(suffix)
			if suffix == "" || !slices.ContainsFunc(q.groups, func(g group) bool { return g.suffix == suffix }) {
				return bad("Real suffixes should be specified in `same_subtree`: %.60q is that of no group", suffix)
			}
			subtree[suffix] = true
		}
	}
	asking, granular := 0, 0
	for _, g := range q.groups {
		switch {
		case g.Amounts == nil && !subtree[g.suffix]:
			return bad("All request groups must specify resources: group %.64q does not, and is not in `same_subtree`.", g.suffix)
		case g.Amounts == nil:
			continue
		case g.suffix != "":
			granular++
		}
		asking++
	}
	if asking == 0 {
		return fault.Errorf(fault.Invalid, "There must be at least one resources or resources[$S] parameter.").WithCode("query-missing")
	}
	if granular > 1 && !values.Has("group_policy") {
		return bad("The \"group_policy\" parameter is required when specifying more than one \"resources{N}\" parameter.")
	}
	// Groups that must be apart need a provider each, and a host is only one.
	q.apart = q.apart && granular > 1
	return nil
}
