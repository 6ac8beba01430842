package glance

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/wire"
)

// The versions that are served, the newest first ("Image API versions"). 2.14 and 2.16 are
// those with a cache on each node, which there is none of here.
var served = []string{"v2.15", "v2.13", "v2.12", "v2.11", "v2.10", "v2.9", "v2.8", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0"}

type version struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Links  []link `json:"links"`
}

type link struct {
	Rel  string `json:"rel"`
	Href string `json:"href"`
}

func versionsChoice(w http.ResponseWriter, r *http.Request) error {
	return writeVersions(w, r, http.StatusMultipleChoices)
}

func versions(w http.ResponseWriter, r *http.Request) error {
	return writeVersions(w, r, http.StatusOK)
}

func writeVersions(w http.ResponseWriter, r *http.Request, status int) error {
	list := make([]version, len(served))
	for n, id := range served {
		list[n] = version{ID: id, Status: "SUPPORTED", Links: []link{{"self", wire.BaseURL(r) + prefix + "/v2/"}}}
	}
	list[0].Status = "CURRENT"
	return wire.WriteJSON(w, status, map[string]any{"versions": list})
}
