package ec2

import (
	"slices"
	"strings"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// tagTexts are tags as a network's parts keep them.
func tagTexts(tags map[string]string) []string {
	var texts []string
	for _, k := range mapKeys(tags) {
		texts = append(texts, k+"="+tags[k])
	}
	return texts
}

// retag gives texts with some tags set and others dropped. drop with a nil value drops whatever value
// a tag has.
func retag(texts []string, set map[string]string, drop map[string]*string) []string {
	kept := slices.DeleteFunc(slices.Clone(texts), func(t string) bool {
		key, value, _ := strings.Cut(t, "=")
		_, again := set[key]
		want, dropped := drop[key]
		return again || dropped && (want == nil || *want == value)
	})
	kept = append(kept, tagTexts(set)...)
	slices.Sort(kept)
	return kept
}

func checkTags(tags map[string]string) error {
	for k, v := range tags {
		switch {
		case k == "" || len(k) > 127 || len(v) > 127:
			return refuse("InvalidParameterValue", "Tag keys have 1 to 127 characters here, and values at most 127.")
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			return refuse("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
		case strings.ContainsAny(k, "=,/") || strings.ContainsAny(v, ",/"):
			return refuse("InvalidParameterValue", "Tags cannot hold '=' in their keys, nor ',' or '/', here.")
		}
	}
	return nil
}

func (s *Server) createTags(c *call) (any, error) {
	set := map[string]string{}
	for _, p := range c.pairs("Tag", "Key", "Value") {
		set[p[0]] = p[1]
	}
	if len(set) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter Tag")
	}
	return s.tag(c, set, nil)
}

func (s *Server) deleteTags(c *call) (any, error) {
	drop := map[string]*string{}
	for n := 1; c.form.Has("Tag." + itoa(n) + ".Key"); n++ {
		at := "Tag." + itoa(n) + "."
		drop[c.form.Get(at+"Key")] = nil
		if c.form.Has(at + "Value") {
			v := c.form.Get(at + "Value")
			drop[c.form.Get(at+"Key")] = &v
		}
	}
	return s.tag(c, nil, drop)
}

// tag changes the tags of every resource that the request names, after it has found them all.
func (s *Server) tag(c *call, set map[string]string, drop map[string]*string) (any, error) {
	ids := c.list("ResourceId")
	if len(ids) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter ResourceId")
	}
	if err := checkTags(set); err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	var changes []func() error
	for _, id := range ids {
		change, err := s.tagger(c, tx, id, set, drop)
		if err != nil {
			return nil, err
		}
		changes = append(changes, change)
	}
	for _, change := range changes {
		if err := change(); err != nil {
			return nil, err
		}
	}
	return done{Value: true}, nil
}

// tagger is what changes the tags of one resource.
func (s *Server) tagger(c *call, tx *state.Tx, id string, set map[string]string, drop map[string]*string) (func() error, error) {
	kind, _, _ := strings.Cut(id, "-")
	switch kind {
	case "i":
		srv, err := s.server(c, tx, id)
		return func() error { return s.tagServer(c, srv, set, drop) }, err
	case "ami", "aki", "ari":
		i, err := s.image(c, tx, id)
		return func() error {
			_, err := s.Images.Update(c.ctx, i.ID, func(i *image.Image) error {
				i.Tags = retag(i.Tags, set, drop)
				return nil
			})
			return err
		}, err
	case "sg":
		g, err := s.group(c, tx, id)
		return func() error {
			_, err := s.Networks.Groups.Update(c.ctx, g.ID, 0, func(g *network.Group) error {
				g.Tags = retag(g.Tags, set, drop)
				return nil
			})
			return err
		}, err
	case "vpc":
		n, err := s.vpc(c, tx, id)
		return func() error {
			_, err := s.Networks.Networks.Update(c.ctx, n.ID, 0, func(n *network.Network) error {
				n.Tags = retag(n.Tags, set, drop)
				return nil
			})
			return err
		}, err
	case "subnet":
		sub, err := s.subnet(c, tx, id)
		return func() error {
			_, err := s.Networks.Subnets.Update(c.ctx, sub.ID, 0, func(sub *network.Subnet) error {
				sub.Tags = retag(sub.Tags, set, drop)
				return nil
			})
			return err
		}, err
	}
	return nil, refuse("InvalidID", "The ID '%s' is not valid, or resources of its type have no tags here.", printable(id))
}

// tagServer changes an instance's pairs. Its name is its name.
func (s *Server) tagServer(c *call, srv *compute.Server, set map[string]string, drop map[string]*string) error {
	if name := set["Name"]; name != "" && name != srv.Name {
		if _, err := s.Compute.Update(c.ctx, srv.ID, compute.Edit{Name: &name}); err != nil {
			return err
		}
	}
	if len(set) > 0 {
		if _, err := s.Compute.SetMetadata(c.ctx, srv.ID, set, false); err != nil {
			return err
		}
	}
	for key, value := range drop {
		if have, ok := srv.Metadata[key]; ok && (value == nil || *value == have) {
			if err := s.Compute.DropMetadata(c.ctx, srv.ID, key); err != nil {
				return err
			}
		}
	}
	return nil
}

type taggedItem struct {
	ResourceID string `xml:"resourceId"`
	Type       string `xml:"resourceType"`
	Key        string `xml:"key"`
	Value      string `xml:"value"`
}

func (s *Server) describeTags(c *call) (any, error) {
	filters, err := c.filters(known("resource-id", "resource-type", "key", "value"))
	if err != nil {
		return nil, err
	}
	var items []taggedItem
	add := func(id, kind string, tags map[string]string) {
		for _, k := range mapKeys(tags) {
			if keeps(filters, facts{"resource-id": {id}, "resource-type": {kind}, "key": {k}, "value": {tags[k]}}, map[string]string{k: tags[k]}) {
				items = append(items, taggedItem{id, kind, k, tags[k]})
			}
		}
	}
	view, err := s.Compute.List(c.ctx, compute.Query{})
	if err != nil {
		return nil, err
	}
	for _, srv := range view.Servers {
		add(idOf("i", srv.ID), "instance", withName(srv))
	}
	images, err := s.Images.List(c.ctx, image.Query{Owner: c.actor.ProjectID})
	if err != nil {
		return nil, err
	}
	for _, i := range images.Items {
		prefix, _ := imageKind(i)
		add(idOf(prefix, i.ID), "image", textTags(i.Tags))
	}
	groups, err := s.groups(c)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		add(idOf("sg", g.ID), "security-group", textTags(g.Tags))
	}
	nets, err := s.networks(c)
	if err != nil {
		return nil, err
	}
	for _, n := range nets {
		add(idOf("vpc", n.ID), "vpc", textTags(n.Tags))
		for _, sub := range subnetsOf(view.Tx, n) {
			add(idOf("subnet", sub.ID), "subnet", textTags(sub.Tags))
		}
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Items     []taggedItem `xml:"tagSet>item"`
		NextToken string       `xml:"nextToken,omitempty"`
	}{items, next}, err
}
