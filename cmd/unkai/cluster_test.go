package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// TestCertificateAndKeyAreOne: a controller that is killed while it renews its certificate has the old pair or the new one.
func TestCertificateAndKeyAreOne(t *testing.T) {
	ctx := identity.Internal(context.Background())
	s, err := state.Open(ctx, state.NewMemory(0), state.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, err := host.OpenAuthority(ctx, s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	m := &membership{Name: "c1", dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(m.dir, "peer"), 0o700); err != nil {
		t.Fatal(err)
	}
	var was []byte
	for range 3 {
		if err := m.certify(a, "10.0.0.1"); err != nil {
			t.Fatal(err)
		}
		cert, err := m.certificate()
		if err != nil || bytes.Equal(cert.Certificate[0], was) {
			t.Fatalf("%v, or it is the old one", err)
		}
		was = cert.Certificate[0]
		// What is left of a renewal that was cut short is in the way of nothing.
		if err := os.WriteFile(m.file(pairFile)+".new", []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	// As an earlier release kept it.
	pair, err := os.ReadFile(m.file(pairFile))
	if err != nil {
		t.Fatal(err)
	}
	cert, key := pem.Decode(pair)
	if err := errors.Join(os.WriteFile(m.file("cert.pem"), pem.EncodeToMemory(cert), 0o600), os.WriteFile(m.file("key.pem"), key, 0o600), os.Remove(m.file(pairFile))); err != nil {
		t.Fatal(err)
	}
	if err := m.pairUp(); err != nil {
		t.Fatal(err)
	}
	if got, err := m.certificate(); err != nil || !bytes.Equal(got.Certificate[0], was) {
		t.Errorf("an earlier release's certificate: %v", err)
	}

	// The list of who is refused is there from the beginning, and is written anew only for news.
	if m.engine().CRLFile != "" {
		t.Error("a list that is not there is to be read")
	}
	if err := m.refuse(a, s.Latest()); err != nil {
		t.Fatal(err)
	}
	first, err := os.Stat(m.file(revokedFile))
	if err != nil || m.engine().CRLFile == "" {
		t.Fatalf("there is no list: %v", err)
	}
	shown, err := m.certificate()
	if err != nil {
		t.Fatal(err)
	}
	is := host.Controller{Link: "https://10.0.0.1:8702"}
	is.Name = "c1"
	if err := host.Present(ctx, s, is, shown.Leaf); err != nil {
		t.Fatal(err)
	}
	if err := m.refuse(a, s.Latest()); err != nil {
		t.Fatal(err)
	}
	if now, err := os.Stat(m.file(revokedFile)); err != nil || !now.ModTime().Equal(first.ModTime()) {
		t.Errorf("it was written without news: %v", err)
	}
	if err := host.Dismiss(ctx, s, "c1"); err != nil {
		t.Fatal(err)
	}
	if err := m.refuse(a, s.Latest()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(m.file(revokedFile))
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(text)
	if err != nil || len(list.RevokedCertificateEntries) != 1 || list.RevokedCertificateEntries[0].SerialNumber.Cmp(shown.Leaf.SerialNumber) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestWhoMayBeAMember(t *testing.T) {
	all := []etcd.MemberInfo{{ID: 1, Name: "c1", URL: "https://192.0.2.1:8703"}, {ID: 2, URL: "https://192.0.2.2:8703", Learner: true}}
	for _, c := range []struct {
		name, url string
		all       []etcd.MemberInfo
		kind      fault.Kind
		says      string
	}{
		{"c2", "https://192.0.2.2:8703", all, 0, ""}, // it was let in and never came
		{"c3", "https://192.0.2.3:8703", all[:1], 0, ""},
		{"c3", "https://192.0.2.3:8703", all, fault.Unavailable, "dismiss https://192.0.2.2:8703"},
		{"c1", "https://192.0.2.3:8703", all, fault.Conflict, "named c1"},
		{"c3", "https://192.0.2.1:8703", all, fault.Conflict, "at https://192.0.2.1:8703"},
	} {
		switch err := mayBeMember(c.all, c.name, c.url); {
		case c.says == "" && err != nil, c.says != "" && (!fault.Is(err, c.kind) || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s at %s: %v", c.name, c.url, err)
		}
	}
}
