package ec2

import (
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
)

func TestStateOf(t *testing.T) {
	for _, c := range []struct {
		stage compute.Stage
		task  compute.Task
		want  instanceState
	}{
		{compute.Building, compute.Creating, pending}, {compute.Building, "", pending}, {compute.Running, "", running},
		{compute.Running, compute.SoftRebooting, running}, {compute.Stopped, compute.HardRebooting, stopped},
		{compute.Frozen, "", running}, {compute.Asleep, "", stopped}, {compute.Failed, "", stopped}, {compute.Unsettled, "", running},
		{compute.Running, compute.Stopping, stopping}, {compute.Running, compute.Suspending, stopping},
		{compute.Stopped, compute.Starting, pending}, {compute.Asleep, compute.Resuming, pending},
		{compute.Stopped, compute.Rebuilding, pending}, {compute.Running, compute.Deleting, shuttingDown},
		{compute.Failed, compute.Deleting, shuttingDown}, {compute.Stopped, "", stopped},
	} {
		if got := stateOf(compute.Standing{Stage: c.stage, Task: c.task}); got != c.want {
			t.Errorf("%s, %s: %s, want %s", c.stage, c.task, got.Name, c.want.Name)
		}
	}
}

func TestLike(t *testing.T) {
	for _, c := range []struct {
		pattern, value string
		want           bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "a/b", true}, {"?", "", false}, {"?", "ü", true},
		{"a*c", "abbbc", true}, {"a*c", "abbbd", false}, {"*a*b*", "xxaxxbxx", true}, {"*a*b*", "xxbxxaxx", false},
		{"a[b]", "a[b]", true}, {"10.0.*/16", "10.0.0.0/16", true}, {`\*`, "*", true}, {`\*`, "a", false}, {`a\?`, "a?", true},
		{`a\`, `a\`, true}, {`\\`, `\`, true}, {"A", "a", false}, {"**a", "a", true}, {"a*", "a", true},
	} {
		if got := like(c.pattern, c.value); got != c.want {
			t.Errorf("like(%q, %q) is %v", c.pattern, c.value, got)
		}
	}
	// A pattern of many stars does not take for ever.
	if like(strings.Repeat("*a", 1000), strings.Repeat("a", 999)) {
		t.Error("too few")
	}
}

func TestTagTexts(t *testing.T) {
	tags := map[string]string{"a=b": "c=d", "x/y,z": "1/2,3", "100%25": "50%", "plain": "", "ü": "€"}
	texts := tagTexts(tags)
	for _, text := range texts {
		if strings.ContainsAny(text, ",/") {
			t.Errorf("%q cannot be told by other dialects", text)
		}
	}
	if got := textTags(texts); !maps.Equal(got, tags) {
		t.Errorf("%v, want %v", got, tags)
	}
	if got := textTags([]string{"word", "100%", "k=50%"}); got["word"] != "" || len(got) != 3 || got["k"] != "50%" {
		t.Errorf("%v", got)
	}
}

// Each filter that is known compares something: one that is let pass and never matches would lie.
func TestEveryFilterHasFacts(t *testing.T) {
	b := newBench(t)
	status, answer := b.ask("owner", launchForm(b, "ClientToken", "t"))
	if status != 200 {
		t.Fatal(answer)
	}
	b.cloud.Settle()
	tx := b.cloud.State.Latest()
	var srv *compute.Server
	for srv = range compute.Servers().Peek(tx, "", state.Range{}) {
	}
	i := showServer(tx, srv)
	for what, c := range map[string]struct {
		names map[string]bool
		have  facts
	}{
		"instances": {instanceFilters, i.facts()}, "statuses": {statusFilters, i.facts()},
		"images": {imageFilters, new(imageItem).facts()}, "types": {typeFilters, new(instanceType).facts()},
		"subnets": {subnetFilters, new(subnetItem).facts()},
		"groups":  {groupFilters, groupWithAll().facts()},
	} {
		for name := range c.names {
			if _, ok := c.have[name]; !ok && name != "state-reason-code" {
				t.Errorf("%s: nothing is compared for the filter %s", what, name)
			}
		}
	}
}

func groupWithAll() *securityGroup {
	n := 1
	all := set[permission]{[]permission{{Protocol: "tcp", From: &n, To: &n, Groups: set[groupPair]{[]groupPair{{}}},
		V4: set[rangeV4]{[]rangeV4{{}}}, V6: set[rangeV6]{[]rangeV6{{}}}}}}
	return &securityGroup{Ingress: all, Egress: all}
}

// Every action refuses what nobody knows and takes what stands in its list.
func TestEveryActionKnowsItsParameters(t *testing.T) {
	for name, a := range actions {
		for p := range a.takes {
			given := strings.TrimSuffix(strings.ReplaceAll(p+".", ".N.", ".1."), ".")
			if err := a.check(url.Values{"Action": {name}, given: {"x"}}); err != nil {
				t.Errorf("%s, %s: %v", name, p, err)
			}
		}
		for _, p := range []string{"Colour", "Colour.1", "Filter.0.Name", "Filter.01.Name", "Filter.1", "InstanceId.", ".", "", "Tag.1.Key.2", "DryRun.1"} {
			err := a.check(url.Values{p: {"x"}})
			if problemOf(err).code != "UnknownParameter" {
				t.Errorf("%s, %q: %v", name, p, err)
			}
		}
	}
}

// FuzzParams: whatever a form holds, it is read without a panic, each given value is found where it was put, and lists
// come in the order of their numbers.
func FuzzParams(f *testing.F) {
	for _, seed := range []string{"Filter.1.Name=a&Filter.1.Value.1=b&Filter.1.Value.2=c", "Filter.2.Name=a&Filter.10.Name=b",
		"IpPermissions.1.IpRanges.1.CidrIp=0.0.0.0%2F0", "Tag.1.Key=k&Tag.1.Value=", "a.b.c.d.e.f.g.h.i.j=1", "a=1&a=2", "..=", ".1=x", "a.99999999999=1",
		"a.1=x&a.1.b=y", "Filter.-1.Name=x", "Filter.1e1.Name=x", "%00=%ff"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		form, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		for _, a := range []*action{launching, actions["AuthorizeSecurityGroupIngress"], actions["DescribeInstances"]} {
			_ = a.check(form) // it refuses or not, and does not panic
		}
		root, err := parse(form)
		if err != nil {
			return
		}
		for name, values := range form {
			if !root.has(name) || root.text(name) != values[0] {
				t.Errorf("%q is %q, want %q", name, root.text(name), values[0])
			}
		}
		walk(t, root, 0)
		c := &call{in: root}
		filters, err := c.filters(instanceFilters)
		if err != nil {
			return
		}
		if len(filters) != len(root.list("Filter")) {
			t.Errorf("%d filters of %d", len(filters), len(root.list("Filter")))
		}
		keeps(filters, facts{"image-id": {"ami-1"}}, map[string]string{"a": "b"})
	})
}

// walk looks at every list below a node.
func walk(t *testing.T, p *param, depth int) {
	if depth > maxDepth {
		t.Fatalf("deeper than %d", maxDepth)
	}
	for part, member := range p.parts {
		var numbers []int
		for at := range member.parts {
			if n, err := strconv.Atoi(at); err == nil && isIndex(at) {
				numbers = append(numbers, n)
			}
		}
		slices.Sort(numbers)
		list := member
		if got := (&param{parts: map[string]*param{"x": list}}).list("x"); len(got) != len(numbers) {
			t.Errorf("%q has %d members, want %d", part, len(got), len(numbers))
		} else {
			for i, n := range numbers {
				if got[i] != member.parts[strconv.Itoa(n)] {
					t.Errorf("member %d of %q is not the one with the number %d", i, part, n)
				}
			}
		}
		walk(t, member, depth+1)
	}
}

// FuzzLike holds the matcher against a plain definition of it.
func FuzzLike(f *testing.F) {
	for _, seed := range [][2]string{{"a*b?c", "axxbyc"}, {`\*\?`, "*?"}, {"**", ""}, {`\`, `\`}, {"[a-z]", "b"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, value string) {
		if len(pattern) > 12 || len(value) > 16 {
			return
		}
		if got, want := like(pattern, value), plainLike([]rune(pattern), []rune(value)); got != want {
			t.Errorf("like(%q, %q) is %v", pattern, value, got)
		}
	})
}

func plainLike(p, v []rune) bool {
	switch {
	case len(p) == 0:
		return len(v) == 0
	case p[0] == '*':
		return plainLike(p[1:], v) || len(v) > 0 && plainLike(p, v[1:])
	case len(v) == 0:
		return false
	case p[0] == '?':
		return plainLike(p[1:], v[1:])
	case p[0] == '\\' && len(p) > 1:
		return p[1] == v[0] && plainLike(p[2:], v[1:])
	}
	return p[0] == v[0] && plainLike(p[1:], v[1:])
}
