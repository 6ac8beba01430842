package identity

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
)

func TestPasswordRules(t *testing.T) {
	w := newWorld(t, Config{Password: PasswordRules{MinLength: 8, History: 3, ExpireDays: 30}})
	id := w.user("demo").ID
	change := func(from, to string) error { return w.ChangePassword(t.Context(), id, from, to) }
	if err := change("demo-password", "short"); !fault.Is(err, fault.Invalid) {
		t.Errorf("a short password: %v", err)
	}
	if err := change("demo-password", "demo-password"); !fault.Is(err, fault.Invalid) {
		t.Errorf("the same password: %v", err)
	}
	if err := change("wrong-password", "new-password-1"); !fault.Is(err, fault.Unauthorized) {
		t.Errorf("without the present one: %v", err)
	}
	w.must(change("demo-password", "new-password-1"))
	w.must(change("new-password-1", "new-password-2"))
	if err := change("new-password-2", "demo-password"); !fault.Is(err, fault.Invalid) {
		t.Errorf("the last but two: %v", err)
	}
	w.must(change("new-password-2", "new-password-3"))
	w.must(change("new-password-3", "demo-password")) // four ago
	w.now = w.now.Add(31 * 24 * time.Hour)
	if _, _, err := w.Authenticate(t.Context(), password("demo", "demo-password", ScopeRef{})); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired password: %v", err)
	}
	w.must(change("demo-password", "new-password-4")) // changing it is still possible
}

func TestUnknownUserCostsTheSame(t *testing.T) {
	h := newHasher(HashCost{}, bytes.NewReader(make([]byte, 64)))
	if want, err := h.hash(t.Context(), "x"); err != nil || len(want) != len(h.dummy) || want[:30] != h.dummy[:30] {
		t.Errorf("the dummy %q is not like a real hash %q: %v", h.dummy, want, err)
	}
	if ok, err := h.matches(t.Context(), "", ""); ok || err != nil {
		t.Errorf("a user without a password got in: %v", err)
	}
}

func TestAFloodOfLoginsIsTurnedAway(t *testing.T) {
	h := newHasher(HashCost{MemoryKiB: 8, Passes: 1, AtOnce: 1}, bytes.NewReader(nil))
	h.slots <- struct{}{} // one that takes for ever
	ctx, cancel := context.WithCancel(t.Context())
	answers := make(chan error)
	for range 1 + hashesWaiting + 1 {
		go func() {
			_, err := h.matches(ctx, "", "x")
			answers <- err
		}()
	}
	if err := <-answers; !fault.Is(err, fault.Unavailable) {
		t.Errorf("the one too many got %v", err)
	}
	cancel()
	for range 1 + hashesWaiting {
		if err := <-answers; !errors.Is(err, context.Canceled) {
			t.Errorf("one that waited got %v", err)
		}
	}
	<-h.slots
	if _, err := h.matches(t.Context(), "", "x"); err != nil {
		t.Errorf("after the flood: %v", err)
	}
}

// BenchmarkHash is what a password token costs at least.
func BenchmarkHash(b *testing.B) {
	h := newHasher(HashCost{}, bytes.NewReader(make([]byte, 1<<20)))
	hash, err := h.hash(b.Context(), "demo-password")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if ok, err := h.matches(b.Context(), hash, "demo-password"); !ok || err != nil {
			b.Fatal(err)
		}
	}
}
