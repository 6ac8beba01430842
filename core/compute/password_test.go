package compute_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/compute/cloudtest"
	"github.com/unkai-cloud/unkai/core/host"
)

func TestAGuestsFirstPasswordHolds(t *testing.T) {
	c := cloudtest.New(t, 1)
	id := c.Launch(c.Plain(compute.Launch{}))[0]
	c.Settle()
	srv := c.Server(id)
	tell := func(h host.Key, from *compute.Server, text string) {
		t.Helper()
		seen, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Hub.Observe(t.Context(), from.HostID, []host.Observation{{Key: h, Seen: seen}}); err != nil {
			t.Fatal(err)
		}
	}
	told := func() string {
		t.Helper()
		text, err := c.Compute.ToldPassword(c.Ctx, srv.ID)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	key := host.Key{Kind: compute.PasswordKind, ID: srv.ID}
	tell(key, srv, strings.Repeat("x", compute.MaxPassword+1))
	if told() != "" {
		t.Error("one that is too long was taken in")
	}
	tell(key, srv, "first")
	tell(key, srv, "second")
	if got := told(); got != "first" {
		t.Errorf("told %q", got)
	}
	c.Must(c.Compute.ForgetPassword(c.Ctx, srv.ID))
	if got := told(); got != "" {
		t.Errorf("forgotten it is %q", got)
	}
	tell(key, srv, "third")
	if got := told(); got != "third" {
		t.Errorf("told %q", got)
	}
}
