package linuxnet

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// A name of a protocol has to be looked up in /etc/protocols, which a bare machine has not.
func TestProtocolsAreNumbers(t *testing.T) {
	files, err := filepath.Glob("testdata/*.nft")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rules to look at: %v", err)
	}
	matches := regexp.MustCompile(`(?:l4proto|ip protocol|nexthdr) (?:!= )?(?:\{[^}]*\}|\S+)`)
	named := regexp.MustCompile(`[a-z]`)
	seen := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, match := range matches.FindAllString(string(text), -1) {
			seen++
			if what := regexp.MustCompile(`^(?:l4proto|ip protocol|nexthdr) `).ReplaceAllString(match, ""); named.MatchString(what) {
				t.Errorf("%s: %s", file, match)
			}
		}
	}
	if seen == 0 {
		t.Error("no rule matches a protocol: the test proved nothing")
	}
}
