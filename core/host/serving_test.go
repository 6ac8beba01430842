package host

import (
	"testing"
	"time"
)

func TestWhatAControllerShowsIsRenewed(t *testing.T) {
	h, c, _ := rig(t, 0)
	a, err := OpenAuthority(t.Context(), h.State, c.now)
	if err != nil {
		t.Fatal(err)
	}
	s := &Serving{Authority: a, Names: func() []string { return []string{"127.0.0.1"} }, Now: h.Now}
	show := func() string {
		t.Helper()
		cert, err := s.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if !c.now.Before(cert.Leaf.NotAfter) || cert.Leaf.VerifyHostname("127.0.0.1") != nil {
			t.Errorf("at %v: %v", c.now, cert.Leaf.NotAfter)
		}
		return cert.Leaf.SerialNumber.String()
	}
	first := show()
	c.now = c.now.Add(200 * 24 * time.Hour)
	if show() != first {
		t.Error("renewed too soon")
	}
	c.now = c.now.Add(60 * 24 * time.Hour)
	second := show()
	if second == first {
		t.Error("not renewed in the last third of its life")
	}
	for range 20 { // years
		c.now = c.now.Add(200 * 24 * time.Hour)
		show()
	}
}
