package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A crash leaves user data and passwords in unfinished drives: the next start clears them, and keeps what is whole.
func TestUnfinishedConfigDrivesGo(t *testing.T) {
	s := seeds{filepath.Join(t.TempDir(), "seeds")}
	if err := s.open(); err != nil {
		t.Fatalf("before the first drive: %v", err)
	}
	made, err := s.build(compute.Guest{ID: resource.NewID(time.Now(), nil), Name: "one"})
	if err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(s.dir, "iso-123", "openstack", "latest")
	if err := os.MkdirAll(left, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(left, "user_data"), made + ".new", made + ".sum.new"} {
		if err := os.WriteFile(name, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) != 2 || entries[0].Name() != filepath.Base(made) || entries[1].Name() != filepath.Base(made)+".sum" {
		t.Errorf("there are %v, %v", entries, err)
	}
}
