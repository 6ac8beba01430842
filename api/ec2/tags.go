package ec2

import (
	"maps"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// tagSet is how tags are shown; nil when there are none.
type tagSet struct {
	Items []tag `xml:"item"`
}

type tag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func tagsOf(tags map[string]string) *tagSet {
	if len(tags) == 0 {
		return nil
	}
	set := new(tagSet)
	for _, k := range keysOf(tags) {
		set.Items = append(set.Items, tag{k, tags[k]})
	}
	return set
}

func keysOf(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// A tag of what has only texts for tags is kept as "key=value". What other dialects do not allow in a text
// is written as in a URL.
var escaping = strings.NewReplacer("%", "%25", "=", "%3D", ",", "%2C", "/", "%2F")

func tagText(key, value string) string {
	return escaping.Replace(key) + "=" + strings.ReplaceAll(escaping.Replace(value), "%3D", "=")
}

// readTag reads any text as a tag. One that was not written here may have no value.
func readTag(text string) (key, value string) {
	key, value, _ = strings.Cut(text, "=")
	plain, err := url.PathUnescape(key)
	if err != nil {
		return key, value
	}
	plainValue, err := url.PathUnescape(value)
	if err != nil {
		return key, value
	}
	return plain, plainValue
}

func textTags(texts []string) map[string]string {
	tags := map[string]string{}
	for _, t := range texts {
		key, value := readTag(t)
		tags[key] = value
	}
	return tags
}

func tagTexts(tags map[string]string) []string {
	var texts []string
	for _, k := range keysOf(tags) {
		texts = append(texts, tagText(k, tags[k]))
	}
	return texts
}

// named are tags with the thing's name, where EC2's clients look for it.
func named(name string, texts []string) map[string]string {
	tags := textTags(texts)
	if _, own := tags["Name"]; !own && name != "" {
		tags["Name"] = name
	}
	return tags
}

// A tagging sets tags and drops others.
type tagging struct {
	set  map[string]string
	drop map[string]*string // nil: whatever value it has
	all  bool               // drops all
}

func (t *tagging) drops(key, value string) bool {
	want, ok := t.drop[key]
	return t.all || ok && (want == nil || *want == value)
}

// texts gives tags after the change.
func (t *tagging) texts(was []string) []string {
	kept := slices.DeleteFunc(slices.Clone(was), func(text string) bool {
		key, value := readTag(text)
		_, again := t.set[key]
		return again || t.drops(key, value)
	})
	kept = append(kept, tagTexts(t.set)...)
	slices.Sort(kept)
	return kept
}

const maxTags = 50 // of one resource (EC2 User Guide, "Tag restrictions")

func checkTags(tags map[string]string) error {
	if len(tags) > maxTags {
		return refuse("TagLimitExceeded", "A resource can have %d tags at most.", maxTags)
	}
	for k, v := range tags {
		switch {
		case k == "" || utf8.RuneCountInString(k) > 127:
			return refuse("InvalidParameterValue", "Tag keys have 1 to 127 characters.")
		case utf8.RuneCountInString(v) > 255:
			return refuse("InvalidParameterValue", "Tag values have at most 255 characters.")
		case strings.HasPrefix(strings.ToLower(k), "aws:"):
			return refuse("InvalidParameterValue", "Tag keys starting with 'aws:' are reserved for internal use")
		case !utf8.ValidString(k) || !utf8.ValidString(v):
			return refuse("InvalidParameterValue", "Tags are in UTF-8.")
		}
	}
	return nil
}

// pairs reads "Tag.N.Key" and "Tag.N.Value" below p.
func (p *param) pairs() (map[string]string, error) {
	tags := map[string]string{}
	for _, t := range p.list("Tag") {
		if _, twice := tags[t.text("Key")]; twice {
			return nil, refuse("InvalidParameterValue", "Duplicate tag key '%s' specified.", printable(t.text("Key")))
		}
		tags[t.text("Key")] = t.text("Value")
	}
	return tags, checkTags(tags)
}

// specifications reads the tags that a new resource is to have. Those of others, which would come
// with it elsewhere, are refused.
func (c *call) specifications(kind string) (map[string]string, error) {
	tags := map[string]string{}
	for _, p := range c.in.list("TagSpecification") {
		if of := p.text("ResourceType"); of != kind {
			return nil, refuse("UnsupportedOperation", "Tags of a new '%s' cannot be given with this request.", printable(of))
		}
		more, err := p.pairs()
		if err != nil {
			return nil, err
		}
		maps.Copy(tags, more)
	}
	return tags, checkTags(tags)
}

func (s *Server) createTags(c *call) (any, error) {
	set, err := c.in.pairs()
	if err != nil {
		return nil, err
	}
	if len(set) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter Tag")
	}
	return s.tag(c, tagging{set: set})
}

// deleteTags drops tags: those of a key whatever their value if none is given, and all if there is no key.
func (s *Server) deleteTags(c *call) (any, error) {
	t := tagging{drop: map[string]*string{}}
	for _, p := range c.in.list("Tag") {
		key := p.text("Key")
		t.drop[key] = nil
		if p.has("Value") {
			v := p.text("Value")
			t.drop[key] = &v
		}
	}
	t.all = len(t.drop) == 0
	return s.tag(c, t)
}

// tag changes the tags of all resources that the request names, or of none.
func (s *Server) tag(c *call, t tagging) (any, error) {
	ids := c.in.texts("ResourceId")
	if len(ids) == 0 {
		return nil, refuse("MissingParameter", "The request must contain the parameter ResourceId")
	}
	return together(s, c, func(c *call, tx *state.Tx) (done, error) {
		for _, id := range ids {
			if err := s.tagOne(c, tx, id, t); err != nil {
				return done{}, err
			}
		}
		return done{Value: true}, nil
	})
}

func (s *Server) tagOne(c *call, tx *state.Tx, id string, t tagging) error {
	kind, _, _ := strings.Cut(id, "-")
	switch kind {
	case "i":
		srv, err := s.server(c, tx, id)
		if err != nil {
			return err
		}
		return s.tagServer(c, srv, t)
	case "ami", "aki", "ari":
		i, err := s.image(c, tx, id, kind)
		if err != nil {
			return err
		}
		_, err = s.Images.Update(c.ctx, i.ID, func(i *image.Image) error {
			i.Tags = t.texts(i.Tags)
			return nil
		})
		return err
	case "sg":
		g, err := s.group(c, tx, id)
		if err != nil {
			return err
		}
		return retag(c, s.Networks.Groups, g, t, func(g *network.Group) *[]string { return &g.Tags })
	case "vpc":
		n, err := s.vpc(c, tx, id)
		if err != nil {
			return err
		}
		return retag(c, s.Networks.Networks, n, t, func(n *network.Network) *[]string { return &n.Tags })
	case "subnet":
		sub, err := s.subnet(c, tx, id)
		if err != nil {
			return err
		}
		return retag(c, s.Networks.Subnets, sub, t, func(sub *network.Subnet) *[]string { return &sub.Tags })
	}
	return refuse("InvalidID", "The ID '%s' is not valid, or resources of its type have no tags here.", printable(id))
}

// retag changes the tags of a part of the network.
func retag[T any](c *call, all network.Collection[T], thing *T, t tagging, tags func(*T) *[]string) error {
	_, err := all.Update(c.ctx, idOfThing(thing), 0, func(thing *T) error {
		*tags(thing) = t.texts(*tags(thing))
		return nil
	})
	return err
}

// tagServer changes an instance's pairs. The tag Name is its name.
func (s *Server) tagServer(c *call, srv *compute.Server, t tagging) error {
	was := instanceTags(srv)
	if name, ok := t.set["Name"]; ok || t.drops("Name", was["Name"]) {
		if name == "" {
			name = unnamed
		}
		if _, err := s.Compute.Update(c.ctx, srv.ID, compute.Edit{Name: &name}); err != nil {
			return err
		}
	}
	pairs := maps.Clone(srv.Metadata)
	if pairs == nil {
		pairs = map[string]string{}
	}
	maps.DeleteFunc(pairs, t.drops)
	maps.Copy(pairs, t.set)
	delete(pairs, "Name")
	_, err := s.Compute.SetMetadata(c.ctx, srv.ID, pairs, true)
	return err
}

type taggedItem struct {
	ResourceID string `xml:"resourceId"`
	Type       string `xml:"resourceType"`
	Key        string `xml:"key"`
	Value      string `xml:"value"`
}

// describeTags lists the tags of what is the account's own.
func (s *Server) describeTags(c *call) (any, error) {
	filters, err := c.filters(known("resource-id resource-type key value"))
	if err != nil {
		return nil, err
	}
	var items []taggedItem
	err = s.eachTagged(c, func(id, kind string, tags map[string]string) {
		for _, k := range keysOf(tags) {
			if keeps(filters, facts{"resource-id": {id}, "resource-type": {kind}, "key": {k}, "value": {tags[k]}}, map[string]string{k: tags[k]}) {
				items = append(items, taggedItem{id, kind, k, tags[k]})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	items, next, err := page(c, items, 5, 1000)
	return struct {
		Tags      set[taggedItem] `xml:"tagSet"`
		NextToken string          `xml:"nextToken,omitempty"`
	}{set[taggedItem]{items}, next}, err
}

// eachTagged visits everything of the account that can have tags.
func (s *Server) eachTagged(c *call, visit func(id, kind string, tags map[string]string)) error {
	view, err := s.Compute.List(c.ctx, compute.Query{})
	if err != nil {
		return err
	}
	for _, srv := range view.Servers {
		visit(idOf("i", srv.ID), "instance", instanceTags(srv))
	}
	images, err := s.Images.List(c.ctx, image.Query{Owner: c.actor.ProjectID})
	if err != nil {
		return err
	}
	for _, i := range images.Items {
		prefix, _ := imageKind(i)
		visit(idOf(prefix, i.ID), "image", textTags(i.Tags))
	}
	groups, err := s.groups(c)
	if err != nil {
		return err
	}
	for _, g := range groups {
		visit(idOf("sg", g.ID), "security-group", textTags(g.Tags))
	}
	nets, err := s.networks(c)
	if err != nil {
		return err
	}
	for _, n := range nets {
		if n.ProjectID != c.actor.ProjectID {
			continue
		}
		visit(idOf("vpc", n.ID), "vpc", named(n.Name, n.Tags))
		for _, sub := range subnetsOf(view.Tx, n) {
			visit(idOf("subnet", sub.ID), "subnet", named(sub.Name, sub.Tags))
		}
	}
	return nil
}
