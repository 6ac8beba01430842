package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"

	"github.com/unkai-cloud/unkai/base/state"
)

// A Member is how a server inside this process is one of several, which are on other machines.
type Member struct {
	Name   string // of this member; unlike any other's
	Listen string // address for the others: "0.0.0.0:8703"
	URL    string // where the others reach it: "https://10.0.0.1:8703"
	// Certificate, key and authority (PEM) for mutual TLS with the others. The files are read again for each connection.
	CertFile, KeyFile, CAFile string
	// CRLFile lists certificates that are refused though the authority has signed them (DER); none if "". It is read for each
	// connection.
	CRLFile string
	// Role is the common name in the certificates of members. The authority signs others, too: they are refused.
	Role string
	// Of the members that there are: name to URL, with this one. Only for a server that is new, and joins them.
	Existing map[string]string

	from string // the name that its calls to the others ask for instead of their addresses, by which a test tells whose they are; none when ""
}

// Settings of a server that is one of several.
const (
	memberTick     = 100 * time.Millisecond
	memberElection = time.Second // without a word from its leader, a member calls an election
	// How many applied log entries stay in memory for members that lag behind; further back they are sent all of it.
	memberCatchUp = 2000
	addWithin     = 20 * time.Second // for a new member to be let in
)

// apply makes a configuration that of a member.
func (m *Member) apply(c *embed.Config) error {
	at, err := url.Parse(m.URL)
	if err != nil || at.Scheme != "https" {
		return fmt.Errorf("etcd: a member's URL must begin with https://, and this is %q", m.URL)
	}
	c.Name = m.Name
	c.AdvertisePeerUrls = []url.URL{*at}
	c.ListenPeerUrls = []url.URL{{Scheme: "https", Host: m.Listen}}
	c.PeerTLSInfo = transport.TLSInfo{CertFile: m.CertFile, KeyFile: m.KeyFile, TrustedCAFile: m.CAFile, CRLFile: m.CRLFile, ClientCertAuth: true,
		AllowedCNs: []string{m.Role}, ServerName: m.from}
	c.TickMs, c.ElectionMs = uint(memberTick.Milliseconds()), uint(memberElection.Milliseconds())
	c.SnapshotCatchUpEntries = memberCatchUp
	c.InitialCluster = m.Name + "=" + m.URL
	if len(m.Existing) > 0 {
		var all []string
		for name, url := range m.Existing {
			all = append(all, name+"="+url)
		}
		sort.Strings(all)
		c.InitialCluster, c.ClusterState = strings.Join(all, ","), embed.ClusterStateFlagExisting
	}
	return nil
}

// A MemberInfo is what all members know of one.
type MemberInfo struct {
	ID      uint64
	Name    string // "" until it has started
	URL     string
	Learner bool // it has not caught up yet, and has no vote
}

// Members lists the members, as this one knows them.
func (e *Engine) Members(ctx context.Context) ([]MemberInfo, error) {
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	list, err := e.client.MemberList(ctx)
	if err != nil {
		return nil, fmt.Errorf("list etcd's members: %w", err)
	}
	var all []MemberInfo
	for _, m := range list.Members {
		all = append(all, MemberInfo{m.ID, m.Name, strings.Join(m.PeerURLs, ","), m.IsLearner})
	}
	return all, nil
}

// Known lists the members as far as this one has heard: it asks nobody.
func (e *Engine) Known() []MemberInfo {
	var all []MemberInfo
	for _, m := range e.server.etcd.Server.Cluster().Members() {
		all = append(all, MemberInfo{uint64(m.ID), m.Name, strings.Join(m.PeerURLs, ","), m.IsLearner})
	}
	return all
}

// AddMember lets one more member in, which is then to start with the members that this answers, it among them with the name ""
// until it has. It has a vote once it has caught up, and Promote says so. Asked again for the same URL it changes nothing.
func (e *Engine) AddMember(ctx context.Context, url string) ([]MemberInfo, error) {
	ctx, cancel := e.within(ctx, addWithin)
	defer cancel()
	for {
		_, err := e.client.MemberAddAsLearner(ctx, []string{url})
		switch {
		case err == nil:
			return e.Members(ctx)
		case errors.Is(err, rpctypes.ErrPeerURLExist):
			return e.joinsAgain(ctx, url)
		case errors.Is(err, rpctypes.ErrTooManyLearners):
			// One at a time: another has joined, and gets its vote when it has caught up.
		case !errors.Is(err, rpctypes.ErrUnhealthy):
			return nil, fmt.Errorf("add a member at %s: %w", url, err)
		}
		// So etcd says until all members have been connected for five seconds.
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("add a member at %s: %w", url, err)
		}
	}
}

// joinsAgain lets in who was let in and never started. One that did start and comes with nothing has forgotten what it
// voted for: as the same member it would let acknowledged writes be lost.
func (e *Engine) joinsAgain(ctx context.Context, url string) ([]MemberInfo, error) {
	all, err := e.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.URL == url && (m.Name != "" || !m.Learner) {
			return nil, fmt.Errorf("%w: %s", ErrMember, url)
		}
	}
	return all, nil
}

// ErrMember: there is a member at this address already, which has to be removed before another can be there.
var ErrMember = errors.New("a member is there already")

// Promote gives a vote to every member that has caught up and that known knows: one that is no more must not have one.
func (e *Engine) Promote(ctx context.Context, known func(id uint64) bool) error {
	all, err := e.Members(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	for _, m := range all {
		if !m.Learner || !known(m.ID) {
			continue
		}
		if _, err := e.client.MemberPromote(ctx, m.ID); err != nil && !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			return fmt.Errorf("give a vote to the member at %s: %w", m.URL, err)
		}
	}
	return nil
}

// RemoveMember takes a member out for good. It cannot come back with what it has on its disk.
func (e *Engine) RemoveMember(ctx context.Context, id uint64) error {
	ctx, cancel := e.within(ctx, addWithin)
	defer cancel()
	for {
		_, err := e.client.MemberRemove(ctx, id)
		switch {
		case err == nil || errors.Is(err, rpctypes.ErrMemberNotFound):
			return nil
		case !errors.Is(err, rpctypes.ErrUnhealthy):
			return fmt.Errorf("remove a member: %w", err)
		}
		// So etcd says until those that remain have been connected for five seconds.
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("remove a member: %w", err)
		}
	}
}

// moveTo changes where the others reach this member, as when it had been alone. It asks nobody where it is: to start again
// must not need more of the others than etcd itself does.
func (e *Engine) moveTo(ctx context.Context, url string) error {
	me := e.server.etcd.Server.Cluster().Member(e.server.etcd.Server.MemberID())
	if me != nil && slices.Equal(me.PeerURLs, []string{url}) {
		return nil
	}
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	if _, err := e.client.MemberUpdate(ctx, e.Self(), []string{url}); err != nil {
		return fmt.Errorf("tell the members that this one is at %s: %w", url, err)
	}
	return nil
}

// watchReach ends calls that nobody will answer. Members that are well elect a leader within two elections.
func (e *Engine) watchReach() {
	tick := time.NewTicker(memberTick)
	defer tick.Stop()
	found := time.Now()
	lose := e.reachAgain()
	defer func() { lose() }()
	for lost := false; ; {
		select {
		case <-tick.C:
		case <-e.closed.Done():
			return
		}
		switch {
		case e.Leader() == 0:
			if time.Since(found) > 2*memberElection {
				lose()
				lost = true
			}
		case lost:
			lose, lost, found = e.reachAgain(), false, time.Now()
		default:
			found = time.Now()
		}
	}
}

// reachAgain lets calls begin that go on until what it answers is called.
func (e *Engine) reachAgain() context.CancelFunc {
	e.reachMu.Lock()
	defer e.reachMu.Unlock()
	var lose context.CancelFunc
	e.reach, lose = context.WithCancel(e.closed)
	return lose
}

// Prefix is that of every key.
func (e *Engine) Prefix() string { return e.options.Prefix }

// Self is this member's ID; with an etcd elsewhere that of this candidate.
func (e *Engine) Self() uint64 {
	if e.server == nil {
		return e.options.Candidate
	}
	return uint64(e.server.etcd.Server.MemberID())
}

// Leader is the member that leads: 0 while none does, or none that a majority follows. The one that leads is the one to
// write: its commits need no detour, and it is found as fast as etcd finds it. That another, who does not know yet that it
// leads no more, writes too is what terms prevent.
func (e *Engine) Leader() uint64 {
	if e.election != nil {
		leader, _ := e.election.get()
		return leader
	}
	return uint64(e.server.etcd.Server.Leader())
}

// Led reports why nobody leads, as far as this engine can see: it knows of none that does, or cannot have read what is the newest.
func (e *Engine) Led(ctx context.Context) error {
	if e.Leader() == 0 {
		return errors.New("no member is known to lead")
	}
	_, err := e.Head(ctx)
	return err
}

// takesLead is how long a member has to take the lead that is handed over to it. Nothing is written meanwhile.
const takesLead = memberElection

// HandOver has another member lead, if this one does: what the state has accepted is stored first, so that nothing that is under way is
// lost. The members to ask are tried in that order, any with a vote when nil: one that is not there costs its time, in which nobody writes. When
// no other can lead, this one leads again, and the error says why. With an etcd elsewhere whoever stands next leads, whatever is asked for.
func (e *Engine) HandOver(ctx context.Context, s *state.State, to []uint64) error {
	if e.Leader() != e.Self() {
		return nil
	}
	ctx, cancel := e.within(ctx, askWithin)
	defer cancel()
	e.handing.Store(true)
	defer e.handing.Store(false)
	if e.election != nil {
		return e.election.handOver(ctx, s)
	}
	all, err := e.Members(ctx)
	if err != nil {
		return err
	}
	var able []MemberInfo
	for _, m := range all {
		if m.ID != e.Self() && !m.Learner && (to == nil || slices.Contains(to, m.ID)) {
			able = append(able, m)
		}
	}
	if len(able) == 0 {
		return errors.New("no other member has a vote and is to be asked")
	}
	slices.SortStableFunc(able, func(a, b MemberInfo) int { return slices.Index(to, a.ID) - slices.Index(to, b.ID) })
	s.Retire()
	var failed error
	for _, m := range able {
		if failed = e.moveLead(ctx, m); failed == nil {
			return nil
		}
	}
	return failed
}

func (e *Engine) moveLead(ctx context.Context, m MemberInfo) error {
	ctx, cancel := context.WithTimeout(ctx, takesLead)
	defer cancel()
	if err := e.server.etcd.Server.MoveLeader(ctx, e.Self(), m.ID); err != nil {
		return fmt.Errorf("have the member %s lead: %w", m.Name, err)
	}
	return nil
}

// LeaderChanged is closed when a leader has been found, or lost, since the call.
func (e *Engine) LeaderChanged() <-chan struct{} {
	if e.election != nil {
		_, changed := e.election.get()
		return changed
	}
	return e.server.etcd.Server.LeaderChangedNotify()
}
