package neutron

import (
	"encoding/json"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/network"
)

// stamp is how Neutron writes times.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

func isNull(in json.RawMessage) bool { return string(in) == "null" }

// Readers of values. Neutron takes some of them in several spellings.

func readText(name string, in json.RawMessage, most int) (string, error) {
	var s string
	if isNull(in) || json.Unmarshal(in, &s) != nil {
		return "", invalid(name, "'%s' is not a valid string", in)
	}
	if utf8.RuneCountInString(s) > most {
		return "", invalid(name, "'%s' exceeds maximum length of %d", s, most)
	}
	return s, nil
}

func readBool(name string, in json.RawMessage) (bool, error) {
	return parseBool(name, strings.Trim(string(in), `"`))
}

func parseBool(name, s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "t", "yes", "y", "on":
		return true, nil
	case "false", "0", "f", "no", "n", "off":
		return false, nil
	}
	return false, invalid(name, "'%s' cannot be converted to boolean", s)
}

func readInt(name string, in json.RawMessage) (int, error) {
	text := strings.Trim(string(in), `"`)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n > math.MaxInt32 || n < math.MinInt32 {
		return 0, invalid(name, "'%s' is not an integer", text)
	}
	return int(n), nil
}

func readID(name string, in json.RawMessage) (resource.ID, error) {
	var s string
	if json.Unmarshal(in, &s) != nil {
		return resource.ID{}, invalid(name, "'%s' is not a valid UUID", in)
	}
	id, err := resource.ParseID(s)
	if err != nil || id.IsZero() {
		return resource.ID{}, invalid(name, "'%s' is not a valid UUID", s)
	}
	return id, nil
}

func readIDOrNull(name string, in json.RawMessage) (resource.ID, error) {
	if isNull(in) || string(in) == `""` {
		return resource.ID{}, nil
	}
	return readID(name, in)
}

func readAddress(name string, in json.RawMessage) (netip.Addr, error) {
	var s string
	if json.Unmarshal(in, &s) != nil {
		return netip.Addr{}, invalid(name, "'%s' is not a valid IP address", in)
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Addr{}, invalid(name, "'%s' is not a valid IP address", s)
	}
	return a.Unmap(), nil
}

func readAddressOrNull(name string, in json.RawMessage) (netip.Addr, error) {
	if isNull(in) {
		return netip.Addr{}, nil
	}
	return readAddress(name, in)
}

// readPrefix reads a CIDR; a bare address is one of full length if bare is allowed.
func readPrefix(name string, in json.RawMessage, bare bool) (netip.Prefix, error) {
	var s string
	if json.Unmarshal(in, &s) != nil {
		return netip.Prefix{}, invalid(name, "'%s' is not a valid IP subnet", in)
	}
	return parsePrefix(name, s, bare)
}

func parsePrefix(name, s string, bare bool) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); bare && err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, invalid(name, "'%s' is not a valid IP subnet", s)
	}
	return p, nil
}

func readMAC(name string, in json.RawMessage) (string, error) {
	var s string
	if json.Unmarshal(in, &s) != nil {
		return "", invalid(name, "'%s' is not a valid MAC address", in)
	}
	m, err := net.ParseMAC(s)
	if err != nil || len(m) != 6 {
		return "", invalid(name, "'%s' is not a valid MAC address", s)
	}
	return m.String(), nil
}

// readList reads a list of values; null is the empty list.
func readList[T any](name string, in json.RawMessage, one func(name string, in json.RawMessage) (T, error)) ([]T, error) {
	var raw []json.RawMessage
	if json.Unmarshal(in, &raw) != nil {
		return nil, invalid(name, "'%s' is not a list", in)
	}
	list := make([]T, len(raw))
	for i, r := range raw {
		var err error
		if list[i], err = one(name, r); err != nil {
			return nil, err
		}
	}
	return list, nil
}

func readShortText(name string, in json.RawMessage) (string, error) { return readText(name, in, 255) }

// readObject reads an object that has only the keys allowed.
func readObject(name string, in json.RawMessage, allowed ...string) (map[string]json.RawMessage, error) {
	var o map[string]json.RawMessage
	if json.Unmarshal(in, &o) != nil || o == nil {
		return nil, invalid(name, "'%s' is not a dictionary", in)
	}
	for key := range o {
		known := false
		for _, a := range allowed {
			known = known || a == key
		}
		if !known {
			return nil, invalid(name, "Unexpected keys supplied: %s", key)
		}
	}
	return o, nil
}

// readRoute reads {"destination": …, "nexthop": …}.
func readRoute(name string, in json.RawMessage) (network.Route, error) {
	var route network.Route
	o, err := readObject(name, in, "destination", "nexthop")
	if err != nil {
		return route, err
	}
	if len(o) != 2 {
		return route, invalid(name, "Invalid data format for hostroute: '%s'", in)
	}
	if route.Destination, err = readPrefix(name, o["destination"], false); err != nil {
		return route, err
	}
	route.NextHop, err = readAddress(name, o["nexthop"])
	return route, err
}

func routesShape(routes []network.Route) []object {
	list := make([]object, len(routes))
	for i, r := range routes {
		list[i] = object{"destination": r.Destination.String(), "nexthop": r.NextHop.String()}
	}
	return list
}

// readFixed reads {"subnet_id": …, "ip_address": …}, either of which may be missing.
func readFixed(name string, in json.RawMessage) (network.FixedAddress, error) {
	var f network.FixedAddress
	o, err := readObject(name, in, "subnet_id", "ip_address")
	if err != nil {
		return f, err
	}
	if raw, ok := o["subnet_id"]; ok && !isNull(raw) {
		if f.SubnetID, err = readID(name, raw); err != nil {
			return f, err
		}
	}
	if raw, ok := o["ip_address"]; ok && !isNull(raw) {
		if f.Address, err = readAddress(name, raw); err != nil {
			return f, err
		}
	}
	return f, nil
}

func fixedShape(fixed []network.FixedAddress) []object {
	list := make([]object, len(fixed))
	for i, f := range fixed {
		list[i] = object{"subnet_id": f.SubnetID.String(), "ip_address": f.Address.String()}
	}
	return list
}

// addressText spells an address as the core does; what is none stays as it is, and matches nothing.
func addressText(s string) string {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap().String()
	}
	return s
}

// Makers of attributes. at gives the place of the value in the thing.

func textAttr[T any](name string, at func(*T) *string) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		s, err := readText(name, in, 255)
		return func(t *T) error { *at(t) = s; return nil }, err
	}}
}

// nullableText takes null for the empty text.
func nullableText[T any](name string, at func(*T) *string) attribute[T] {
	a := textAttr(name, at)
	parse := a.parse
	a.parse = func(c *call, in json.RawMessage) (func(*T) error, error) {
		if isNull(in) {
			in = json.RawMessage(`""`)
		}
		return parse(c, in)
	}
	return a
}

func boolAttr[T any](name string, at func(*T) *bool) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		b, err := readBool(name, in)
		return func(t *T) error { *at(t) = b; return nil }, err
	}}
}

func intAttr[T any](name string, at func(*T) *int) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		n, err := readInt(name, in)
		return func(t *T) error { *at(t) = n; return nil }, err
	}}
}

func idAttr[T any](name string, at func(*T) *resource.ID) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		id, err := readIDOrNull(name, in)
		return func(t *T) error { *at(t) = id; return nil }, err
	}}
}

func listAttr[T, V any](name string, one func(string, json.RawMessage) (V, error), at func(*T) *[]V) attribute[T] {
	return attribute[T]{name: name, post: true, put: true, parse: func(_ *call, in json.RawMessage) (func(*T) error, error) {
		list, err := readList(name, in, one)
		return func(t *T) error { *at(t) = list; return nil }, err
	}}
}

// create makes an attribute one that only a request to create may set.
func (a attribute[T]) create() attribute[T] { a.put = false; return a }

// must makes an attribute one that a request to create has to set.
func (a attribute[T]) must() attribute[T] { a.required = true; return a }

// named are the attributes that nearly every kind has.
func named[T any](description func(*T) *string) []attribute[T] {
	return []attribute[T]{
		textAttr("name", func(t *T) *string { return &any(t).(resource.Object).GetMeta().Name }),
		nullableText("description", description),
	}
}
