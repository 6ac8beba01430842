package native

import (
	"strings"
	"testing"
)

func TestRelocation(t *testing.T) {
	w := newWorld(t)
	path := "/servers/" + w.mine.String() + "/move"
	for _, at := range []string{path, path + "/plan"} {
		w.do("two", "POST", at, `{}`).must(t, 404)
		w.do("admin", "POST", "/servers/x"+strings.TrimPrefix(at, "/servers/"+w.mine.String()), `{}`).must(t, 404)
		for _, body := range []string{``, `[]`, `{"to":1}`, `{"where":"x"}`, `{"to":"nowhere"}`} {
			if answer := w.do("admin", "POST", at, body); answer.status != 400 && answer.status != 409 {
				t.Errorf("%s %s answers %d", at, body, answer.status)
			}
		}
	}
}
