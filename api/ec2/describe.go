package ec2

import (
	"encoding/base64"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/host"
)

// A shown is an instance with what EC2 puts around it.
type shown struct {
	instance
	reservation, owner string
	tags               map[string]string
	hostLost           bool
}

func showServer(tx *state.Tx, srv *compute.Server) shown {
	i := shown{instance: instanceOf(tx, srv), reservation: reservationID(srv.ReservationID), owner: srv.ProjectID.Hex(), tags: instanceTags(srv)}
	if h, ok := host.Table().PeekOne(tx, srv.HostID); ok {
		i.hostLost = !h.Up()
	}
	return i
}

func reservationID(id string) string { return "r-" + strings.TrimPrefix(id, "r-") }

func (f found) show(tx *state.Tx) shown {
	if f.server != nil {
		return showServer(tx, f.server)
	}
	return shown{instance: goneOf(f.gone), reservation: reservationID(f.gone.TargetID.Tail()[9:]), owner: f.gone.ProjectID.Hex()}
}

var instanceFilters = known("architecture availability-zone client-token dns-name group-id group-name hypervisor image-id instance-id" +
	" instance-state-code instance-state-name instance-type instance.group-id instance.group-name ip-address kernel-id key-name" +
	" launch-index launch-time monitoring-state network-interface.addresses.association.public-ip network-interface.addresses.private-ip-address" +
	" network-interface.attachment.device-index network-interface.group-id network-interface.group-name network-interface.mac-address" +
	" network-interface.network-interface-id network-interface.owner-id network-interface.status network-interface.subnet-id" +
	" network-interface.vpc-id owner-id private-dns-name private-ip-address ramdisk-id reason reservation-id root-device-name" +
	" root-device-type state-reason-code subnet-id tenancy virtualization-type vpc-id")

func (i *shown) facts() facts {
	f := facts{"instance-id": {i.ID}, "instance-state-name": {i.State.Name}, "instance-state-code": number(i.State.Code),
		"image-id": {i.ImageID}, "instance-type": {i.Type}, "key-name": {i.KeyName}, "availability-zone": {i.Zone},
		"private-ip-address": {i.PrivateIP}, "ip-address": {i.PublicIP}, "reservation-id": {i.reservation}, "owner-id": {i.owner},
		"client-token": {i.ClientToken}, "architecture": {i.Architecture}, "launch-time": {i.LaunchTime}, "root-device-type": {i.RootType},
		"root-device-name": {i.RootName}, "virtualization-type": {i.Virtualization}, "hypervisor": {i.Hypervisor}, "tenancy": {i.Tenancy},
		"kernel-id": {i.Kernel}, "ramdisk-id": {i.Ramdisk}, "launch-index": number(i.LaunchIndex), "reason": {i.Reason},
		"monitoring-state": {i.Monitoring}, "dns-name": {i.PublicDNS}, "private-dns-name": {i.PrivateDNS},
		"vpc-id": {i.VpcID}, "subnet-id": {i.SubnetID}, "instance-status.status": {i.status()}, "system-status.status": {i.status()}}
	if i.StateReason != nil {
		f["state-reason-code"] = []string{i.StateReason.Code}
	}
	for _, g := range i.Groups.Items {
		f.add("", "instance.group-id", g.ID, "group-id", g.ID, "instance.group-name", g.Name, "group-name", g.Name)
	}
	for _, n := range i.Interfaces.Items {
		f.add("network-interface.", "network-interface-id", n.ID, "subnet-id", n.SubnetID, "vpc-id", n.VpcID, "mac-address", n.MAC,
			"owner-id", n.OwnerID, "status", n.Status, "addresses.private-ip-address", n.PrivateIP,
			"addresses.association.public-ip", n.PublicIP, "attachment.device-index", strconv.Itoa(n.Index))
		for _, g := range n.Groups.Items {
			f.add("network-interface.", "group-id", g.ID, "group-name", g.Name)
		}
	}
	return f
}

// add gives names more values, in pairs.
func (f facts) add(prefix string, pairs ...string) {
	for n := 0; n < len(pairs); n += 2 {
		f[prefix+pairs[n]] = append(f[prefix+pairs[n]], pairs[n+1])
	}
}

// instances lists those of the account that the request asks for: the ones it names, or a page of all, the newest
// first, and after them those that were terminated of late.
func (s *Server) instances(c *call, names map[string]bool, also func(*shown) bool) (items []shown, next string, err error) {
	filters, err := c.filters(names)
	if err != nil {
		return nil, "", err
	}
	limit, err := c.limit(5, 1000)
	if err != nil {
		return nil, "", err
	}
	keep := func(i *shown) bool { return also(i) && keeps(filters, i.facts(), i.tags) }
	if ids := c.in.texts("InstanceId"); len(ids) > 0 {
		items, err = s.named(c, ids, keep)
		return items, "", err
	}
	from, err := readMark(c.in.text("NextToken"))
	if err != nil {
		return nil, "", err
	}
	if !from.gone {
		q := narrowed(filters)
		q.List, q.Past = query.List{Limit: limit, Marker: from.id}, true
		tx, err := s.State.View(c.ctx)
		if err != nil {
			return nil, "", err
		}
		q.Keep = func(srv *compute.Server) bool { i := showServer(tx, srv); return keep(&i) }
		view, err := s.Compute.List(c.ctx, q)
		if err != nil {
			return nil, "", err
		}
		for _, srv := range view.Servers {
			items = append(items, showServer(view.Tx, srv))
		}
		if view.More {
			return items, mark{id: view.Servers[len(view.Servers)-1].ID}.String(), nil
		}
	}
	return s.withGone(c, items, from, limit, keep)
}

// named are the instances that a request names; each must be there.
func (s *Server) named(c *call, ids []string, keep func(*shown) bool) ([]shown, error) {
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	var items []shown
	seen := map[string]bool{}
	for _, id := range ids {
		f, err := s.find(c, tx, id)
		if err != nil {
			return nil, err
		}
		if i := f.show(tx); !seen[id] && keep(&i) {
			items = append(items, i)
		}
		seen[id] = true
	}
	return items, nil
}

// withGone adds to a page of instances those that were terminated of late.
func (s *Server) withGone(c *call, items []shown, from mark, limit int, keep func(*shown) bool) ([]shown, string, error) {
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, "", err
	}
	all, at := s.gone(c, tx), 0
	if from.gone && !from.id.IsZero() {
		at = len(all) // it is forgotten, and all before it
		for n, o := range all {
			if o.ID == from.id {
				at = n + 1
			}
		}
	}
	last := resource.ID{}
	for _, o := range all[at:] {
		i := found{gone: o}.show(tx)
		if !keep(&i) {
			continue
		}
		if limit > 0 && len(items) == limit {
			return items, mark{gone: true, id: last}.String(), nil
		}
		items, last = append(items, i), o.ID
	}
	return items, "", nil
}

// A mark says after which instance the next page begins.
type mark struct {
	gone bool // among those that are gone, and then after the one that this operation took away
	id   resource.ID
}

func (m mark) String() string {
	kind := byte(0)
	if m.gone {
		kind = 1
	}
	return base64.RawURLEncoding.EncodeToString(append([]byte{kind}, m.id[:]...))
}

func readMark(token string) (mark, error) {
	if token == "" {
		return mark{}, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(raw) != 1+len(resource.ID{}) || raw[0] > 1 {
		return mark{}, badToken(token)
	}
	return mark{raw[0] == 1, resource.ID(raw[1:])}, nil
}

// narrowed is the query that finds by an index what the filters may keep; they are asked of it all the same.
func narrowed(filters []filter) compute.Query {
	var q compute.Query
	for _, f := range filters {
		values, plain := f.plain()
		if !plain {
			continue
		}
		switch {
		case f.name == "instance-state-name":
			q.Standings = standings(values)
		case len(values) != 1:
		case f.name == "key-name" && values[0] != "":
			q.KeyName = values[0]
		case f.name == "tag:Name" && values[0] != "" && values[0] != unnamed:
			q.Name = values[0]
		}
	}
	return q
}

// standings are all that are one of these states in EC2's words.
func standings(names []string) []compute.Standing {
	all := []compute.Standing{}
	for _, stage := range compute.Stages() {
		for _, task := range compute.Tasks() {
			standing := compute.Standing{Stage: stage, Task: task}
			for _, name := range names {
				if stateOf(standing).Name == name {
					all = append(all, standing)
					break
				}
			}
		}
	}
	return all
}

// reservation is EC2's name for instances that were launched together.
type reservation struct {
	ID      string         `xml:"reservationId"`
	OwnerID string         `xml:"ownerId"`
	Groups  set[groupItem] `xml:"groupSet"`
	Items   set[instance]  `xml:"instancesSet"`
}

func (s *Server) describeInstances(c *call) (any, error) {
	items, next, err := s.instances(c, instanceFilters, func(*shown) bool { return true })
	if err != nil {
		return nil, err
	}
	var answer struct {
		Reservations set[reservation] `xml:"reservationSet"`
		NextToken    string           `xml:"nextToken,omitempty"`
	}
	answer.NextToken = next
	at := map[string]int{}
	for _, i := range items {
		n, ok := at[i.reservation]
		if !ok {
			n = len(answer.Reservations.Items)
			at[i.reservation] = n
			answer.Reservations.Items = append(answer.Reservations.Items, reservation{ID: i.reservation, OwnerID: i.owner})
		}
		r := &answer.Reservations.Items[n]
		r.Items.Items = append(r.Items.Items, i.instance)
	}
	return answer, nil
}

type instanceStatus struct {
	ID     string        `xml:"instanceId"`
	Zone   string        `xml:"availabilityZone"`
	State  instanceState `xml:"instanceState"`
	System string        `xml:"systemStatus>status"`
	Status string        `xml:"instanceStatus>status"`
}

var statusFilters = known("availability-zone instance-state-code instance-state-name instance-status.status system-status.status")

func (i *shown) status() string {
	switch {
	case i.State != running:
		return "not-applicable"
	case i.hostLost:
		return "insufficient-data"
	}
	return "ok"
}

func (s *Server) describeInstanceStatus(c *call) (any, error) {
	all, err := c.in.bool("IncludeAllInstances")
	if err != nil {
		return nil, err
	}
	items, next, err := s.instances(c, statusFilters, func(i *shown) bool { return all || i.State == running })
	if err != nil {
		return nil, err
	}
	var answer struct {
		Statuses  set[instanceStatus] `xml:"instanceStatusSet"`
		NextToken string              `xml:"nextToken,omitempty"`
	}
	answer.NextToken = next
	for _, i := range items {
		answer.Statuses.Items = append(answer.Statuses.Items, instanceStatus{i.ID, i.Zone, i.State, i.status(), i.status()})
	}
	return answer, nil
}
