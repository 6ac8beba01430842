package metadata

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/core/compute"
)

// isPassword reports whether a path is /openstack/VERSION/password, which came with 2013-04-04.
func isPassword(path []string) bool {
	return len(path) == 3 && path[0] == "openstack" && path[2] == "password" &&
		(path[1] == "latest" || slices.Contains(versions, path[1]) && at(path[1], "2013-04-04"))
}

// password answers what the guest has told of its administrator's password, and lets it tell one, once. Windows guests do, encrypted with
// their owner's key.
func (s *Server) password(w http.ResponseWriter, r *http.Request, g *compute.Guest) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		io.WriteString(w, g.Metadata.Told)
		return
	case http.MethodPost:
	default:
		w.Header().Set("Allow", "GET, HEAD, POST")
		http.Error(w, "a password is told with POST", http.StatusMethodNotAllowed)
		return
	}
	if g.Metadata.Told != "" {
		http.Error(w, "a password was told already", http.StatusConflict)
		return
	}
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, compute.MaxPassword))
	if tooLong := new(http.MaxBytesError); errors.As(err, &tooLong) {
		http.Error(w, "a password is no longer than 1020 bytes", http.StatusBadRequest)
		return
	}
	if err != nil {
		return // the guest went away
	}
	if s.Tell == nil {
		http.Error(w, "nobody takes a password in here", http.StatusNotFound)
		return
	}
	if err := s.Tell(r.Context(), g.ID, string(text)); err != nil {
		slog.WarnContext(r.Context(), "a guest's password was not passed on", "guest", g.ID, "err", err)
		http.Error(w, "the cloud cannot be reached now: tell it again later", http.StatusServiceUnavailable)
	}
}
