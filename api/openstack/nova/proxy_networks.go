package nova

import (
	"net/http"

	"github.com/unkai-cloud/unkai/core/network"
)

// networkView has the fields that an older network service had, most of which say nothing now.
func networkView(n *network.Network) map[string]any {
	view := map[string]any{"id": n.ID.String(), "label": n.Name}
	for _, word := range []string{"bridge", "bridge_interface", "broadcast", "cidr", "cidr_v6", "created_at", "deleted", "deleted_at", "dhcp_server",
		"dhcp_start", "dns1", "dns2", "enable_dhcp", "gateway", "gateway_v6", "host", "injected", "mtu", "multi_host", "netmask", "netmask_v6",
		"priority", "project_id", "rxtx_base", "share_address", "updated_at", "vlan", "vpn_private_address", "vpn_public_address", "vpn_public_port"} {
		view[word] = nil
	}
	return view
}

func tenantNetworkView(n *network.Network) map[string]any {
	return map[string]any{"id": n.ID.String(), "label": n.Name, "cidr": "None"}
}

func (s *server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	return s.networkList(w, r, networkView)
}

func (s *server) listTenantNetworks(w http.ResponseWriter, r *http.Request) error {
	return s.networkList(w, r, tenantNetworkView)
}

func (s *server) networkList(w http.ResponseWriter, r *http.Request, view func(*network.Network) map[string]any) error {
	page, err := s.network.Networks.List(r.Context(), network.Query{})
	if err != nil {
		return err
	}
	views := []map[string]any{}
	for _, n := range page.Items {
		views = append(views, view(n))
	}
	return answer(w, http.StatusOK, map[string]any{"networks": views})
}

func (s *server) showNetwork(w http.ResponseWriter, r *http.Request) error {
	return s.networkOne(w, r, networkView)
}

func (s *server) showTenantNetwork(w http.ResponseWriter, r *http.Request) error {
	return s.networkOne(w, r, tenantNetworkView)
}

func (s *server) networkOne(w http.ResponseWriter, r *http.Request, view func(*network.Network) map[string]any) error {
	id, err := oldID(r, "Network")
	if err != nil {
		return err
	}
	n, err := s.network.Networks.Get(r.Context(), id)
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, map[string]any{"network": view(n)})
}
