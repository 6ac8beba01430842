package placement

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/api/openstack/openstacktest"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
)

// TestConversations replays testdata. "! launch NAME" makes a server and binds "$NAME" to it, "! settle" lets the hosts
// work, "! lose" cuts the first host off, "! disable" keeps new servers off it, "! well" undoes both. "! ratio N" is the cloud's
// of processors, "! aggregate KEY=VALUE" puts the first host into one with that metadata.
func TestConversations(t *testing.T) {
	openstacktest.Replay(t, func(t *testing.T) openstacktest.Stage {
		c := cloudtest.New(t, 2)
		admin := c.Member(resource.NewID(c.Clock, nil))
		admin.Roles = []string{"admin", "manager", "member", "reader"}
		reader := *c.User
		reader.Roles = []string{"reader"}
		who := openstacktest.Tokens{"owner": c.User, "reader": &reader, "other": c.Member(c.Other), "admin": admin}
		server := httptest.NewServer(wire.Serve(http.StripPrefix("/placement", New(Options{Compute: c.Compute, Auth: who}))))
		t.Cleanup(server.Close)
		bound := map[string]string{"$base": server.URL, "$project": c.Project.Hex(), "$user": c.User.UserID.Hex(), "$admin": admin.UserID.Hex(),
			"$host": c.Hosts[0].ID.String(), "$beside": c.Hosts[1].ID.String(), "$name": c.Hosts[0].Name}
		return openstacktest.Stage{URL: server.URL + "/placement", Version: "placement 1.", Bound: bound,
			Command: func(words string) { command(c, bound, words) }}
	})
}

func command(c *cloudtest.Cloud, bound map[string]string, words string) {
	hosts := &host.Service{State: c.State}
	verb, rest, _ := strings.Cut(words, " ")
	switch verb {
	case "launch":
		bound["$"+rest] = c.Launch(compute.Launch{Name: rest})[0].String()
	case "extra":
		key, value, _ := strings.Cut(rest, "=")
		_, err := c.Compute.SetExtra(c.Admin, "42", map[string]string{key: value})
		c.Must(err)
	case "ratio":
		ratio, err := strconv.ParseFloat(rest, 64)
		c.Must(err)
		_, err = hosts.SetKeeping(c.Admin, func(k *host.Keeping) { k.CPURatio = ratio })
		c.Must(err)
	case "aggregate":
		key, value, _ := strings.Cut(rest, "=")
		a, err := c.Compute.CreateAggregate(c.Admin, key, "")
		c.Must(err)
		_, err = c.Compute.AddHost(c.Admin, a.Number, c.Hosts[0].Name)
		c.Must(err)
		_, err = c.Compute.SetAggregateMetadata(c.Admin, a.Number, map[string]*string{key: &value}, nil)
		c.Must(err)
	case "settle":
		c.Settle()
	case "lose":
		c.Lose(c.Hosts[0])
	case "disable":
		c.Must(hosts.SetDisabled(c.Admin, c.Hosts[0].ID, true, ""))
	case "well":
		c.Must(hosts.SetDisabled(c.Admin, c.Hosts[0].ID, false, ""))
		c.Return(c.Hosts[0])
	default:
		c.T.Fatalf("no command %q", words)
	}
}

// FuzzQuery reads what lists and candidates may be asked. What is taken must be what the core can count with.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{"resources=VCPU:2,MEMORY_MB:1024&required=HW_CPU_X86_AVX2,!CUSTOM_A", "resources=VCPU:1&required=in:A,B&required=!C",
		"resources=VCPU:1&member_of=in:11111111-2222-4333-8444-555555555555,21111111222243338444555555555555&member_of=!31111111-2222-4333-8444-555555555555",
		"resources1=VCPU:1&required1=A&resources2=DISK_GB:99999999999999999999&group_policy=none", "resources_A=VCPU:1&required_B=X&same_subtree=_A,_B",
		"resources=:1", "resources=VCPU:1:2", "resources=VCPU:-1", "resources=", "required=,", "required=!!A", "required=in:", "member_of=in:", "member_of=!", "limit=0",
		"resources=VCPU:1&root_required=in:A", "resources=VCPU:1&root_required=A,!A", "in_tree=x&resources=VCPU:1", "resources=VCPU:1&limit=99999999999999999999"} {
		for _, minor := range []int{10, 25, newest} {
			f.Add(seed, minor)
		}
	}
	f.Fuzz(func(t *testing.T, text string, minor int) {
		values, err := url.ParseQuery(text)
		if err != nil || minor < 0 || minor > newest {
			return
		}
		q, err := readCandidates(values, minor)
		if err != nil {
			return
		}
		asked := false
		for _, g := range append(q.groups, q.root) {
			asked = asked || len(g.Amounts) > 0
			for class, n := range g.Amounts {
				if class == "" || n < 1 || n > tooMuch {
					t.Errorf("%q asks for %d of %q", text, n, class)
				}
			}
			for _, some := range g.Required {
				if len(some) == 0 {
					t.Errorf("%q requires one of none", text)
				}
			}
			for _, some := range g.MemberOf {
				if len(some) == 0 {
					t.Errorf("%q asks for an aggregate of none", text)
				}
			}
		}
		if !asked || q.limit < 0 {
			t.Errorf("%q asks for nothing, at most %d times", text, q.limit)
		}
	})
}
