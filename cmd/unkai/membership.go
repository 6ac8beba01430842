package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/base/state/etcd"
	"github.com/unkai-cloud/unkai/core/alert"
	"github.com/unkai-cloud/unkai/core/host"
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

	dir     string
	listen  string
	lookout *alert.Lookout // nil before openLookout
}

const membershipFile = "member.json"

// lookoutFile holds whom a controller tells by itself that none leads, and what it has told.
const lookoutFile = "no-leader.json"

// keepLookout has this controller look whether any leads, and tell of it, until ctx ends: also while it waits for the others as it starts.
func (m *membership) keepLookout(ctx context.Context) error {
	m.lookout.Run(ctx, ledEvery)
	return nil
}

func (m *membership) openLookout() (err error) {
	if m.lookout, err = alert.OpenLookout(filepath.Join(m.dir, lookoutFile)); err != nil {
		return err
	}
	m.lookout.Controller, m.lookout.Cloud, m.lookout.Senders = m.Name, m.Link, alertSenders
	return nil
}

// starting has the lookout ask a share of the state that is not ready yet.
func (m *membership) starting(leader func() uint64) {
	m.lookout.Ask(func(context.Context) error {
		if leader() == 0 {
			return errors.New("no other controller leads")
		}
		return nil
	})
}

func (m *membership) file(name string) string { return filepath.Join(m.dir, "peer", name) }

// engine is how its share of the engine runs.
func (m *membership) engine() *etcd.Member {
	is := &etcd.Member{Name: m.Name, Listen: m.listen, URL: m.Peer, CertFile: m.file(pairFile), KeyFile: m.file(pairFile),
		CAFile: m.file(authorityFile), Role: host.ControllerRole, Existing: m.Existing}
	if _, err := os.Stat(m.file(revokedFile)); err == nil { // else it comes with the next start
		is.CRLFile = m.file(revokedFile)
	}
	return is
}

// name is under which others reach this machine.
func (m *membership) name() string {
	link, err := url.Parse(m.Link)
	if err != nil {
		return ""
	}
	return link.Hostname()
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
			given := o.externalEtcd
			if given.EtcdPrefix == "" {
				given.EtcdPrefix = m.Etcd.EtcdPrefix
			}
			m.Etcd = &given
		}
		if m.Etcd != nil {
			return m, nil // kept once it is seen to be the same cloud there
		}
		return m, errors.Join(beginFounding(dir), m.pairUp())
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
		return nil, beginFounding(dir)
	}
	if len(o.Etcd) == 0 {
		if err := beginFounding(dir); err != nil {
			return nil, err
		}
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
	if len(o.Etcd) > 0 {
		return m, m.beginElsewhere(&o.externalEtcd)
	}
	if o.Cluster {
		err = m.begin(ctx, address)
	} else {
		err = m.join(ctx, o.Join, o.Token, address)
	}
	if err != nil {
		return nil, err
	}
	return m, m.save()
}

// memberName is what the controller of a data directory is called among several; "" if it is alone, or none.
func memberName(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, membershipFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var m membership
	if err := json.Unmarshal(text, &m); err != nil {
		return "", fmt.Errorf("read %s: %w", membershipFile, err)
	}
	return m.Name, nil
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
