package ec2

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// list reads "Name.1", "Name.2", …, in order.
func (c *call) list(name string) []string {
	var values []string
	for n := 1; ; n++ {
		v, ok := c.form[name+"."+strconv.Itoa(n)]
		if !ok {
			return values
		}
		values = append(values, v[0])
	}
}

// pairs reads "Name.1.Key" and "Name.1.Value", ….
func (c *call) pairs(name, key, value string) [][2]string {
	var all [][2]string
	for n := 1; ; n++ {
		at := name + "." + strconv.Itoa(n) + "."
		if !c.form.Has(at + key) {
			return all
		}
		all = append(all, [2]string{c.form.Get(at + key), c.form.Get(at + value)})
	}
}

func (c *call) int(name string, otherwise int) (int, error) {
	text := c.form.Get(name)
	if text == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, refuse("InvalidParameterValue", "Value (%s) for parameter %s is invalid. It must be an integer.", printable(text), name)
	}
	return n, nil
}

// A filter is one "Filter.N".
type filter struct {
	name   string
	values []string
}

// filters reads the filters, of which only the known ones may be used.
func (c *call) filters(known map[string]bool) ([]filter, error) {
	var all []filter
	for n := 1; ; n++ {
		at := fmt.Sprintf("Filter.%d.", n)
		if !c.form.Has(at + "Name") {
			return all, nil
		}
		f := filter{c.form.Get(at + "Name"), c.list(at + "Value")}
		if !known[f.name] && !strings.HasPrefix(f.name, "tag:") {
			return nil, refuse("InvalidParameterValue", "The filter '%s' is invalid", printable(f.name))
		}
		all = append(all, f)
	}
}

// matches reports whether one of the things's values is one of the filter's, whose values may have
// wildcards (* and ?).
func (f *filter) matches(values ...string) bool {
	for _, pattern := range f.values {
		for _, v := range values {
			if ok, err := path.Match(strings.ReplaceAll(pattern, "[", "\\["), strings.ReplaceAll(v, "/", "\x00")); err == nil && ok ||
				pattern == v {
				return true
			}
		}
	}
	return false
}

// A fact gives what a filter compares of a thing.
type facts map[string][]string

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
			if !slices.ContainsFunc(mapKeys(tags), func(k string) bool { return f.matches(k) }) {
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

func mapKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func known(names ...string) map[string]bool {
	m := map[string]bool{"tag-key": true}
	for _, n := range names {
		m[n] = true
	}
	return m
}

// page cuts a list to MaxResults, from where NextToken says. next is "" on the last page.
func page[T any](c *call, items []T, least, most int) (part []T, next string, err error) {
	limit, err := c.int("MaxResults", 0)
	if err != nil {
		return nil, "", err
	}
	if limit != 0 && (limit < least || limit > most) {
		return nil, "", refuse("InvalidParameterValue", "Value ( %d ) for parameter maxResults is invalid. Expecting a value between %d and %d.", limit, least, most)
	}
	from := 0
	if token := c.form.Get("NextToken"); token != "" {
		raw, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil || len(raw) != 8 {
			return nil, "", refuse("InvalidNextToken", "The token '%s' is invalid", printable(token))
		}
		from = int(min(binary.BigEndian.Uint64(raw), uint64(len(items))))
	}
	items = items[from:]
	if limit > 0 && len(items) > limit {
		return items[:limit], base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, uint64(from+limit))), nil
	}
	return items, "", nil
}

// tagSet is how tags are shown.
type tagSet struct {
	Items []tag `xml:"item"`
}

type tag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func tagsOf(tags map[string]string) *tagSet {
	if len(tags) == 0 {
		return nil
	}
	set := new(tagSet)
	for _, k := range mapKeys(tags) {
		set.Items = append(set.Items, tag{k, tags[k]})
	}
	return set
}

// textTags reads tags that are kept as "key=value".
func textTags(texts []string) map[string]string {
	tags := map[string]string{}
	for _, t := range texts {
		key, value, _ := strings.Cut(t, "=")
		tags[key] = value
	}
	return tags
}

// specifications reads "TagSpecification.N" for one type of resource.
func (c *call) specifications(kind string) map[string]string {
	tags := map[string]string{}
	for n := 1; ; n++ {
		at := fmt.Sprintf("TagSpecification.%d.", n)
		if !c.form.Has(at + "ResourceType") {
			return tags
		}
		if c.form.Get(at+"ResourceType") == kind {
			for _, p := range c.pairs(at+"Tag", "Key", "Value") {
				tags[p[0]] = p[1]
			}
		}
	}
}
