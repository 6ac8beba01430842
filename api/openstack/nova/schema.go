package nova

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
)

// A rule judges one value of a request, as decoded by encoding/json with numbers kept, in
// one microversion. path names the value in messages.
type rule func(v version, path string, value any) error

type version = openstack.Version

func v2(minor int) version { return version{Major: 2, Minor: minor} }

// wrong is Nova's message for a value that breaks a rule.
func wrong(path string, value any, format string, args ...any) error {
	text, err := json.Marshal(value)
	if err != nil || len(text) > 200 {
		text = []byte("(long)")
	}
	return fault.Errorf(fault.Invalid, "Invalid input for field/attribute %s. Value: %s. %s", path, text, fmt.Sprintf(format, args...))
}

// A prop is a property that an object may have, in the microversions from first to last.
type prop struct {
	name        string
	rule        rule
	needed      bool
	first, last int // minor versions; 0: no bound
}

func need(name string, r rule) prop { return prop{name: name, rule: r, needed: true} }
func may(name string, r rule) prop  { return prop{name: name, rule: r} }
func since(minor int, p prop) prop  { p.first = minor; return p }
func until(minor int, p prop) prop  { p.last = minor; return p }
func (p *prop) in(v version) bool   { return v.Minor >= p.first && (p.last == 0 || v.Minor <= p.last) }

// object is for a JSON object with these properties and no others.
func object(props ...prop) rule { return shape(false, props) }

// open is object that lets others be.
func open(props ...prop) rule { return shape(true, props) }

func shape(others bool, props []prop) rule {
	return func(v version, path string, value any) error {
		m, ok := value.(map[string]any)
		if !ok {
			return wrong(path, value, "It is not of type 'object'")
		}
		known := 0
		for i := range props {
			p := &props[i]
			if !p.in(v) {
				continue
			}
			one, there := m[p.name]
			if !there {
				if p.needed {
					return wrong(path, value, "'%s' is a required property", p.name)
				}
				continue
			}
			known++
			if err := p.rule(v, p.name, one); err != nil {
				return err
			}
		}
		if others || known == len(m) || v.Major == 0 { // v2.0 lets unknown fields pass
			return nil
		}
		for _, name := range sortedKeys(m) {
			if !slices.ContainsFunc(props, func(p prop) bool { return p.name == name && p.in(v) }) {
				return wrong(path, value, "Additional properties are not allowed ('%s' was unexpected)", name)
			}
		}
		return nil
	}
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func anything(version, string, any) error { return nil }

func null(_ version, path string, value any) error {
	if value != nil {
		return wrong(path, value, "It is not of type 'null'")
	}
	return nil
}

// orNull lets null be as well.
func orNull(r rule) rule {
	return func(v version, path string, value any) error {
		if value == nil {
			return nil
		}
		return r(v, path, value)
	}
}

// either is for a value that obeys one of several rules.
func either(rules ...rule) rule {
	return func(v version, path string, value any) error {
		var first error
		for _, r := range rules {
			err := r(v, path, value)
			if err == nil {
				return nil
			}
			if first == nil {
				first = err
			}
		}
		return first
	}
}

func text(least, most int) rule {
	return func(_ version, path string, value any) error {
		s, ok := value.(string)
		switch n := utf8.RuneCountInString(s); {
		case !ok:
			return wrong(path, value, "It is not of type 'string'")
		case n < least:
			return wrong(path, value, "'%s' is too short", s)
		case most > 0 && n > most:
			return wrong(path, value, "It is too long: at most %d characters", most)
		}
		return nil
	}
}

// pattern is for a text that matches a regular expression.
func pattern(least, most int, expression string) rule {
	re := regexp.MustCompile(expression)
	return func(v version, path string, value any) error {
		if err := text(least, most)(v, path, value); err != nil {
			return err
		}
		if !re.MatchString(value.(string)) {
			return wrong(path, value, "It does not match '%s'", expression)
		}
		return nil
	}
}

// name is for what things are called: printable, and not only spaces.
func name(_ version, path string, value any) error {
	s, ok := value.(string)
	if !ok {
		return wrong(path, value, "It is not of type 'string'")
	}
	n := utf8.RuneCountInString(s)
	if n < 1 || n > 255 || strings.TrimSpace(s) == "" || !printable(s) {
		return wrong(path, value, "It must be of 1 to 255 printable characters, and not only spaces")
	}
	return nil
}

// strictName is name that neither begins nor ends with a space.
func strictName(v version, path string, value any) error {
	if err := name(v, path, value); err != nil {
		return err
	}
	if s := value.(string); strings.TrimSpace(s) != s {
		return wrong(path, value, "It must not begin or end with a space")
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) || r > 0xffff && !unicode.IsPrint(r) }) < 0
}

// number is for an integer, or a text of one, within bounds.
func number(least, most int64) rule {
	return func(_ version, path string, value any) error {
		n, ok := asInt(value)
		switch {
		case !ok:
			return wrong(path, value, "It is not of type 'integer'")
		case n < least:
			return wrong(path, value, "%d is less than the minimum of %d", n, least)
		case n > most:
			return wrong(path, value, "%d is greater than the maximum of %d", n, most)
		}
		return nil
	}
}

const maxInt = math.MaxInt32

func asInt(value any) (int64, bool) {
	var s string
	switch value := value.(type) {
	case json.Number:
		s = value.String()
	case string:
		if s = value; s == "" || strings.HasPrefix(s, "+") {
			return 0, false
		}
	default:
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// boolish are the texts that count as booleans.
var boolish = map[string]bool{"true": true, "True": true, "TRUE": true, "on": true, "On": true, "ON": true, "1": true, "yes": true, "Yes": true, "YES": true,
	"false": false, "False": false, "FALSE": false, "off": false, "Off": false, "OFF": false, "0": false, "no": false, "No": false, "NO": false}

func boolean(_ version, path string, value any) error {
	switch value := value.(type) {
	case bool:
		return nil
	case string:
		if _, ok := boolish[value]; ok {
			return nil
		}
	}
	return wrong(path, value, "It is not of type 'boolean'")
}

func uuid(_ version, path string, value any) error {
	s, _ := value.(string)
	if _, err := resource.ParseID(s); err != nil || len(s) != 36 {
		return wrong(path, value, "It is not a 'uuid'")
	}
	return nil
}

func address(bits int) rule {
	return func(_ version, path string, value any) error {
		s, _ := value.(string)
		a, err := netip.ParseAddr(s)
		if err != nil || bits != 0 && a.BitLen() != bits || a.Zone() != "" {
			return wrong(path, value, "It is not an 'ipv%d'", 4+bits/128*2)
		}
		return nil
	}
}

func oneOf(values ...any) rule {
	return func(_ version, path string, value any) error {
		switch value.(type) {
		case string, bool, nil, json.Number:
			if slices.Contains(values, value) {
				return nil
			}
		}
		return wrong(path, value, "It is not one of %v", values)
	}
}

func list(r rule, least, most int) rule {
	return func(v version, path string, value any) error {
		items, ok := value.([]any)
		switch {
		case !ok:
			return wrong(path, value, "It is not of type 'array'")
		case len(items) < least:
			return wrong(path, value, "It is too short")
		case most > 0 && len(items) > most:
			return wrong(path, value, "It is too long")
		}
		for i, item := range items {
			if err := r(v, fmt.Sprintf("%s/%d", path, i), item); err != nil {
				return err
			}
		}
		return nil
	}
}

// distinct is for a list of texts that are all different.
func distinct(r rule) rule {
	return func(v version, path string, value any) error {
		if err := r(v, path, value); err != nil {
			return err
		}
		seen := map[any]bool{}
		for _, item := range value.([]any) {
			if s, ok := item.(string); ok {
				if seen[s] {
					return wrong(path, value, "It has non-unique elements")
				}
				seen[s] = true
			}
		}
		return nil
	}
}

// pairs is for an object of any keys that match, each with such a value.
func pairs(keys string, r rule) rule {
	re := regexp.MustCompile(keys)
	return func(v version, path string, value any) error {
		m, ok := value.(map[string]any)
		if !ok {
			return wrong(path, value, "It is not of type 'object'")
		}
		for _, k := range sortedKeys(m) {
			if !re.MatchString(k) || !utf8.ValidString(k) {
				return wrong(path, value, "Additional properties are not allowed ('%s' was unexpected)", k)
			}
			if err := r(v, k, m[k]); err != nil {
				return err
			}
		}
		return nil
	}
}

// metadata is what owners may write beside their things.
var metadata = pairs(`^[a-zA-Z0-9-_:. ]{1,255}$`, text(0, 255))

func base64Text(most int) rule {
	return func(v version, path string, value any) error {
		if err := text(0, most)(v, path, value); err != nil {
			return err
		}
		if _, err := decodeBase64(value.(string)); err != nil {
			return wrong(path, "(long)", "It is not a 'base64'")
		}
		return nil
	}
}

func decodeBase64(s string) ([]byte, error) {
	return base64.StdEncoding.DecodeString(strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' {
			return -1
		}
		return r
	}, s))
}

// A body is a decoded JSON object that has passed its rule.
type body map[string]any

// decode reads a request's body as JSON, keeping numbers as they were written.
func decode(r *http.Request) (any, error) {
	d := json.NewDecoder(r.Body)
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return nil, fault.Errorf(fault.Invalid, "Malformed request body")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fault.Errorf(fault.Invalid, "Malformed request body")
	}
	return value, nil
}

// read decodes and judges a request's body.
func read(r *http.Request, rule rule) (body, error) {
	value, err := decode(r)
	if err != nil {
		return nil, err
	}
	if err := rule(versionOf(r), "body", value); err != nil {
		return nil, err
	}
	m, ok := value.(map[string]any)
	if !ok {
		return nil, wrong("body", value, "It is not of type 'object'")
	}
	return m, nil
}

// wrapped is for a body of one object under one name, and reads the object.
func wrapped(r *http.Request, name string, inner rule) (body, error) {
	b, err := read(r, object(need(name, inner)))
	if err != nil {
		return nil, err
	}
	return b.object(name), nil
}

func (b body) has(name string) bool { _, ok := b[name]; return ok }

func (b body) text(name string) string {
	s, _ := b[name].(string)
	return s
}

// pointer is the text, or nil if there is none. null is the empty text.
func (b body) pointer(name string) *string {
	value, ok := b[name]
	if !ok {
		return nil
	}
	s, _ := value.(string)
	return &s
}

func (b body) int(name string, otherwise int) int {
	if n, ok := asInt(b[name]); ok {
		return int(n)
	}
	return otherwise
}

// address is the text of an address in its usual form.
func (b body) address(name string) string {
	a, err := netip.ParseAddr(b.text(name))
	if err != nil {
		return b.text(name)
	}
	return a.String()
}

func (b body) addressPointer(name string) *string {
	if !b.has(name) {
		return nil
	}
	text := b.address(name)
	return &text
}

func (b body) bool(name string) bool {
	switch value := b[name].(type) {
	case bool:
		return value
	case string:
		return boolish[value]
	}
	return false
}

func (b body) object(name string) body {
	m, _ := b[name].(map[string]any)
	return m
}

func (b body) list(name string) []any {
	l, _ := b[name].([]any)
	return l
}

func (b body) texts(name string) []string {
	texts := []string{}
	for _, item := range b.list(name) {
		if s, ok := item.(string); ok {
			texts = append(texts, s)
		}
	}
	return texts
}

func (b body) pairs(name string) map[string]string {
	m := map[string]string{}
	for k, v := range b.object(name) {
		switch v := v.(type) {
		case string:
			m[k] = v
		case json.Number:
			m[k] = v.String()
		}
	}
	return m
}

// id reads a UUID that the rules have let through; zero for anything else.
func (b body) id(name string) resource.ID {
	id, err := resource.ParseID(b.text(name))
	if err != nil {
		return resource.ID{}
	}
	return id
}
