package ec2

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// A param is a node of a request's parameters, which clients write flat: "Filter.1.Value.2=x" is
// the value of the node Filter, 1, Value, 2. The nil param is one that was not given.
type param struct {
	value string
	given bool // it has a value itself, maybe ""
	parts map[string]*param
}

const (
	maxDepth = 8
	maxIndex = 5 // digits of a number in a list
)

// parse reads a form. No parameter may be given twice.
func parse(form url.Values) (*param, error) {
	root := new(param)
	for name, values := range form {
		if len(values) > 1 {
			return nil, refuse("InvalidParameterValue", "The parameter %s was given more than once.", printable(name))
		}
		if strings.Count(name, ".") >= maxDepth {
			return nil, unknownParameter(name)
		}
		p := root
		for part := range strings.SplitSeq(name, ".") {
			if p.parts == nil {
				p.parts = map[string]*param{}
			}
			if p.parts[part] == nil {
				p.parts[part] = new(param)
			}
			p = p.parts[part]
		}
		p.value, p.given = values[0], true
	}
	return root, nil
}

func unknownParameter(name string) error {
	return refuse("UnknownParameter", "The parameter %s is not recognized", printable(name))
}

// at is the node of a dotted name below this one; nil if there is none.
func (p *param) at(name string) *param {
	for part := range strings.SplitSeq(name, ".") {
		if p == nil {
			return nil
		}
		p = p.parts[part]
	}
	return p
}

// text is a parameter's value; "" if it was not given.
func (p *param) text(name string) string {
	if p = p.at(name); p == nil {
		return ""
	}
	return p.value
}

// has reports whether a parameter was given, be it empty.
func (p *param) has(name string) bool {
	p = p.at(name)
	return p != nil && p.given
}

// list gives the members "name.1", "name.2", … in the order of their numbers, of which some may be
// left out.
func (p *param) list(name string) []*param {
	if p = p.at(name); p == nil {
		return nil
	}
	at := map[int]*param{}
	for part, member := range p.parts {
		if isIndex(part) {
			n, err := strconv.Atoi(part)
			if err == nil {
				at[n] = member
			}
		}
	}
	var all []*param
	for _, n := range slices.Sorted(maps.Keys(at)) {
		all = append(all, at[n])
	}
	return all
}

// texts gives the values of a list.
func (p *param) texts(name string) []string {
	var all []string
	for _, member := range p.list(name) {
		all = append(all, member.value)
	}
	return all
}

// int is a number; otherwise if it was not given.
func (p *param) int(name string, otherwise int) (int, error) {
	if !p.has(name) {
		return otherwise, nil
	}
	text := p.text(name)
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. It must be an integer.", printable(text), name)
	}
	return n, nil
}

// bool is false if it was not given.
func (p *param) bool(name string) (bool, error) {
	switch text := strings.ToLower(p.text(name)); text {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	default:
		return false, refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. It must be true or false.", printable(text), name)
	}
}

// must is the value of a parameter that a request cannot do without.
func (p *param) must(name string) (string, error) {
	if v := p.text(name); v != "" {
		return v, nil
	}
	return "", refuse("MissingParameter", "The request must contain the parameter %s", name)
}

func isIndex(s string) bool {
	if s == "" || len(s) > maxIndex || s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// patternOf is a parameter's name with N for each number: "Filter.N.Value.N".
func patternOf(name string) string {
	parts := strings.Split(name, ".")
	for i, part := range parts {
		if isIndex(part) {
			parts[i] = "N"
		}
	}
	return strings.Join(parts, ".")
}

// everywhere are the parameters that every action takes. Those of a signature in the query are SigV4's own.
var everywhere = known("Action Version DryRun X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature")

// check refuses what an action does not take. What AWS takes and we cannot carry out is told apart
// from what nobody knows: nothing that a client asks for is silently left out.
func (a *action) check(form url.Values) error {
	for _, name := range slices.Sorted(maps.Keys(form)) {
		p := patternOf(name)
		if everywhere[p] || a.takes[p] {
			continue
		}
		if only, ok := a.only[p]; ok && strings.EqualFold(form.Get(name), only) {
			continue
		} else if ok {
			return refuse("UnsupportedOperation", "The parameter %s is supported with the value '%s' only.", printable(name), only)
		}
		top, _, _ := strings.Cut(p, ".")
		if a.lacks[p] || a.lacks[top+".*"] {
			return refuse("UnsupportedOperation", "The parameter %s is not supported here.", printable(name))
		}
		return unknownParameter(name)
	}
	return nil
}

// known is a set of names that are written one after the other.
func known(names string) map[string]bool {
	set := map[string]bool{}
	for _, name := range strings.Fields(names) {
		set[name] = true
	}
	return set
}
