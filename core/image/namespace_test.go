package image_test

import (
	"context"
	"testing"
	"time"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/image"
)

// TestNamespaceOnce: a namespace that is made, and changed, with an idempotency key is so once, and the answer is the first one again.
func TestNamespaceOnce(t *testing.T) {
	r := newRig(t, image.Config{})
	admin := as(t, user, "admin")
	once := func(key string) context.Context {
		return state.WithOnce(admin, &state.Once{Scope: "s", Key: key, Hash: "h"})
	}
	var first *image.Namespace
	for range 2 {
		n, err := r.CreateNamespace(once("make"), &image.Namespace{Meta: resource.Meta{Name: "words"}, Visibility: image.Public})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = n
		}
		if n.ID != first.ID || n.Name != "words" {
			t.Errorf("the second answer is %+v", n)
		}
	}
	for range 2 {
		n, err := r.UpdateNamespace(once("add"), "words", func(n *image.Namespace, now time.Time) error {
			n.Tags = append(n.Tags, image.Definition{Name: "tag", CreatedAt: now})
			return nil
		})
		if err != nil || len(n.Tags) != 1 {
			t.Errorf("%+v, %v", n, err)
		}
	}
	if _, err := r.CreateNamespace(admin, &image.Namespace{Meta: resource.Meta{Name: "words"}, Visibility: image.Public}); !fault.Is(err, fault.Exists) {
		t.Errorf("without the key: %v", err)
	}
}
