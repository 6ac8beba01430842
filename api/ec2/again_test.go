package ec2

import (
	"maps"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/core/compute"
)

func launchForm(b *bench, more ...string) url.Values {
	form := url.Values{"Action": {"RunInstances"}, "Version": {"2016-11-15"}, "ImageId": {b.bound["$ami"]}, "InstanceType": {"u1.nano"},
		"MinCount": {"1"}, "MaxCount": {"1"}}
	for n := 0; n < len(more); n += 2 {
		form.Set(more[n], more[n+1])
	}
	return form
}

// The same request with the same client token has one effect and the same answer, whatever has become of what it
// named; another request with the token is refused.
func TestClientToken(t *testing.T) {
	b := newBench(t)
	launch := func(who string, more ...string) (int, string, string) {
		t.Helper()
		status, answer := b.ask(who, launchForm(b, append([]string{"ClientToken", "once"}, more...)...))
		return status, codeOf(answer), flatten(t, answer)["instancesSet.1.instanceId"]
	}
	_, _, first := launch("owner")
	b.cloud.Settle()
	count := func() int { return compute.Servers().Len(b.cloud.State.Latest()) }
	for range 2 {
		if status, code, again := launch("owner"); status != 200 || again != first || first == "" || count() != 1 {
			t.Fatalf("again: %d %s %s, first %s, %d servers", status, code, again, first, count())
		}
	}
	// Tools repeat a request with a new signature and time, and parameters in any order: the request is the same.
	if status, code, _ := launch("owner", "InstanceType", "u1.micro"); status != 400 || code != "IdempotentParameterMismatch" || count() != 1 {
		t.Errorf("a different request: %d %s, %d servers", status, code, count())
	}
	if status, code, _ := launch("owner", "ClientToken", strings.Repeat("x", 65)); status != 400 || code != "InvalidParameterValue" {
		t.Errorf("a long token: %d %s", status, code)
	}
	// The token is the account's: another's does not meet it.
	if status, code, _ := launch("other"); status != 400 || code != "VPCIdNotSpecified" {
		t.Errorf("another account: %d %s", status, code)
	}
	// A dry run of it is none.
	if status, code, _ := launch("owner", "ClientToken", "twice", "DryRun", "true"); status != 412 || code != "DryRunOperation" || count() != 1 {
		t.Errorf("a dry run: %d %s, %d servers", status, code, count())
	}
	if _, _, second := launch("owner", "ClientToken", "twice"); second == first || second == "" || count() != 2 {
		t.Errorf("after a dry run: %s, %d servers", second, count())
	}
}

// A request that was refused leaves no trace, so that it can be made again once what was in the way is gone.
func TestClientTokenOfWhatWasRefused(t *testing.T) {
	b := newBench(t)
	form := launchForm(b, "ClientToken", "once", "KeyName", "mine")
	if status, answer := b.ask("owner", form); status != 400 || codeOf(answer) != "InvalidKeyPair.NotFound" {
		t.Fatalf("%d %s", status, answer)
	}
	if status, answer := b.ask("owner", url.Values{"Action": {"CreateKeyPair"}, "KeyName": {"mine"}}); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	if status, answer := b.ask("owner", form); status != 200 {
		t.Errorf("%d %s", status, answer)
	}
	if status, answer := b.ask("owner", url.Values{"Action": {"DeleteKeyPair"}, "KeyName": {"mine"}}); status != 200 {
		t.Fatalf("%d %s", status, answer)
	}
	if status, answer := b.ask("owner", form); status != 200 {
		t.Errorf("again, when the key is gone: %d %s", status, answer)
	}
	if n := compute.Servers().Len(b.cloud.State.Latest()); n != 1 {
		t.Errorf("%d servers", n)
	}
}

// Our own headers hold here, too: a key that makes any request safe to repeat, and a plan of it.
func TestHeadersOfOurs(t *testing.T) {
	b := newBench(t)
	status, answer := b.ask("owner", launchForm(b, "MinCount", "2", "MaxCount", "2"))
	if status != 200 {
		t.Fatal(answer)
	}
	b.cloud.Settle()
	flat := flatten(t, answer)
	stop := url.Values{"Action": {"StopInstances"}, "InstanceId.1": {flat["instancesSet.1.instanceId"]}, "InstanceId.2": {flat["instancesSet.2.instanceId"]}}
	ask := func(form url.Values, header, value string) (int, string) {
		t.Helper()
		r := b.post("owner", form)
		r.Header.Set(header, value)
		return b.do(r)
	}
	before := b.cloud.State.Latest().Revision()
	status, answer = ask(stop, wire.PlanHeader, "true")
	if status != 200 || strings.Count(answer, `"kind":"server"`) != 2 || b.cloud.State.Latest().Revision() != before {
		t.Errorf("a plan: %d %s", status, answer)
	}
	// EC2 takes what changes something with GET, too: a plan of that is no more than a plan.
	presigned := maps.Clone(stop)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.presign(presigned, "3600"), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set(wire.PlanHeader, "true")
	if status, answer := b.do(r); status != 200 || strings.Count(answer, `"kind":"server"`) != 2 || b.cloud.State.Latest().Revision() != before {
		t.Errorf("a plan asked for with GET: %d %s", status, answer)
	}
	status, first := ask(stop, wire.OnceHeader, "k")
	if status != 200 {
		t.Fatal(first)
	}
	b.cloud.Settle()
	for _, id := range []string{"1", "2"} {
		if got := flatten(t, first)["instancesSet."+id+".currentState.name"]; got != "stopping" {
			t.Errorf("instance %s is %s", id, got)
		}
	}
	status, again := ask(stop, wire.OnceHeader, "k")
	if status != 200 || flatten(t, again)["instancesSet.1.currentState.name"] != "stopping" {
		t.Errorf("again: %d %s", status, again)
	}
	if status, answer := ask(stop, wire.AsOfHeader, "1"); status != 400 {
		t.Errorf("in the past: %d %s", status, answer)
	}
	before = b.cloud.State.Latest().Revision()
	if status, answer := ask(url.Values{"Action": {"DescribeSecurityGroups"}}, wire.AsOfHeader, "1"); status != 200 || b.cloud.State.Latest().Revision() != before {
		t.Errorf("a list of the past: %d %s", status, answer)
	}
	if status, answer := b.ask("owner", url.Values{"Action": {"DescribeInstances"}}); status != http.StatusOK || strings.Count(answer, "<name>stopped</name>") != 2 {
		t.Errorf("%d %s", status, answer)
	}
}
