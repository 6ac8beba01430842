package ec2

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// A filter is one "Filter.N": of things it keeps those that have one of the values.
type filter struct {
	name   string
	values []string
}

// Bounds of one request (EC2 User Guide, "Filtering the response").
const (
	maxFilters      = 50
	maxFilterValues = 200
)

// filters reads the filters, of which only the known ones and those about tags may be used.
func (c *call) filters(names map[string]bool) ([]filter, error) {
	given := c.in.list("Filter")
	if len(given) > maxFilters {
		return nil, refuse("FilterLimitExceeded", "A request can have %d filters at most.", maxFilters)
	}
	var all []filter
	for _, p := range given {
		f := filter{p.text("Name"), p.texts("Value")}
		switch {
		case !names[f.name] && !strings.HasPrefix(f.name, "tag:") && f.name != "tag-key":
			return nil, refuse("InvalidParameterValue", "The filter '%s' is invalid", printable(f.name))
		case len(f.values) == 0:
			return nil, refuse("InvalidParameterValue", "The filter '%s' has no values", printable(f.name))
		case len(f.values) > maxFilterValues:
			return nil, refuse("FilterLimitExceeded", "A filter can have %d values at most.", maxFilterValues)
		}
		all = append(all, f)
	}
	return all, nil
}

// matches reports whether one of a thing's values is one of the filter's.
func (f *filter) matches(values ...string) bool {
	return slices.ContainsFunc(f.values, func(pattern string) bool {
		return slices.ContainsFunc(values, func(v string) bool { return like(pattern, v) })
	})
}

// plain gives the filter's values if none of them has wildcards.
func (f *filter) plain() ([]string, bool) {
	return f.values, !slices.ContainsFunc(f.values, func(v string) bool { return strings.ContainsAny(v, `*?\`) })
}

// like compares a value with a pattern in which * is any text, ? any character, and \ takes the
// next character as it is.
func like(pattern, value string) bool {
	p, v := []rune(pattern), []rune(value)
	star, mark := -1, 0 // where the last * stands, and what of the value it covers
	i, j := 0, 0
	for j < len(v) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
			continue
		case i < len(p) && p[i] == '\\' && i+1 < len(p) && p[i+1] == v[j]:
			i, j = i+2, j+1
			continue
		case i < len(p) && (p[i] == '?' || p[i] == v[j] && (p[i] != '\\' || i+1 == len(p))):
			i, j = i+1, j+1
			continue
		case star < 0:
			return false
		}
		mark++
		i, j = star+1, mark
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// facts are what filters compare of a thing, by their names.
type facts map[string][]string

func truth(b bool) []string { return []string{strconv.FormatBool(b)} }

// keeps reports whether a thing with these facts and tags passes every filter.
func keeps(filters []filter, have facts, tags map[string]string) bool {
	for _, f := range filters {
		if key, ok := strings.CutPrefix(f.name, "tag:"); ok {
			if v, tagged := tags[key]; !tagged || !f.matches(v) {
				return false
			}
			continue
		}
		if f.name == "tag-key" {
			if !f.matches(keysOf(tags)...) {
				return false
			}
			continue
		}
		if !f.matches(have[f.name]...) {
			return false
		}
	}
	return true
}

// wanted reports whether a request that names some things means this one; one that names none means all.
func wanted(named []string, name string) bool {
	return len(named) == 0 || slices.Contains(named, name)
}

// limit reads MaxResults; 0 for all.
func (c *call) limit(least, most int) (int, error) {
	n, err := c.in.int("MaxResults", 0)
	if err == nil && c.in.has("MaxResults") && (n < least || n > most) {
		return 0, refuse("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between %d and %d.", n, least, most)
	}
	return n, err
}

func badToken(token string) error {
	return refuse("InvalidNextToken", "The token '%s' is invalid", printable(token))
}

// page cuts a list to MaxResults, from where NextToken says. next is "" on the last page.
func page[T any](c *call, items []T, least, most int) (part []T, next string, err error) {
	limit, err := c.limit(least, most)
	if err != nil {
		return nil, "", err
	}
	from := 0
	if token := c.in.text("NextToken"); token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(raw) != 8 {
			return nil, "", badToken(token)
		}
		from = int(min(binary.BigEndian.Uint64(raw), uint64(len(items))))
	}
	items = items[from:]
	if limit > 0 && len(items) > limit {
		return items[:limit], base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(from+limit))), nil
	}
	return items, "", nil
}

// set is how EC2 writes a list: the element is there also when nothing is in it.
type set[T any] struct {
	Items []T `xml:"item"`
}
