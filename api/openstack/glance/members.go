package glance

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/openstack"
	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/image"
)

type member struct {
	ImageID   string       `json:"image_id"`
	MemberID  string       `json:"member_id"`
	Status    image.Answer `json:"status"`
	CreatedAt string       `json:"created_at"`
	UpdatedAt string       `json:"updated_at"`
	Schema    string       `json:"schema"`
}

func memberView(id resource.ID, m image.Member) member {
	return member{id.String(), m.ProjectID.Hex(), m.Answer, stamp(m.CreatedAt), stamp(m.UpdatedAt), "/v2/schemas/member"}
}

// memberIDs reads the image and the member from the path.
func memberIDs(r *http.Request) (id, project resource.ID, err error) {
	if id, err = imageID(r); err != nil {
		return id, project, err
	}
	if project, err = resource.ParseID(r.PathValue("member")); err != nil {
		return id, project, fault.Missing("Member", r.PathValue("member"))
	}
	return id, project, nil
}

func (s *server) listMembers(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	members, err := s.images.Members(r.Context(), id)
	if err != nil {
		return err
	}
	list := make([]member, len(members))
	for n, m := range members {
		list[n] = memberView(id, m)
	}
	return wire.WriteJSON(w, http.StatusOK, map[string]any{"members": list, "schema": "/v2/schemas/members"})
}

func (s *server) showMember(w http.ResponseWriter, r *http.Request) error {
	id, project, err := memberIDs(r)
	if err != nil {
		return err
	}
	m, err := s.images.Member(r.Context(), id, project)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, memberView(id, m))
}

func (s *server) createMember(w http.ResponseWriter, r *http.Request) error {
	id, err := imageID(r)
	if err != nil {
		return err
	}
	var body struct {
		Member string `json:"member"`
	}
	if err := openstack.Decode(r, &body); err != nil {
		return err
	}
	project, err := resource.ParseID(body.Member)
	if err != nil || project.IsZero() {
		return fault.InvalidField("member", "must be the ID of a project")
	}
	m, err := s.images.Share(r.Context(), id, project)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, memberView(id, m))
}

func (s *server) updateMember(w http.ResponseWriter, r *http.Request) error {
	id, project, err := memberIDs(r)
	if err != nil {
		return err
	}
	var body struct {
		Status image.Answer `json:"status"`
	}
	if err := openstack.Decode(r, &body); err != nil {
		return err
	}
	m, err := s.images.Answer(r.Context(), id, project, body.Status)
	if err != nil {
		return err
	}
	return wire.WriteJSON(w, http.StatusOK, memberView(id, m))
}

func (s *server) deleteMember(w http.ResponseWriter, r *http.Request) error {
	id, project, err := memberIDs(r)
	if err != nil {
		return err
	}
	if err := s.images.Unshare(r.Context(), id, project); err != nil {
		return err
	}
	return noContent(w)
}
