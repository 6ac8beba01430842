package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/unkai-cloud/unkai/api/relay"
	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/release"
	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/host"
	"github.com/unkai-cloud/unkai/core/identity"
)

// clusterOptions make a controller one of several.
type clusterOptions struct {
	Cluster bool   `help:"Be one of several controllers: the first, which others join."`
	Join    string `help:"Join the controllers at this address for hosts, such as https://10.0.0.1:8702. Needed the first time."`
	Token   string `help:"A one-time token from one of them (unkai controller token). Needed the first time."`
	Peers   string `default:"0.0.0.0:8703" help:"Address for the other controllers' share of the state (mutual TLS)."`
	Name    string `help:"What this controller is called; the machine's name when not given."`
	externalEtcd
	Address string `help:"Where the other controllers and the hosts reach this one; when not given, its address towards --join, or the first that is not loopback."`
}

// A membership is what a controller keeps of its being one of several.
type membership struct {
	Name string
	Link string // where others reach its listener for hosts and controllers
	Peer string // and its share of the engine
	// Of the engine, when it joined; it knows better since.
	Existing map[string]string `json:",omitempty"`
	// Instead of a share of the engine: the etcd elsewhere, and what this controller is called in the election of who leads.
	Etcd      *externalEtcd `json:",omitempty"`
	Candidate uint64        `json:",omitempty"`

	dir    string
	listen string
}

const membershipFile = "member.json"

func (m *membership) file(name string) string { return filepath.Join(m.dir, "peer", name) }

// Files of a controller that is one of several.
const (
	pairFile      = "pair.pem" // certificate and key, in one file: one without the other is of no use
	authorityFile = "authority.pem"
	revokedFile   = "revoked.der" // the authority's list of certificates that are worth nothing any more
)

// engine is how its share of the engine runs.
func (m *membership) engine() *etcd.Member {
	is := &etcd.Member{Name: m.Name, Listen: m.listen, URL: m.Peer, CertFile: m.file(pairFile), KeyFile: m.file(pairFile),
		CAFile: m.file(authorityFile), Role: host.ControllerRole, Existing: m.Existing}
	if _, err := os.Stat(m.file(revokedFile)); err == nil { // else it comes with the next start
		is.CRLFile = m.file(revokedFile)
	}
	return is
}

// certificate is the one that this controller shows.
func (m *membership) certificate() (tls.Certificate, error) {
	return tls.LoadX509KeyPair(m.file(pairFile), m.file(pairFile))
}

// membership makes this controller one of several, or takes that up again; nil if it is alone. hosts is its address for hosts.
func (o *clusterOptions) membership(ctx context.Context, dir, hosts string) (*membership, error) {
	text, err := os.ReadFile(filepath.Join(dir, membershipFile))
	if err == nil {
		m := &membership{dir: dir, listen: o.Peers}
		if err := json.Unmarshal(text, m); err != nil {
			return nil, fmt.Errorf("read %s: %w", membershipFile, err)
		}
		if len(o.Etcd) > 0 {
			if m.Etcd == nil {
				return nil, errors.New("this controller has a share of the state itself: it cannot go on with --etcd")
			}
			m.Etcd = &o.externalEtcd
			return m, m.save()
		}
		return m, m.pairUp()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	switch {
	case o.Cluster && o.Join != "":
		return nil, errors.New("--cluster begins with several controllers and --join joins them: not both")
	case o.Join != "" && o.Token == "":
		return nil, errors.New("--join needs a --token the first time (unkai controller token makes one)")
	case len(o.Etcd) > 0 && (o.Cluster || o.Join != ""):
		return nil, errors.New("with --etcd every controller is started alike: without --cluster and --join")
	case !o.Cluster && o.Join == "" && len(o.Etcd) == 0:
		return nil, nil
	}
	m := &membership{Name: o.Name, dir: dir, listen: o.Peers}
	if m.Name == "" {
		if m.Name, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	address, err := o.address(ctx)
	if err != nil {
		return nil, err
	}
	if m.Link, err = reachedAt(address, hosts); err != nil {
		return nil, err
	}
	if m.Peer, err = reachedAt(address, o.Peers); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "peer"), 0o700); err != nil {
		return nil, err
	}
	switch {
	case len(o.Etcd) > 0:
		err = m.beginElsewhere(&o.externalEtcd)
	case o.Cluster:
		err = m.begin(ctx, address)
	default:
		err = m.join(ctx, o.Join, o.Token, address)
	}
	if err != nil {
		return nil, err
	}
	return m, m.save()
}

// pairUp makes one file of two, as earlier releases kept certificate and key.
func (m *membership) pairUp() error {
	if _, err := os.Stat(m.file(pairFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	cert, err := os.ReadFile(m.file("cert.pem"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was ended before it had one
	}
	if err != nil {
		return err
	}
	key, err := os.ReadFile(m.file("key.pem"))
	if err != nil {
		return err
	}
	return writePrivate(m.file(pairFile), append(cert, key...))
}

func (m *membership) save() error {
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return writePrivate(filepath.Join(m.dir, membershipFile), text)
}

// address is where others reach this machine.
func (o *clusterOptions) address(ctx context.Context) (string, error) {
	if o.Address != "" {
		return o.Address, nil
	}
	if o.Join != "" {
		to, err := url.Parse(o.Join)
		if err != nil {
			return "", fmt.Errorf("--join %s: %w", o.Join, err)
		}
		return addressTowards(ctx, to)
	}
	if name, _, err := net.SplitHostPort(o.Peers); err == nil {
		if ip := net.ParseIP(name); ip != nil && !ip.IsUnspecified() {
			return name, nil
		}
	}
	for _, name := range serverNames("") {
		if ip := net.ParseIP(name); ip != nil && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			return name, nil
		}
	}
	return "", errors.New("this machine has no address but loopback: give --address")
}

// reachedAt is the URL of what listens, for those who reach this machine at an address.
func reachedAt(address, listen string) (string, error) {
	_, port, err := net.SplitHostPort(listen)
	if err != nil || port == "0" {
		return "", fmt.Errorf("the address %s needs a port that others can know", listen)
	}
	return "https://" + net.JoinHostPort(address, port), nil
}

// begin makes the first of several controllers: of a cloud that is here already, or of a new one.
func (m *membership) begin(ctx context.Context, address string) error {
	engine, err := etcd.Open(ctx, etcd.Options{Dir: filepath.Join(m.dir, "etcd")})
	if err != nil {
		return fmt.Errorf("open the state in %s: %w", m.dir, err)
	}
	s, err := state.Open(ctx, engine, state.Options{})
	if err != nil {
		return errors.Join(err, engine.Close())
	}
	err = func() error {
		if !host.Controllers().Usable(s.Latest()) {
			return errors.New("this cloud was made by a release that knows no second controller: start without --cluster and finalise the upgrade first (unkai upgrade finalise)")
		}
		a, err := host.OpenAuthority(ctx, s, time.Now())
		if err != nil {
			return err
		}
		return errors.Join(m.refuse(a, s.Latest()), m.certify(a, address))
	}()
	return errors.Join(err, s.Close())
}

// certify gives this controller a certificate, and a new key.
func (m *membership) certify(a *host.Authority, names ...string) error {
	cert, err := a.ControllerCertificate(time.Now(), names...)
	if err != nil {
		return fmt.Errorf("make the controller's certificate: %w", err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return err
	}
	return m.keep(cert.Certificate[0], key, a.PEM())
}

func (m *membership) keep(cert, key, authority []byte) error {
	pair := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	pair = append(pair, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	return errors.Join(writePrivate(m.file(authorityFile), authority), writePrivate(m.file(pairFile), pair))
}

// refuse keeps which certificates are worth nothing any more, for the engine's share of this controller.
func (m *membership) refuse(a *host.Authority, tx *state.Tx) error {
	was, err := os.ReadFile(m.file(revokedFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	list, err := a.RevocationList(tx, was, time.Now())
	if err != nil || bytes.Equal(list, was) {
		return err
	}
	return writePrivate(m.file(revokedFile), list)
}

// join has the controllers at url take this one in. Asked of one that follows, it asks the others.
func (m *membership) join(ctx context.Context, to, token, address string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: agentTrust(token)}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(relay.JoinRequest{Token: token, Request: csr, Names: []string{address}, Member: m.Name, URL: m.Peer, Speaks: release.Own})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(to, "/")+"/controller/v1/join", bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the controller at %s answers %s: %s", to, res.Status, strings.TrimSpace(string(text)))
	}
	var answer relay.JoinAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("join the controllers at %s: %w", to, err)
	}
	m.Existing = answer.Members
	return errors.Join(writePrivate(m.file(revokedFile), answer.Revoked), m.keep(answer.Certificate, private, answer.Authority),
		writePrivate(filepath.Join(m.dir, secretsFile), answer.Secrets))
}

// agentTrust trusts only the controllers of the cloud that a token is from.
func agentTrust(token string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The token's fingerprint replaces the usual verification.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			for _, authority := range c.PeerCertificates[1:] {
				if !host.TokenTrusts(token, authority.Raw) {
					continue
				}
				pool := x509.NewCertPool()
				pool.AddCert(authority)
				_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
				return err
			}
			return errors.New("the controller is not the one that the token is from")
		},
	}
}

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
		Hub: c.hub, Call: c.hosts.Pass, Health: c.cluster.health, Join: c.cluster.letIn, Now: time.Now,
		Secrets: func() ([]byte, error) { return json.MarshalIndent(c.secrets, "", "  ") }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/controller/") {
			others.ServeHTTP(w, r)
			return
		}
		c.hosts.ServeHTTP(w, r)
	})
}

// name is under which others reach this machine.
func (m *membership) name() string {
	link, err := url.Parse(m.Link)
	if err != nil {
		return ""
	}
	return link.Hostname()
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

// handOver has another controller lead.
func (k *cluster) handOver(ctx context.Context) error {
	if len(k.others()) == 0 || !k.cloud.state.Leads() {
		return nil
	}
	return k.engine.HandOver(ctx, k.cloud.state)
}

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
	is := host.Controller{Member: k.engine.Self(), Link: k.Link, URL: url, Version: version, Speaks: release.Own}
	is.Name = k.Name
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := k.tell(ctx, is); err != nil && ctx.Err() == nil {
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
	return relay.Post(ctx, k.transport, link, "present", is, nil)
}

// dismiss takes another controller out for good. What it has on its disk is of no use to anybody then.
func (c *cloud) dismiss(ctx context.Context, name string) error {
	if c.cluster == nil {
		return fault.Errorf(fault.Invalid, "This is the only controller.")
	}
	if c.cluster.Etcd != nil && name != c.cluster.Name {
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

// letIn adds a machine's share of the engine.
func (k *cluster) letIn(ctx context.Context, name, url string) (*relay.JoinAnswer, error) {
	if k.Etcd != nil {
		return nil, fault.Errorf(fault.Conflict, "These controllers have their state in an etcd of its own: start the new one with the same --etcd.")
	}
	if all, err := k.engine.Members(ctx); err != nil {
		return nil, err
	} else if slices.ContainsFunc(all, func(m etcd.MemberInfo) bool { return m.Name == name }) {
		return nil, fault.Errorf(fault.Conflict, "There is a controller named %s. Dismiss it first, or give this one another --name.", name)
	}
	all, err := k.engine.AddMember(ctx, url)
	if errors.Is(err, etcd.ErrMember) {
		return nil, fault.Errorf(fault.Conflict, "There is a controller at %s. Dismiss it first (unkai controller dismiss).", url)
	}
	if err != nil {
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

// keepWell gives votes to those that have caught up, heeds whose certificates are worth nothing any more, and renews this
// controller's own in time.
func (k *cluster) keepWell(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var looked time.Time
	for {
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

// renew makes the next certificate in the last third of the present one's life. Each controller can: it knows the authority.
func (k *cluster) renew(now time.Time) error {
	cert, err := k.certificate()
	if err != nil {
		return err
	}
	leaf := cert.Leaf
	if leaf.NotAfter.Sub(now) > leaf.NotAfter.Sub(leaf.NotBefore)/3 {
		return nil
	}
	names := leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return k.certify(k.cloud.authority, names...)
}
