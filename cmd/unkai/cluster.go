package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// A cluster is what this controller does as one of several.
type cluster struct {
	*membership
	cloud     *cloud
	engine    *etcd.Engine
	transport *http.Transport // to other controllers
	hosts     *relay.Hosts
	watch     watch
}

func newCluster(c *cloud, m *membership, e *etcd.Engine) (*cluster, error) {
	authority, err := os.ReadFile(m.file(authorityFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return nil, errors.New("the authority's certificate is damaged")
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := m.certificate()
			return &cert, err
		}}
	// A connection is given up before the other end does so: then no request meets its end.
	k := &cluster{membership: m, cloud: c, engine: e, transport: &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64, IdleConnTimeout: idleAtMost / 2,
		DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext, TLSHandshakeTimeout: 5 * time.Second}}
	k.hosts = &relay.Hosts{Transport: k.transport, Leader: k.leader, Own: m.Link}
	return k, nil
}

// front is where clients come in.
func (c *cloud) front() http.Handler {
	if c.cluster == nil {
		return c.handler()
	}
	return &relay.Front{Here: c.handler(), State: c.state, Leader: c.cluster.leader, Transport: c.cluster.transport}
}

// links is where hosts and other controllers come in.
func (c *cloud) links() http.Handler {
	if c.cluster == nil {
		return c.hosts
	}
	others := &relay.Server{Authority: c.authority, State: c.state, Clients: c.handler(), Operators: c.control(clientsAt{}), Blobs: own{c.blobs},
		Hub: c.hub, Call: c.hosts.Pass, Health: c.cluster.health, MayJoin: c.cluster.mayLetIn, Join: c.cluster.letIn, Now: time.Now,
		Secrets: func() ([]byte, error) { return json.MarshalIndent(c.secrets, "", "  ") }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/controller/") {
			others.ServeHTTP(w, r)
			return
		}
		c.hosts.ServeHTTP(w, r)
	})
}

// leader is where the controller is that leads, when it is another.
func (k *cluster) leader() (string, bool) {
	member := k.engine.Leader()
	if member == 0 || member == k.engine.Self() {
		return "", false
	}
	c, ok := host.ControllerOf(k.cloud.state.Latest(), member)
	if !ok {
		return "", false
	}
	return c.Link, true
}

// handOver has another controller lead, of those that answer the one that has heard the most.
func (k *cluster) handOver(ctx context.Context) error {
	if len(k.others()) == 0 || !k.cloud.state.Leads() {
		return nil
	}
	return k.engine.HandOver(ctx, k.cloud.state, k.successors(ctx))
}

// successors are the members of the other controllers that answer, the one that has heard the most first. Not nil: nobody else is to be asked.
func (k *cluster) successors(ctx context.Context) []uint64 {
	found := k.probe(ctx)
	all := slices.DeleteFunc(slices.Collect(host.Controllers().All(k.cloud.state.Latest())), func(c *host.Controller) bool {
		_, answers := found[c.Name]
		return c.Name == k.Name || !answers
	})
	slices.SortStableFunc(all, func(a, b *host.Controller) int { return cmp.Compare(found[b.Name].Revision, found[a.Name].Revision) })
	members := []uint64{}
	for _, c := range all {
		members = append(members, c.Member)
	}
	return members
}

// leave has another controller lead before this one ends, so that nobody has to notice first that it is gone.
func (k *cluster) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leavesWithin)
	defer cancel()
	if err := k.handOver(ctx); err != nil {
		slog.WarnContext(ctx, "this controller ends, and could not have another lead before", "err", err)
	}
}

// leavesWithin is how long a controller that is told to end goes on because it leads.
const leavesWithin = 5 * time.Second

// others are where the other controllers are.
func (k *cluster) others() []string {
	var links []string
	for c := range host.Controllers().All(k.cloud.state.Latest()) {
		if c.Name != k.Name {
			links = append(links, c.Link)
		}
	}
	return links
}

// present tells the one that leads where this controller is, again and again until it knows, and whenever that changes.
func (k *cluster) present(ctx context.Context, url string) error {
	is := host.Controller{Member: k.engine.Self(), Link: k.Link, URL: url, Version: version}
	is.Name = k.Name
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		var err error
		if is.Speaks, err = speaks(k.cloud.dir); err == nil {
			err = k.tell(ctx, is)
		}
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "could not tell the other controllers where this one is", "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (k *cluster) tell(ctx context.Context, is host.Controller) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	shows, err := k.certificate()
	if err != nil || host.Presented(k.cloud.state.Latest(), &is, shows.Leaf) {
		return err
	}
	if k.cloud.state.Leads() {
		return host.Present(identity.Internal(ctx), k.cloud.state, is, shows.Leaf)
	}
	link, ok := k.leader()
	if !ok {
		return errors.New("no controller leads, or where it is is not known yet")
	}
	return relay.Post(ctx, k.transport, link, "present", relay.Presentation{Controller: is, Certificate: shows.Leaf.Raw}, nil)
}

// dismiss takes another controller out for good. What it has on its disk is of no use to anybody then.
func (c *cloud) dismiss(ctx context.Context, name string) error {
	if c.cluster == nil {
		return fault.Errorf(fault.Invalid, "This is the only controller.")
	}
	if c.cluster.Etcd != nil && name != c.cluster.Name {
		if !slices.ContainsFunc(slices.Collect(host.Controllers().All(c.state.Latest())), func(k *host.Controller) bool { return k.Name == name }) {
			return fault.Missing("controller", name)
		}
		return host.Dismiss(ctx, c.state, name)
	}
	if name == c.cluster.Name {
		return fault.Errorf(fault.Conflict, "%s leads now. End it first; then another leads, and can dismiss it.", name)
	}
	for k := range host.Controllers().All(c.state.Latest()) {
		if k.Name != name {
			continue
		}
		// The engine first: a controller that is unknown and still has a vote would be forgotten.
		if err := c.cluster.engine.RemoveMember(ctx, k.Member); err != nil {
			return err
		}
		return host.Dismiss(ctx, c.state, name)
	}
	// One that was let in and never came: it is known by its address.
	all, err := c.cluster.engine.Members(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Name == name || m.URL == name {
			return errors.Join(c.cluster.engine.RemoveMember(ctx, m.ID), host.Dismiss(ctx, c.state, m.Name), host.Dismiss(ctx, c.state, m.URL))
		}
	}
	return fault.Missing("controller", name)
}

// othersJoinWithin is how long a controller that joins waits for one that joins just now: the engine takes in one at a time.
const othersJoinWithin = 20 * time.Second

// mayLetIn tells why a controller cannot join.
func (k *cluster) mayLetIn(ctx context.Context, name, url string) error {
	if k.Etcd != nil {
		return fault.Errorf(fault.Conflict, "These controllers have their state in an etcd of its own: start the new one with the same --etcd.")
	}
	for end := time.Now().Add(othersJoinWithin); ; {
		all, err := k.engine.Members(ctx)
		if err != nil {
			return err
		}
		if err := mayBeMember(all, name, url); !fault.Is(err, fault.Unavailable) || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mayBeMember tells why there can be no new member: Unavailable while another one has no vote yet.
func mayBeMember(all []etcd.MemberInfo, name, url string) error {
	for _, m := range all {
		switch {
		case m.Name == name:
			return fault.Errorf(fault.Conflict, "There is a controller named %s. Dismiss it first, or give this one another --name.", name)
		case m.URL == url && (m.Name != "" || !m.Learner):
			return fault.Errorf(fault.Conflict, "There is a controller at %s. Dismiss it first (unkai controller dismiss).", url)
		case m.URL != url && m.Learner:
			return fault.Errorf(fault.Unavailable, "The controller that is to be at %s was let in and has no vote yet. Start it, or dismiss it (unkai controller dismiss %s); then this one can join.", m.URL, cmp.Or(m.Name, m.URL))
		}
	}
	return nil
}

// letIn adds a machine's share of the engine.
func (k *cluster) letIn(ctx context.Context, name, url string) (*relay.JoinAnswer, error) {
	all, err := k.engine.AddMember(ctx, url)
	if err != nil { // most of what may be was asked for before: another has come in between
		if all, asked := k.engine.Members(ctx); asked == nil {
			err = cmp.Or(mayBeMember(all, name, url), err)
		}
		return nil, err
	}
	members := map[string]string{}
	for _, m := range all {
		if m.Name == "" && m.URL == url {
			m.Name = name
		}
		if m.Name == "" {
			m.Name = fmt.Sprintf("%x", m.ID) // joining too, and not here yet
		}
		members[m.Name] = m.URL
	}
	secrets, err := json.Marshal(k.cloud.secrets)
	if err != nil {
		return nil, err
	}
	revoked, err := k.cloud.authority.RevocationList(k.cloud.state.Latest(), nil, time.Now())
	return &relay.JoinAnswer{Members: members, Secrets: secrets, Revoked: revoked}, err
}

// mayStay reports why this controller may not go on. What it knows may be old, and is asked for before that counts.
func (k *cluster) mayStay(ctx context.Context) error {
	if k.mayServe(k.cloud.state.Latest(), k.engine.Self()) == nil || k.cloud.state.Confirm(ctx) != nil {
		return nil
	}
	return k.mayServe(k.cloud.state.Latest(), k.engine.Self())
}

// keepWell gives votes to those that have caught up, heeds whose certificates are worth nothing any more, and renews this
// controller's own in time. It ends when this controller is one of them no more.
func (k *cluster) keepWell(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var looked time.Time
	for {
		if err := k.mayStay(ctx); fault.From(err) != nil {
			return err
		} else if err != nil {
			slog.ErrorContext(ctx, "could not see whether this controller may go on", "err", err)
		}
		if k.cloud.state.Leads() && k.Etcd == nil {
			known := func(member uint64) bool { _, ok := host.ControllerOf(k.cloud.state.Latest(), member); return ok }
			if err := k.engine.Promote(ctx, known); err != nil && ctx.Err() == nil {
				slog.WarnContext(ctx, "could not give a new controller its vote", "err", err)
			}
		}
		if err := k.refuse(k.cloud.authority, k.cloud.state.Latest()); err != nil {
			slog.ErrorContext(ctx, "could not keep which certificates are worth nothing any more", "err", err)
		}
		if time.Since(looked) > time.Hour {
			looked = time.Now()
			if err := k.renew(looked); err != nil {
				slog.ErrorContext(ctx, "could not renew the controller's certificate", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
