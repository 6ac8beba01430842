package metadata

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
)

// A Server answers guests. It is sure of who asks before it is called: the network
// driver lets no guest use another's address.
type Server struct {
	// Guest is the guest that a port belongs to.
	Guest func(port resource.ID) (compute.Guest, bool)
	// Tell passes a guest's password on to where its owner finds it; nil: it cannot.
	Tell func(ctx context.Context, guest resource.ID, text string) error
	Now  func() time.Time

	secret [32]byte // of session tokens; they end with the process, and guests then ask for another
}

// New makes a server.
func New(guest func(port resource.ID) (compute.Guest, bool)) *Server {
	s := &Server{Guest: guest, Now: time.Now}
	rand.Read(s.secret[:])
	return s
}

// For answers one port's guest.
func (s *Server) For(port resource.ID) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g, ok := s.Guest(port)
		if !ok {
			http.Error(w, "no guest is known here", http.StatusNotFound)
			return
		}
		s.serve(w, r, &g)
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request, g *compute.Guest) {
	path := strings.FieldsFunc(r.URL.Path, func(c rune) bool { return c == '/' })
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	if len(path) == 3 && path[1] == "api" && path[2] == "token" && slices.Contains(ec2Versions, path[0]) {
		s.token(w, r, g)
		return
	}
	if isPassword(path) {
		s.password(w, r, g)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET is answered here", http.StatusMethodNotAllowed)
		return
	}
	if len(path) > 0 && path[0] == "openstack" {
		openstack(w, g, path[1:])
		return
	}
	if t := r.Header.Get("X-aws-ec2-metadata-token"); t != "" && !s.valid(t, g.ID) {
		http.Error(w, "the token is not valid", http.StatusUnauthorized)
		return
	}
	ec2(w, g, path)
}

// openstack answers below /openstack.
func openstack(w http.ResponseWriter, g *compute.Guest, path []string) {
	switch {
	case len(path) == 0:
		list(w, append(slices.Clone(versions), "latest"))
		return
	case path[0] == "content" && len(path) == 2:
		if n, err := strconv.Atoi(path[1]); err == nil && n >= 0 && n < len(g.Metadata.Files) {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(g.Metadata.Files[n].Data)
			return
		}
	case path[0] != "latest" && !slices.Contains(versions, path[0]):
	case len(path) == 1:
		names := documents(g, path[0])
		if isPassword([]string{"openstack", path[0], "password"}) {
			names = append(names, "password")
		}
		list(w, names)
		return
	case len(path) == 2:
		if text, ok := document(g, path[0], path[1], randomSeed()); ok {
			if strings.HasSuffix(path[1], ".json") {
				w.Header().Set("Content-Type", "application/json")
			} else {
				w.Header().Set("Content-Type", "application/octet-stream")
			}
			w.Write(text)
			return
		}
	}
	http.Error(w, "404 - Not Found", http.StatusNotFound)
}

func randomSeed() string {
	var seed [512]byte
	rand.Read(seed[:])
	return base64.StdEncoding.EncodeToString(seed[:])
}

func list(w http.ResponseWriter, names []string) {
	w.Write([]byte(strings.Join(names, "\n")))
}

// ec2Versions are those that EC2's service lists and guests ask for.
var ec2Versions = []string{"1.0", "2007-01-19", "2007-03-01", "2007-08-29", "2007-10-10", "2007-12-15", "2008-02-01",
	"2008-09-01", "2009-04-04", "2021-03-23", "latest"}

// ec2 answers EC2's tree.
func ec2(w http.ResponseWriter, g *compute.Guest, path []string) {
	if len(path) == 0 {
		list(w, append(slices.Clone(ec2Versions), "openstack"))
		return
	}
	if !slices.Contains(ec2Versions, path[0]) {
		http.Error(w, "404 - Not Found", http.StatusNotFound)
		return
	}
	if len(path) == 1 {
		names := []string{"meta-data/"}
		if len(g.Metadata.UserData) > 0 {
			names = append(names, "user-data")
		}
		list(w, names)
		return
	}
	switch path[1] {
	case "user-data":
		if len(path) == 2 && len(g.Metadata.UserData) > 0 {
			w.Header().Set("Content-Type", "application/octet-stream")
			w.Write(g.Metadata.UserData)
			return
		}
	case "meta-data":
		if text, ok := walk(ec2Tree(g), path[2:]); ok {
			w.Write([]byte(text))
			return
		}
	}
	http.Error(w, "404 - Not Found", http.StatusNotFound)
}

// walk gives the text of a leaf, or the list of a folder.
func walk(tree map[string]any, path []string) (string, bool) {
	if len(path) > 0 {
		switch node := tree[path[0]].(type) {
		case string:
			return node, len(path) == 1
		case map[string]any:
			return walk(node, path[1:])
		case keyNode:
			return walk(node.tree, path[1:])
		}
		return "", false
	}
	var names []string
	for name, node := range tree {
		switch n := node.(type) {
		case map[string]any:
			name += "/"
		case keyNode:
			name += "=" + n.name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, "\n"), true
}

// token answers PUT /latest/api/token (IMDSv2): the token is bound to the guest and ends
// after the seconds it was asked for, 1 to 21,600.
func (s *Server) token(w http.ResponseWriter, r *http.Request, g *compute.Guest) {
	if r.Method != http.MethodPut {
		w.Header().Set("Allow", "PUT")
		http.Error(w, "a token is asked for with PUT", http.StatusMethodNotAllowed)
		return
	}
	if r.Header.Get("X-Forwarded-For") != "" {
		http.Error(w, "a token is not given through a proxy", http.StatusForbidden)
		return
	}
	seconds, err := strconv.Atoi(r.Header.Get("X-aws-ec2-metadata-token-ttl-seconds"))
	if err != nil || seconds < 1 || seconds > 21600 {
		http.Error(w, "X-aws-ec2-metadata-token-ttl-seconds must be from 1 to 21600", http.StatusBadRequest)
		return
	}
	w.Header().Set("X-aws-ec2-metadata-token-ttl-seconds", strconv.Itoa(seconds))
	w.Write([]byte(s.sign(g.ID, s.Now().Add(time.Duration(seconds)*time.Second).Unix())))
}

func (s *Server) sign(guest resource.ID, expires int64) string {
	raw := binary.BigEndian.AppendUint64(nil, uint64(expires))
	mac := hmac.New(sha256.New, s.secret[:])
	mac.Write(guest[:])
	mac.Write(raw)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(raw))
}

func (s *Server) valid(token string, guest resource.ID) bool {
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) != 8+sha256.Size {
		return false
	}
	expires := int64(binary.BigEndian.Uint64(raw))
	return subtle.ConstantTimeCompare([]byte(s.sign(guest, expires)), []byte(token)) == 1 && s.Now().Unix() < expires
}
