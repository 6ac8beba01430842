package identity

import (
	"context"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
)

// A Document is a policy that an admin keeps here for other services to fetch. It means nothing to us.
type Document struct {
	resource.Meta
	Type  string
	Blob  string
	Extra Extra
}

var documents = state.NewTable[Document]("policy")

const documentBytes = 256 << 10

func (d *Document) check() error {
	switch {
	case d.Type == "" || len(d.Type) > 255:
		return fault.InvalidField("type", "must have 1 to 255 characters")
	case d.Blob == "" || len(d.Blob) > documentBytes:
		return fault.InvalidField("blob", "must have 1 to %d bytes", documentBytes)
	}
	return d.Extra.check()
}

// CreateDocument keeps a document.
func (s *Service) CreateDocument(ctx context.Context, d *Document) (*Document, error) {
	if err := mayManage(ctx, "policy.create", resource.ID{}); err != nil {
		return nil, err
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return create(ctx, s, documents, func(tx *state.Tx) (*Document, error) {
		made := *d
		made.ID = tx.NewID()
		return &made, nil
	})
}

// Document gives one document.
func (s *Service) Document(ctx context.Context, id resource.ID) (*Document, error) {
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	d, ok := documents.Find(tx, id)
	if !ok {
		return nil, missing(ctx, "policy.get", "policy", id.Hex())
	}
	return d, mayRead(ctx, "policy.get", resource.ID{})
}

// Documents lists the documents.
func (s *Service) Documents(ctx context.Context) ([]*Document, error) {
	if err := mayRead(ctx, "policy.list", resource.ID{}); err != nil {
		return nil, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return nil, err
	}
	return collect(documents.All(tx), nil), nil
}

// UpdateDocument changes a document.
func (s *Service) UpdateDocument(ctx context.Context, id resource.ID, change func(*Document) error) (*Document, error) {
	if err := mayManage(ctx, "policy.update", resource.ID{}); err != nil {
		return nil, err
	}
	return edit(ctx, s, documents, id, func(tx *state.Tx, d *Document) error {
		if err := change(d); err != nil {
			return err
		}
		return d.check()
	})
}

// DeleteDocument forgets a document.
func (s *Service) DeleteDocument(ctx context.Context, id resource.ID) error {
	return s.once(ctx, func(tx *state.Tx) error {
		if err := mayManage(ctx, "policy.delete", resource.ID{}); err != nil {
			return err
		}
		if !documents.Has(tx, id) {
			return missing(ctx, "policy.delete", "policy", id.Hex())
		}
		return documents.Delete(tx, id)
	})
}
