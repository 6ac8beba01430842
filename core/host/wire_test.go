package host

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A yard is a cloud into which hosts come.
type yard struct {
	*testing.T
	st  *state.State
	ids map[string]resource.ID
	at  time.Time
}

func newYard(t *testing.T) *yard {
	t.Helper()
	st, err := state.Open(t.Context(), state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &yard{t, st, map[string]resource.ID{}, time.Now()}
}

// says has a host say what its address is; a name that is not known is that of a new one.
func (y *yard) says(name, driver, address string) error {
	y.Helper()
	id, known := y.ids[name]
	if !known {
		y.at = y.at.Add(time.Second)
		id = resource.NewID(y.at, nil)
	}
	hello := Hello{Name: name, Capacity: Capacity{Driver: driver}}
	if address != "" {
		hello.Address = netip.MustParseAddr(address)
	}
	err := Arrive(y.Context(), y.st, id, hello)
	if err == nil {
		y.ids[name] = id
	}
	return err
}

// comes has a host be taken in.
func (y *yard) comes(name, driver, address string) {
	y.Helper()
	if err := y.says(name, driver, address); err != nil {
		y.Fatalf("%s at %q: %v", name, address, err)
	}
}

// refused has a new host be refused in words, and leave nothing behind.
func (y *yard) refused(name, driver, address string, kind fault.Kind, words ...string) {
	y.Helper()
	err := y.says(name, driver, address)
	if !fault.Is(err, kind) {
		y.Fatalf("%s at %q: %v", name, address, err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			y.Errorf("%s at %q is refused without %q: %v", name, address, word, err)
		}
	}
	if _, there := ByName(y.st.Latest(), name); there {
		y.Errorf("%s was refused and is in", name)
	}
}

// apart is what is said of a host that is in.
func (y *yard) apart(name string) string {
	y.Helper()
	h, ok := ByName(y.st.Latest(), name)
	if !ok {
		y.Fatal(name + " is not there")
	}
	return h.Apart(y.st.Latest())
}

func TestAHostWithoutAnAddressIsAlone(t *testing.T) {
	y := newYard(t)
	y.comes("beside", "qemu", "") // its controller
	if why := y.apart("beside"); why != "" {
		t.Errorf("the only host: %s", why)
	}
	y.comes("s1", Simulated, "")
	y.comes("s2", Simulated, "")
	if why := y.apart("beside") + y.apart("s1"); why != "" {
		t.Errorf("with simulated ones: %s", why)
	}
	y.refused("second", "qemu", "192.0.2.2", fault.Conflict, "beside", "--address", "Host second can join")
	y.refused("third", "qemu", "", fault.Conflict, "third", "--address")
	y.comes("beside", "qemu", "192.0.2.1")
	y.comes("second", "qemu", "192.0.2.2")
	y.refused("third", "qemu", "", fault.Conflict, "Host third", "--address")
	y.comes("s3", Simulated, "")
	for _, address := range []string{"127.0.0.1", "::1", "0.0.0.0", "fe80::1", "224.0.0.1", "::ffff:127.0.0.1"} {
		y.refused("third", "qemu", address, fault.Invalid, "--address")
	}
}

func TestTwoHostsHaveNoAddressInCommon(t *testing.T) {
	y := newYard(t)
	y.comes("a", "qemu", "10.0.2.15")
	y.refused("b", "qemu", "10.0.2.15", fault.Conflict, "10.0.2.15", "host a", "--address", "--as a")
	y.refused("b", "qemu", "::ffff:10.0.2.15", fault.Conflict, "10.0.2.15")
	y.comes("b", "qemu", "10.0.2.16")
	// One that cannot be heard has its address still; one that was removed has none.
	if err := Lose(t.Context(), y.st, y.ids["a"]); err != nil {
		t.Fatal(err)
	}
	y.refused("c", "qemu", "10.0.2.15", fault.Conflict, "controller remove a")
	if err := y.st.Update(t.Context(), func(tx *state.Tx) error { return Remove(tx, y.ids["a"]) }); err != nil {
		t.Fatal(err)
	}
	y.comes("c", "qemu", "10.0.2.15")
}

func TestHostsAreOfOneFamily(t *testing.T) {
	for first, other := range map[string]string{"192.0.2.1": "2001:db8::2", "2001:db8::1": "192.0.2.2"} {
		y := newYard(t)
		y.comes("a", "qemu", first)
		y.refused("b", "qemu", other, fault.Conflict, other, "IPv", "--address")
	}
}

// What a host that is in says is taken in: else it would be lost, with its guests. It is told of.
func TestAHostThatIsInIsNeverShutOutForItsAddress(t *testing.T) {
	y := newYard(t)
	y.comes("a", "qemu", "192.0.2.1")
	y.comes("b", "qemu", "192.0.2.2")
	for address, words := range map[string]string{"": "no address", "192.0.2.1": "host a", "2001:db8::2": "IPv4"} {
		y.comes("b", "qemu", address)
		if why := y.apart("b"); !strings.Contains(why, words) {
			t.Errorf("at %q: %q", address, why)
		}
		if u := UnderlayOf(y.st.Latest()); !u.Known || u.V6 {
			t.Errorf("at %q the hosts are connected by %+v", address, u)
		}
		h, _ := ByName(y.st.Latest(), "b")
		if reached := UnderlayOf(y.st.Latest()).Reaches(h); reached != (address == "192.0.2.1") {
			t.Errorf("at %q it is reached: %v", address, reached)
		}
		if !Expected(y.st.Latest(), y.ids["b"], Hello{Name: "b", Capacity: Capacity{Driver: "qemu"}, Address: h.Address}) {
			t.Errorf("at %q it is asked for again", address)
		}
	}
	y.comes("b", "qemu", "192.0.2.2")
	if why := y.apart("a") + y.apart("b"); why != "" {
		t.Errorf("when all is well: %s", why)
	}
}

// One host that says something else has none but itself counted as apart, be it the first.
func TestMostHostsDecideTheFamily(t *testing.T) {
	y := newYard(t)
	for n, name := range []string{"a", "b", "c"} {
		y.comes(name, "qemu", netip.AddrFrom4([4]byte{192, 0, 2, byte(n + 1)}).String())
	}
	y.comes("a", "qemu", "2001:db8::1")
	if why := y.apart("a"); !strings.Contains(why, "IPv4") {
		t.Errorf("of the one that changed it is said: %q", why)
	}
	if why := y.apart("b") + y.apart("c"); why != "" {
		t.Errorf("of the others it is said: %s", why)
	}
}

// unfit is why a host that is in has no new guests.
func (y *yard) unfit(name string) string {
	y.Helper()
	h, ok := ByName(y.st.Latest(), name)
	if !ok {
		y.Fatal(name + " is not there")
	}
	why := h.Unfit(y.st.Latest())
	if fits := FitOf(y.st.Latest()).Has(h); fits != (why == "") {
		y.Errorf("%s fits: %v, for %q", name, fits, why)
	}
	return why
}

func TestAHostThatOthersDoNotReachHasNoNewGuests(t *testing.T) {
	y := newYard(t)
	y.comes("a", "qemu", "")
	y.comes("s", Simulated, "")
	if why := y.unfit("a") + y.unfit("s"); why != "" {
		t.Errorf("a host that is alone: %s", why)
	}
	y.comes("a", "qemu", "127.0.0.1")
	if why := y.unfit("a"); why != "" {
		t.Errorf("a host that is alone: %s", why)
	}
	y.comes("a", "qemu", "192.0.2.1")
	y.comes("b", "qemu", "192.0.2.2")
	y.comes("c", "qemu", "192.0.2.3")
	for address, words := range map[string]string{"": "no address", "192.0.2.1": "host a", "2001:db8::2": "IPv4", "127.0.0.1": "127.0.0.1"} {
		y.comes("b", "qemu", address)
		if why := y.unfit("b"); !strings.Contains(why, words) || !strings.Contains(why, "--address") {
			t.Errorf("at %q: %q", address, why)
		}
		if why := y.unfit("c") + y.unfit("s"); why != "" {
			t.Errorf("others, when one is at %q: %s", address, why)
		}
		y.comes("b", "qemu", "192.0.2.2")
		if why := y.unfit("a") + y.unfit("b"); why != "" {
			t.Errorf("when all is well: %s", why)
		}
	}
}
