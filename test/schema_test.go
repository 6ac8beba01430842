package test

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/state"

	_ "github.com/unkai-cloud/unkai/core/alert"
	_ "github.com/unkai-cloud/unkai/core/audit"
	_ "github.com/unkai-cloud/unkai/core/backup"
	_ "github.com/unkai-cloud/unkai/core/compute"
	_ "github.com/unkai-cloud/unkai/core/host"
	_ "github.com/unkai-cloud/unkai/core/identity"
	_ "github.com/unkai-cloud/unkai/core/image"
	_ "github.com/unkai-cloud/unkai/core/network"
	_ "github.com/unkai-cloud/unkai/core/operation"
)

// schema.txt has a line for every field that is stored: the level since which it is, and "soft" where the release before may drop
// it. It is what the releases so far wrote, so that what a change adds to it, or takes from it, is seen.
const schemaFile = "schema.txt"

// TestWhatIsStored fails when a stored field is new, gone or of another type. One that is new is tagged with `since` (or its table has
// state.Since) of this release's newest level, which package release raises once a release; UPDATE_SCHEMA=1 then writes it down. One
// that is gone, or changed, is an upgrade of the kind's version: see state.Version and state.Until.
func TestWhatIsStored(t *testing.T) {
	is := map[string]string{} // by kind, path and type: since when
	kinds := 0
	state.Stored(func(kind string, typ reflect.Type, version, since int) {
		kinds++
		is[kind+" version "+strconv.Itoa(version)] = strconv.Itoa(since)
		fields(typ, "", since, false, nil, func(path string, since int, soft bool) {
			level := strconv.Itoa(since)
			if soft {
				level += " soft"
			}
			is[kind+" "+path] = level
			if since > release.Own.Newest {
				t.Errorf("%s %s is of level %d, and this release is of %d", kind, path, since, release.Own.Newest)
			}
		})
	})
	if declared := tables(t); kinds != declared {
		t.Errorf("%d kinds are looked at and %d are declared: import the package that is missing here", kinds, declared)
	}
	if os.Getenv("UPDATE_SCHEMA") != "" {
		var out bytes.Buffer
		for _, line := range slices.Sorted(maps.Keys(is)) {
			fmt.Fprintf(&out, "%s: %s\n", line, is[line])
		}
		if err := os.WriteFile(schemaFile, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	was := map[string]string{}
	for line := range strings.Lines(string(text)) {
		field, level, _ := strings.Cut(strings.TrimSpace(line), ": ")
		was[field] = level
	}
	for field, level := range is {
		switch before, known := was[field]; {
		case !known && level == "1":
			t.Errorf("%s is new, and would be written at every level: tag it `since:\"%d\"`, or with \"%d,soft\" if the release before may drop it", field, release.Own.Newest, release.Own.Newest)
		case !known:
			t.Errorf("%s is new: UPDATE_SCHEMA=1 go test ./test -run TestWhatIsStored", field)
		case before != level:
			t.Errorf("%s is said to be of level %s, and was of %s", field, level, before)
		}
	}
	for field := range was {
		if _, still := is[field]; !still {
			t.Errorf("%s is gone, and the release before wrote it", field)
		}
	}
}

// fields gives each leaf of a stored type.
func fields(t reflect.Type, path string, since int, soft bool, within []reflect.Type, each func(path string, since int, soft bool)) {
	switch t.Kind() {
	case reflect.Pointer:
		fields(t.Elem(), path, since, soft, within, each)
		return
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Uint8 {
			fields(t.Elem(), path+"[]", since, soft, within, each)
			return
		}
	case reflect.Map:
		fields(t.Elem(), path+"{"+t.Key().Kind().String()+"}", since, soft, within, each)
		return
	case reflect.Struct:
		if pkg := t.PkgPath(); !strings.Contains(pkg, ".") || slices.Contains(within, t) {
			break // time and addresses spell themselves
		}
		for i := range t.NumField() {
			f := t.Field(i)
			since, soft := since, soft
			if level, may := state.SinceOf(f); level > 0 {
				since, soft = level, may
			}
			fields(f.Type, path+"."+f.Name, since, soft, append(slices.Clip(within), t), each)
		}
		return
	}
	name := t.Kind().String()
	if t.Kind() == reflect.Struct || t.Kind() == reflect.Array {
		name = t.String()
	}
	each(path+" "+name, since, soft)
}

// tables counts those that are declared.
func tables(t *testing.T) int {
	n := 0
	for _, root := range []string{"../core", "../base/state"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "enginetest") {
				return err
			}
			text, err := os.ReadFile(path)
			n += bytes.Count(text, []byte("= NewTable")) + bytes.Count(text, []byte("= state.NewTable"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return n
}
