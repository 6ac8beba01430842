package compute_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
)

// told is what the owner of a server can read of where it was put: his own operation, without what only operators see, and the error of the server.
func told(c *cloudtest.Cloud, id resource.ID) string {
	c.T.Helper()
	op := lastOperation(c, id)
	if op.Why == nil {
		c.T.Fatal("nothing explains it")
	}
	text := fmt.Sprint(op.Message, op.Why.Asked, op.Why.Alone, op.Why.Chosen != "")
	if f := c.Server(id).Failure; f != nil {
		text += f.Message
	}
	return text
}

// What a tenant is told of a placement is the same whatever others have, however many hosts there are, and whichever are lost or disabled:
// where none was found, and where one was.
func TestExplanationTellsNothingOfOthers(t *testing.T) {
	ask := func(hosts, lost int, others ...string) (shown []string) {
		c := cloudtest.New(t, hosts)
		_, err := c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: "huge"}, Ref: "huge", VCPUs: 1, MemoryMiB: 70000, RootGiB: 1})
		c.Must(err)
		_, err = c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: "full"}, Ref: "full", VCPUs: 1, MemoryMiB: 65000, RootGiB: 1})
		c.Must(err)
		c.Must(c.Compute.SetQuota(c.Admin, c.Other, resource.ID{}, map[string]int{compute.QuotaMemory: -1}, true))
		for _, h := range c.Hosts[:lost] {
			c.Lose(h)
		}
		here := launchOn(c, compute.Launch{}, c.Hosts[lost])
		for _, flavor := range others {
			_, err = c.Compute.Create(c.OtherCtx, c.Plain(compute.Launch{Flavor: flavor, NoNetwork: true}))
			c.Must(err)
		}
		c.Settle()
		failed := c.Launch(compute.Launch{Flavor: "huge"})[0]
		if f := c.Server(failed).Failure; !strings.Contains(f.Details, " of ") {
			t.Errorf("operators are told only %q", f.Details)
		}
		l := c.Plain(compute.Launch{Flavor: "huge"})
		l.Strict = true
		_, refused := c.Compute.Create(c.Ctx, l)
		resize := c.Compute.Reshape(c.Ctx, here, "huge", nil)
		if refused == nil || resize == nil {
			t.Fatal("there is room for it")
		}
		nowhere := c.Launch(compute.Launch{Zone: "nova", Apart: nil, Beside: []resource.ID{here}, Flavor: "huge"})[0]
		good := c.Launch(compute.Launch{})[0]
		if c.Server(good).Failure != nil {
			t.Fatal("there is no room for it")
		}
		return []string{told(c, failed), refused.Error(), resize.Error(), told(c, nowhere), told(c, good)}
	}
	alone := ask(4, 0)
	for name, other := range map[string][]string{"what others have": ask(4, 0, "2", "2", "1"), "how many hosts there are": ask(5, 0), "how many are lost": ask(6, 3), "one that is lost": ask(4, 1),
		"what fills a host": ask(4, 0, "full"), "what fills all but one": ask(4, 0, "full", "full", "full"), "both": ask(4, 1, "full")} {
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

// What is the owner's own doing is named, and only if it ends the search whatever others have.
func TestExplanationNamesWhatIsTheOwners(t *testing.T) {
	ask := func(lost bool, fill int) string {
		c := cloudtest.New(t, 2)
		_, err := c.Compute.CreateFlavor(c.Admin, compute.Flavor{Meta: resource.Meta{Name: "full"}, Ref: "full", VCPUs: 1, MemoryMiB: 65000, RootGiB: 1})
		c.Must(err)
		c.Must(c.Compute.SetQuota(c.Admin, c.Other, resource.ID{}, map[string]int{compute.QuotaMemory: -1}, true))
		g := newGroup(c, compute.Apart)
		for _, h := range c.Hosts {
			launchOn(c, compute.Launch{GroupID: g}, h)
		}
		for range fill {
			_, err = c.Compute.Create(c.OtherCtx, c.Plain(compute.Launch{Flavor: "full", NoNetwork: true}))
			c.Must(err)
		}
		if lost {
			c.Lose(c.Hosts[0])
		}
		c.Settle()
		return told(c, c.Launch(compute.Launch{GroupID: g})[0])
	}
	first := ask(false, 0)
	if !strings.Contains(first, "There is none that suits the group.") {
		t.Errorf("the owner is told %q", first)
	}
	for _, text := range []string{ask(true, 0), ask(false, 2), ask(true, 2)} {
		if text != first {
			t.Errorf("the owner is told %q, or %q", first, text)
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
