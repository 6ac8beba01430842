package sigv4

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// The case "get-vanilla" of AWS's Signature Version 4 test suite.
const (
	secret   = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	header   = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
	nothing  = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	whenText = "20150830T123600Z"
)

func TestVerify(t *testing.T) {
	when := time.Date(2015, 8, 30, 12, 36, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		header, path, service, secret, payload string
		now                                    time.Time
		want                                   error
	}{
		"as AWS signs it":     {header, "/", "service", secret, nothing, when, nil},
		"a clock a bit off":   {header, "/", "service", secret, nothing, when.Add(14 * time.Minute), nil},
		"too late":            {header, "/", "service", secret, nothing, when.Add(16 * time.Minute), ErrExpired},
		"too early":           {header, "/", "service", secret, nothing, when.Add(-16 * time.Minute), ErrExpired},
		"another secret":      {header, "/", "service", "x", nothing, when, ErrMismatch},
		"another path":        {header, "/x", "service", secret, nothing, when, ErrMismatch},
		"another body":        {header, "/", "service", secret, strings.Repeat("0", 64), when, ErrMismatch},
		"another service":     {header, "/", "ec2", secret, nothing, when, ErrScope},
		"no signature at all": {"", "/", "service", secret, nothing, when, ErrMissing},
		"another algorithm":   {strings.Replace(header, "SHA256", "SHA1", 1), "/", "service", secret, nothing, when, ErrMalformed},
		"the host unsigned":   {strings.Replace(header, "host;", "", 1), "/", "service", secret, nothing, when, ErrMalformed},
		"of another day":      {strings.Replace(header, "20150830", "20150829", 1), "/", "service", secret, nothing, when, ErrScope},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "http://example.amazonaws.com/", nil)
			r.Header.Set("X-Amz-Date", whenText)
			if c.header != "" {
				r.Header.Set("Authorization", c.header)
			}
			s, err := Parse(r)
			if err == nil {
				err = s.Verify(r, c.path, c.service, c.secret, c.payload, c.now)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}
