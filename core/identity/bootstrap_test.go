package identity

import "testing"

func TestBootstrapAgainChangesNothing(t *testing.T) {
	w := newWorld(t, Config{})
	before := w.State.Latest().Revision()
	err := Bootstrap(t.Context(), w.State, BootstrapOptions{Config: Config{Hash: cheap}, AdminPassword: "another", DemoPassword: "another", AltPassword: "another"})
	w.must(err)
	if after := w.State.Latest().Revision(); after != before {
		t.Errorf("the state went from revision %d to %d", before, after)
	}
	w.login("admin", inProject("admin")) // the password that it had
}
