package fenceexec

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/host"
)

func program(t *testing.T, dir, name, text string, mode os.FileMode) *host.Host {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return &host.Host{Meta: resource.Meta{Name: "node-1"}, Address: netip.MustParseAddr("10.0.0.7"), Fencing: host.Fencing{Driver: "exec", Program: name}}
}

func TestAProgramIsCalled(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f := &Fencer{Dir: dir}
	h := program(t, dir, "well", `test "$1 $2 $UNKAI_ADDRESS $HOME" = "off node-1 10.0.0.7 " && touch done`, 0o700)
	if err := f.Off(t.Context(), h); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "done")); err != nil {
		t.Error(err)
	}
	h = program(t, dir, "ill", "echo no such machine >&2; exit 3", 0o700)
	if err := f.Off(t.Context(), h); err == nil || !strings.Contains(err.Error(), "no such machine") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("it says %v", err)
	}
	h = program(t, dir, "chatty", "yes", 0o700)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := f.Off(ctx, h); err == nil || !strings.Contains(err.Error(), "in time") || len(err.Error()) > 600 {
		t.Errorf("it says %v", err)
	}
	h = program(t, dir, "anybodys", "true", 0o722)
	if err := f.Off(t.Context(), h); err == nil || !strings.Contains(err.Error(), "written by others") {
		t.Errorf("it says %v", err)
	}
	for _, name := range []string{"", "..", "nowhere", "a/b", "../" + filepath.Base(dir) + "/well"} {
		h.Fencing.Program = name
		if err := f.Off(t.Context(), h); err == nil {
			t.Errorf("%q was run", name)
		}
	}
}
