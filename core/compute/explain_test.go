package compute_test

import (
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// What a tenant is told of a placement that found no host is the same whatever others have, and however many hosts there are.
func TestExplanationTellsNothingOfOthers(t *testing.T) {
	ask := func(hosts, lost int, others ...string) (told []string) {
		c := cloudtest.New(t, hosts)
		_, err := c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: "huge"}, Ref: "huge", VCPUs: 1, MemoryMiB: 70000, RootGiB: 1})
		c.Must(err)
		for _, h := range c.Hosts[:lost] {
			c.Lose(h)
		}
		here := launchOn(c, compute.Launch{}, c.Hosts[lost])
		for _, flavor := range others {
			_, err = c.Compute.Create(c.OtherCtx, c.Plain(compute.Launch{Flavor: flavor, NoNetwork: true}))
			c.Must(err)
		}
		c.Settle()
		failed := c.Server(c.Launch(compute.Launch{Flavor: "huge"})[0]).Failure
		if !strings.Contains(failed.Details, "lacks") || !strings.Contains(failed.Details, " of ") {
			t.Errorf("operators are told only %q", failed.Details)
		}
		l := c.Plain(compute.Launch{Flavor: "huge"})
		l.Strict = true
		_, refused := c.Compute.Create(c.Ctx, l)
		resize := c.Compute.Reshape(c.Ctx, here, "huge", nil)
		if refused == nil || resize == nil {
			t.Fatal("there is room for it")
		}
		return []string{failed.Message, refused.Error(), resize.Error()}
	}
	alone := ask(4, 1)
	for name, other := range map[string][]string{"what others have": ask(4, 1, "2", "2", "1"), "how many hosts there are": ask(5, 1), "how many are lost": ask(6, 3)} {
		for n, text := range other {
			if text != alone[n] {
				t.Errorf("%s shows:\n%s\n%s", name, alone[n], text)
			}
		}
	}
	for _, text := range alone {
		if !strings.Contains(text, "has the memory") || strings.ContainsAny(text, "0123456789") {
			t.Errorf("the owner is told %q", text)
		}
	}
}

// Nor does a server that waits for a host tell its owner more, though it is the cloud itself that looks for one.
func TestStrandedTellsNothingOfOthers(t *testing.T) {
	k := newKeeper(t, 2)
	id := launchOn(k.Cloud, compute.Launch{Hints: map[string]string{"unkai_restart_elsewhere": "true"}}, k.Hosts[0])
	k.Settle()
	k.Must(k.hosts.SetDisabled(k.Admin, k.Hosts[1].ID, true, ""))
	k.Lose(k.Hosts[0])
	_, err := k.hosts.Vouch(k.Admin, k.Hosts[0].ID)
	k.Must(err)
	k.pass(time.Minute)
	if s := k.Server(id).Stranded; s == nil || strings.ContainsAny(s.Why, "0123456789") || !strings.Contains(s.Why, "takes new servers") {
		t.Errorf("it is said to wait for %+v", s)
	}
	if err := k.Compute.Evacuate(k.Admin, id, "", ""); err == nil || !strings.Contains(err.Error(), "1 of 2") {
		t.Errorf("an operator is told %v", err)
	}
}
