package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/unkai-cloud/unkai/base/fault"
	"github.com/unkai-cloud/unkai/base/query"
	"github.com/unkai-cloud/unkai/base/resource"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/identity"
	"github.com/unkai-cloud/unkai/core/image"
	"github.com/unkai-cloud/unkai/core/network"
)

// demo boots the first server of a new cloud, as the user demo would with any client.
type demo struct {
	*cloud
	ctx   context.Context // of the user demo
	dir   string          // with the guest's files
	began time.Time
	last  time.Time
}

const (
	demoServer = "first"
	demoImage  = "unkai-guest"
	demoKey    = "demo"
)

func (d *demo) say(format string, args ...any) {
	now := time.Now()
	fmt.Printf("%6.1fs  %s\n", now.Sub(d.began).Seconds(), fmt.Sprintf(format, args...))
	d.last = now
}

// runDemo says each thing that it has done, and ends with what a person needs to go on.
func runDemo(ctx context.Context, c *cloud, u *upCommand, url, authority string) error {
	actor, err := c.identity.ActorFor(ctx, "demo", "demo")
	if err != nil {
		return err
	}
	d := &demo{cloud: c, ctx: identity.As(ctx, actor), dir: u.Guest, began: time.Now()}
	im, err := d.ensureImage(identity.Internal(ctx))
	if err != nil {
		return fmt.Errorf("register the demo guest's image: %w", err)
	}
	key := filepath.Join(u.Data, "demo_key")
	if err := d.ensureKey(key); err != nil {
		return fmt.Errorf("make a key pair: %w", err)
	}
	if err := d.ensureRules(actor.ProjectID); err != nil {
		return fmt.Errorf("let ssh and ping in: %w", err)
	}
	server, err := d.ensureServer(im)
	if err != nil {
		return fmt.Errorf("make the first server: %w", err)
	}
	address, err := d.ensureAddress(server, actor.ProjectID)
	if err != nil {
		return fmt.Errorf("give the server a floating address: %w", err)
	}
	if err := d.await(server); err != nil {
		return err
	}
	if err := d.awaitSSH(address); err != nil {
		return err
	}
	d.table(u, url, authority, key, address)
	return nil
}

// ensureImage registers the files that guest/build.sh made, for everybody.
func (d *demo) ensureImage(admin context.Context) (resource.ID, error) {
	page, err := d.image.List(admin, image.Query{List: query.List{Limit: 1}, Name: demoImage})
	if err != nil {
		return resource.ID{}, err
	}
	if len(page.Items) > 0 {
		return page.Items[0].ID, nil
	}
	var manifest struct{ Cmdline string }
	text, err := os.ReadFile(filepath.Join(d.dir, "manifest.json"))
	if err != nil {
		return resource.ID{}, fmt.Errorf("%w (guest/build.sh %s makes it)", err, d.dir)
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return resource.ID{}, err
	}
	owner := identity.ProjectNamed(d.state.Latest(), "admin")
	add := func(name, file, format, container string, boot image.Boot) (resource.ID, error) {
		i, err := d.image.Create(admin, image.Request{Name: name, ProjectID: owner, Spec: image.Spec{Format: format,
			Container: container, Visibility: image.Public, Boot: boot}})
		if err != nil {
			return resource.ID{}, err
		}
		f, err := os.Open(filepath.Join(d.dir, file))
		if err != nil {
			return resource.ID{}, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return resource.ID{}, err
		}
		return i.ID, d.image.Upload(admin, i.ID, f, info.Size())
	}
	// The kernel is given beside the disk: without KVM that saves the guest the seconds that a boot loader takes.
	kernel, err := add(demoImage+"-kernel", "vmlinuz", "aki", "aki", image.Boot{})
	if err != nil {
		return resource.ID{}, err
	}
	initrd, err := add(demoImage+"-initrd", "initramfs.cpio.gz", "ari", "ari", image.Boot{})
	if err != nil {
		return resource.ID{}, err
	}
	id, err := add(demoImage, "disk.qcow2", "qcow2", "bare", image.Boot{KernelID: kernel, InitrdID: initrd, Cmdline: manifest.Cmdline})
	if err == nil {
		d.say("registered the image %s", demoImage)
	}
	return id, err
}

// ensureKey makes the demo user's key pair, whose private half only this machine's owner can read.
func (d *demo) ensureKey(path string) error {
	text, err := os.ReadFile(path + ".pub")
	if errors.Is(err, fs.ErrNotExist) {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		block, err := ssh.MarshalPrivateKey(private, "unkai demo")
		if err != nil {
			return err
		}
		line, err := ssh.NewPublicKey(public)
		if err != nil {
			return err
		}
		text = ssh.MarshalAuthorizedKey(line)
		if err := errors.Join(writePrivate(path, pem.EncodeToMemory(block)), os.WriteFile(path+".pub", text, 0o644)); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	_, err = d.compute.ImportKeyPair(d.ctx, compute.KeyPair{Meta: resource.Meta{Name: demoKey}, Public: strings.TrimSpace(string(text))})
	return unlessThere(err)
}

// unlessThere forgets that something was there already.
func unlessThere(err error) error {
	if fault.Is(err, fault.Exists) || fault.Is(err, fault.Conflict) {
		return nil
	}
	return err
}

// ensureRules opens the default security group for ssh and ping.
func (d *demo) ensureRules(project resource.ID) error {
	if err := d.network.EnsureDefaultGroup(d.ctx); err != nil {
		return err
	}
	group, ok := network.DefaultGroup(d.state.Latest(), project)
	if !ok {
		return errors.New("the project has no default security group")
	}
	for _, r := range []network.Rule{
		{Ingress: true, Protocol: 1, ProtocolLabel: "icmp"},
		{Ingress: true, Protocol: 6, ProtocolLabel: "tcp", PortMin: 22, PortMax: 22, HasMin: true, HasMax: true},
	} {
		r.GroupID, r.ProjectID = group, project
		if _, err := d.network.Rules.Create(d.ctx, &r); unlessThere(err) != nil {
			return err
		}
	}
	return nil
}

func (d *demo) ensureServer(im resource.ID) (resource.ID, error) {
	view, err := d.compute.List(d.ctx, compute.Query{Name: demoServer})
	if err != nil {
		return resource.ID{}, err
	}
	for _, s := range view.Servers {
		return s.ID, nil
	}
	made, err := d.compute.Create(d.ctx, compute.Launch{Name: demoServer, Flavor: "84", ImageID: im, KeyName: demoKey})
	if err != nil {
		return resource.ID{}, err
	}
	d.say("asked for the server %s (1 vCPU, 256 MiB)", demoServer)
	return made.Servers[0], nil
}

func (d *demo) ensureAddress(server, project resource.ID) (netip.Addr, error) {
	tx := d.state.Latest()
	ports := network.PortsOf(tx, server)
	if len(ports) == 0 {
		return netip.Addr{}, errors.New("the server has no port")
	}
	for _, f := range network.FloatingOf(tx, ports[0].ID) {
		return f.Address, nil
	}
	public, ok := network.DefaultExternal(tx)
	if !ok {
		return netip.Addr{}, errors.New("there is no external network")
	}
	made, err := d.network.Floating.Create(d.ctx, &network.FloatingAddress{Meta: resource.Meta{ProjectID: project}, NetworkID: public, TargetID: ports[0].ID})
	if err != nil {
		return netip.Addr{}, err
	}
	d.say("gave it the floating address %s", made[0].Address)
	return made[0].Address, nil
}

// await waits until the server runs, and says why if it does not.
func (d *demo) await(id resource.ID) error {
	watch := d.state.Watch(d.state.Latest().Revision())
	for {
		_, s, err := d.compute.Get(d.ctx, id)
		if err != nil {
			return err
		}
		switch {
		case s.Failure != nil:
			return fmt.Errorf("the server failed: %s", s.Failure.Message)
		case s.Stage() == compute.Running && s.Task == "":
			d.say("it runs; now its system boots")
			return nil
		case s.Stage() != compute.Building && s.Task == "":
			return fmt.Errorf("the server %s is %s: start it, or delete it", demoServer, s.Stage())
		}
		if _, err := watch.Next(d.ctx); err != nil {
			return err
		}
	}
}

// awaitSSH waits for the guest's ssh server to greet.
func (d *demo) awaitSSH(address netip.Addr) error {
	deadline := time.Now().Add(5 * time.Minute)
	for time.Now().Before(deadline) && d.ctx.Err() == nil {
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(address, 22).String(), time.Second)
		if err != nil {
			time.Sleep(200 * time.Millisecond)
			continue
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		line, err := bufio.NewReader(conn).ReadString('\n')
		conn.Close()
		if err == nil && strings.HasPrefix(line, "SSH-") {
			d.say("it answers ssh")
			return nil
		}
	}
	if err := d.ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("the server does not answer ssh at %s; see its console: openstack console log show %s", address, demoServer)
}

func (d *demo) table(u *upCommand, url, authority, key string, address netip.Addr) {
	tls := ""
	if authority != "" {
		tls = " (TLS; the authority's certificate is " + authority + ")"
	}
	fmt.Printf(`
  cloud       %s%s
  data        %s
  server      %s, image %s, floating address %s
  ssh         ssh -i %s cirros@%s
  openstack   export OS_CLIENT_CONFIG_FILE=%s/clouds.yaml OS_CLOUD=demo
              openstack server list
  aws         . %s/aws.env
              aws --endpoint-url %s/ec2 ec2 describe-instances
  operator    bin/unkai status --data %s
`, url, tls, u.Data, demoServer, demoImage, address, key, address, u.Data, u.Data, url, u.Data)
}
