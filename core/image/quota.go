package image

import (
	"context"
	"io"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
)

// Limits of a project. Zero means no limit.
type Limits struct {
	Images    int64 // image records
	Bytes     int64 // of all its images together, and of those that are coming in
	Transfers int64 // uploads at the same time
}

// builtinLimits hold where no operator registered others: nobody may fill the disk that the cloud's
// own state is on just because he has an account.
var builtinLimits = Limits{Images: 200, Bytes: 200 << 30, Transfers: 20}

// What operators register limits of, for services of type "image". Sizes are in MiB.
const (
	limitCount     = "image_count_total"
	limitSize      = "image_size_total"
	limitUploading = "image_count_uploading"
)

// limitsOf are a project's limits.
func limitsOf(tx *state.Tx, project resource.ID) Limits {
	l := builtinLimits
	for _, r := range []struct {
		name string
		unit int64
		to   *int64
	}{{limitCount, 1, &l.Images}, {limitSize, 1 << 20, &l.Bytes}, {limitUploading, 1, &l.Transfers}} {
		most, ok := identity.LimitOf(tx, project, "image", r.name)
		switch {
		case !ok:
		case most < 0:
			*r.to = 0
		case most == 0:
			*r.to = none
		default:
			*r.to = int64(most) * r.unit
		}
	}
	return l
}

// none is the limit of a project that may have nothing: 0 is no limit.
const none = -1

func (l Limits) refuse(have, more int64, limit int64, name, format string) error {
	if limit == 0 || have+more <= max(limit, 0) {
		return nil
	}
	return fault.Errorf(fault.OverQuota, format, max(limit, 0), have).With("quota", name)
}

// roomFor holds what a project would have against its limits.
func (s *Service) roomFor(tx *state.Tx, project resource.ID, count, bytes int64) error {
	limits := s.config.Limits(tx, project)
	have, sums := images.Sum(tx, "use", state.KeyOf(project))
	if count > 0 {
		if err := limits.refuse(have, count, limits.Images, "images", "The project may have %d images, and has %d."); err != nil {
			return err
		}
	}
	if bytes == 0 {
		return nil
	}
	return limits.refuse(sums[0], bytes, limits.Bytes, "image-bytes", "The project may keep %d bytes in images, and keeps %d.")
}

// roomForTransfer refuses one upload too many.
func (s *Service) roomForTransfer(tx *state.Tx, project resource.ID) error {
	limits := s.config.Limits(tx, project)
	_, sums := images.Sum(tx, "use", state.KeyOf(project))
	return limits.refuse(sums[1], 1, limits.Transfers, "image-transfers", "The project may upload %d images at the same time, and uploads %d.")
}

// A Usage is what a project has of what it may have. A limit of 0 is none, below 0 it may have nothing.
type Usage struct {
	Limits
	Images, Bytes, Transfers int64
}

// Usage shows the actor's project what it has.
func (s *Service) Usage(ctx context.Context) (Usage, error) {
	project := identity.ActorOf(ctx).ProjectID
	if err := identity.Allow(ctx, "image.list", resource.Meta{ProjectID: project}); err != nil {
		return Usage{}, err
	}
	tx, err := s.State.View(ctx)
	if err != nil {
		return Usage{}, err
	}
	u := Usage{Limits: s.config.Limits(tx, project)}
	have, sums := images.Sum(tx, "use", state.KeyOf(project))
	u.Images, u.Bytes, u.Transfers = have, sums[0], sums[1]
	return u, nil
}

// A metered writer holds a project's uploads together against its limit while they come in: each by
// itself knows only what the project had when it began. At the end the state has the last word.
type metered struct {
	io.Writer
	s       *Service
	project resource.ID
	begun   int64
}

func (m *metered) Write(b []byte) (int, error) {
	tx := m.s.State.Latest()
	limits := m.s.config.Limits(tx, m.project)
	_, sums := images.Sum(tx, "use", state.KeyOf(m.project))
	m.s.mu.Lock()
	coming := m.s.coming[m.project] + int64(len(b))
	fits := limits.Bytes == 0 || sums[0]+coming <= limits.Bytes
	if fits {
		m.s.coming[m.project] = coming
		m.begun += int64(len(b))
	}
	m.s.mu.Unlock()
	if !fits {
		return 0, tooLong(max(limits.Bytes-sums[0], 0))
	}
	return m.Writer.Write(b)
}

// end no longer counts what has come.
func (m *metered) end() {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	if m.s.coming[m.project] -= m.begun; m.s.coming[m.project] <= 0 {
		delete(m.s.coming, m.project)
	}
	m.begun = 0
}
