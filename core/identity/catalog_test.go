package identity

import "testing"

func TestResolve(t *testing.T) {
	for _, test := range []struct{ url, base, want string }{
		{"/compute", "http://cloud:8700", "http://cloud:8700/compute"},
		{":8701", "http://cloud:8700", "http://cloud:8701"},
		{":8701/x", "https://[fe80::1]:8700", "https://[fe80::1]:8701/x"},
		{":8701", "https://[fe80::1]", "https://[fe80::1]:8701"},
		{"https://elsewhere/x", "http://cloud:8700", "https://elsewhere/x"},
	} {
		if got := Resolve(test.url, test.base); got != test.want {
			t.Errorf("Resolve(%q, %q) = %q, want %q", test.url, test.base, got, test.want)
		}
	}
}
