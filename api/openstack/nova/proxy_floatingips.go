package nova

import (
	"net/http"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/network"
)

func floatingView(tx *state.Tx, f *network.FloatingAddress) map[string]any {
	view := map[string]any{"id": f.ID.String(), "ip": f.Address.String(), "fixed_ip": nil, "instance_id": nil, "pool": ""}
	if n, ok := network.Networks().PeekOne(tx, f.NetworkID); ok {
		view["pool"] = n.Name
	}
	if p, ok := network.Ports().PeekOne(tx, f.TargetID); ok {
		view["fixed_ip"] = f.Fixed.String()
		if p.Owner == network.OwnerServer {
			view["instance_id"] = p.DeviceID
		}
	}
	return view
}

func (s *server) listFloatingIPs(w http.ResponseWriter, r *http.Request) error {
	mine := []network.Condition{{Field: "project", Values: []string{identity.ActorOf(r.Context()).ProjectID.String()}}}
	page, err := s.network.Floating.List(r.Context(), network.Query{Where: mine})
	if err != nil {
		return err
	}
	tx := s.compute.State.Latest()
	views := []map[string]any{}
	for _, f := range page.Items {
		views = append(views, floatingView(tx, f))
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ips": views})
}

func (s *server) showFloatingIP(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Floating IP")
	if err != nil {
		return err
	}
	f, err := s.network.Floating.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ip": floatingView(s.compute.State.Latest(), f)})
}

// pools are the external networks that floating addresses come from.
func (s *server) pools(r *http.Request) ([]*network.Network, error) {
	page, err := s.network.Networks.List(r.Context(), network.Query{Where: []network.Condition{{Field: "external", Values: []string{"true"}}}})
	return page.Items, err
}

func (s *server) createFloatingIP(w http.ResponseWriter, r *http.Request) error {
	asked := ""
	if r.ContentLength != 0 {
		value, err := decode(r)
		if err != nil {
			return err
		}
		m, ok := value.(map[string]any)
		if !ok && value != nil {
			return fault.Errorf(fault.Invalid, "Malformed request body")
		}
		if asked, ok = m["pool"].(string); !ok && m["pool"] != nil {
			return fault.InvalidField("pool", "must be a name")
		}
	}
	pools, err := s.pools(r)
	if err != nil {
		return err
	}
	for _, pool := range pools {
		if asked != "" && asked != pool.Name && asked != pool.ID.String() {
			continue
		}
		want := &network.FloatingAddress{Meta: resource.Meta{ProjectID: identity.ActorOf(r.Context()).ProjectID}, NetworkID: pool.ID}
		made, err := s.network.Floating.Create(r.Context(), want)
		if err != nil {
			return err
		}
		return answer(w, http.StatusOK, map[string]any{"floating_ip": floatingView(s.compute.State.Latest(), made[0])})
	}
	return fault.Errorf(fault.NotFound, "Floating IP pool not found.")
}

func (s *server) deleteFloatingIP(w http.ResponseWriter, r *http.Request) error {
	id, err := oldID(r, "Floating IP")
	if err != nil {
		return err
	}
	if err := s.network.Floating.Delete(r.Context(), id, 0); err != nil {
		return err
	}
	return accepted(w, http.StatusAccepted)
}

func (s *server) listFloatingPools(w http.ResponseWriter, r *http.Request) error {
	pools, err := s.pools(r)
	if err != nil {
		return err
	}
	views := []map[string]string{}
	for _, n := range pools {
		views = append(views, map[string]string{"name": n.Name})
	}
	return answer(w, http.StatusOK, map[string]any{"floating_ip_pools": views})
}
