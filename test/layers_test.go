// Package test checks what spans the whole repository.
package test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/unkai-cloud/unkai/"

// mayImport says which layers a layer sees, itself included. What is not named here
// (cmd, bench, test) joins parts and sees everything.
var mayImport = map[string]string{
	"base":   "base",
	"core":   "core base",
	"api":    "api core base",
	"agent":  "agent core base",
	"driver": "driver core base",
}

// domains in the order in which they may build on each other.
var domains = []string{"identity", "operation", "host", "object", "image", "volume", "network", "compute", "loadbalancer", "workload", "metering", "alert", "audit", "backup"}

func TestImportsPointOneWay(t *testing.T) {
	seen := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		from := strings.Split(filepath.ToSlash(strings.TrimPrefix(path, "../")), "/")
		if mayImport[from[0]] == "" {
			return nil
		}
		seen++
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if to, ours := strings.CutPrefix(name, module); ours {
				check(t, path, from, strings.Split(to, "/"))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < 50 {
		t.Fatalf("only %d files were looked at", seen)
	}
}

func check(t *testing.T, path string, from, to []string) {
	t.Helper()
	if !slices.Contains(strings.Fields(mayImport[from[0]]), to[0]) {
		t.Errorf("%s imports %s: %s may only see %s", path, strings.Join(to, "/"), from[0], mayImport[from[0]])
	}
	if from[0] == "core" && to[0] == "core" && from[1] != to[1] {
		if slices.Index(domains, to[1]) >= slices.Index(domains, from[1]) {
			t.Errorf("%s imports core/%s, which comes after core/%s", path, to[1], from[1])
		}
	}
	if from[0] == "driver" && to[0] == "driver" && from[1] != to[1] {
		t.Errorf("%s imports driver/%s: drivers do not know each other", path, to[1])
	}
}

// No word of one cloud's dialect belongs below api: the core is neutral.
func TestCoreIsNeutral(t *testing.T) {
	for _, layer := range []string{"base", "core", "agent", "driver"} {
		err := filepath.WalkDir(filepath.Join("..", layer), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, name := range names(file) {
				for _, word := range []string{"openstack", "nova", "neutron", "glance", "keystone", "cinder", "amazon", "tempest"} {
					if strings.Contains(strings.ToLower(name), word) {
						t.Errorf("%s names %s", path, name)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
