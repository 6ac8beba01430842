package host

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A name is one controller's until that one is dismissed, and who was dismissed is none any more.
func TestAControllersNameIsItsOwn(t *testing.T) {
	h, _, _ := rig(t, 0)
	ctx := identity.Internal(t.Context())
	a, err := OpenAuthority(ctx, h.State, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if Founded(h.State.Latest()).IsZero() {
		t.Error("it is not known when the cloud began")
	}
	controller := func(member uint64, link string) (Controller, *x509.Certificate) {
		made, err := a.ControllerCertificate(time.Now(), "10.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(made.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		is := Controller{Member: member, Link: link}
		is.Name = "localhost"
		return is, cert
	}
	one, first := controller(1, "https://10.0.0.1:8702")
	two, second := controller(2, "https://10.0.0.2:8702")
	may := func(is Controller, cert *x509.Certificate) error {
		return MayServe(h.State.Latest(), is.Name, is.Member, cert)
	}
	for _, is := range []Controller{one, two} {
		if err := may(is, nil); err != nil {
			t.Errorf("while the name is nobody's: %v", err)
		}
	}
	if err := Present(ctx, h.State, one, first); err != nil {
		t.Fatal(err)
	}
	was := h.State.Latest().Revision()
	for what, err := range map[string]error{"present": Present(ctx, h.State, two, second), "serve": may(two, second)} {
		if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "https://10.0.0.1:8702") {
			t.Errorf("another of that name may %s: %v", what, err)
		}
	}
	if now := h.State.Latest().Revision(); now != was {
		t.Error("it has changed something")
	}
	one.Link = "https://10.0.0.1:9999"
	if err := Present(ctx, h.State, one, first); err != nil {
		t.Errorf("the first is elsewhere now: %v", err)
	}
	if err := Dismiss(ctx, h.State, one.Name); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"present": Present(ctx, h.State, one, first), "serve": may(one, first)} {
		if !fault.Is(err, fault.Unauthorized) {
			t.Errorf("who was dismissed may %s: %v", what, err)
		}
	}
	if err := Present(ctx, h.State, two, second); err != nil {
		t.Errorf("the name is free, and it is told %v", err)
	}
}
