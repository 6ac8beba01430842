package release

import "testing"

func TestWhichReleasesMeet(t *testing.T) {
	for name, c := range map[string]struct {
		a, b Span
		meet bool
	}{
		"the same":                    {Span{1, 2}, Span{1, 2}, true},
		"one and the next":            {Span{1, 2}, Span{2, 3}, true},
		"one and the one after next":  {Span{1, 2}, Span{3, 4}, false},
		"the second and the first":    {Span{1, 2}, Span{}, true},
		"the third and the first":     {Span{2, 3}, Span{}, false},
		"of which one knows a single": {Span{2, 2}, Span{2, 3}, true},
	} {
		if got := c.a.Meets(c.b); (got == nil) != c.meet {
			t.Errorf("%s: %v", name, got)
		}
		if got := c.b.OrFirst().Meets(c.a.OrFirst()); (got == nil) != c.meet {
			t.Errorf("%s, from the other side: %v", name, got)
		}
	}
}

func TestAtWhichLevelsAReleaseWorks(t *testing.T) {
	s := Span{2, 3}
	for level, ok := range map[int]bool{1: false, 2: true, 3: true, 4: false} {
		if err := s.At(level); (err == nil) != ok {
			t.Errorf("level %d: %v", level, err)
		}
	}
}
