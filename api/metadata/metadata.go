// Package metadata tells a guest about itself, in the words of the clouds that guests know:
// OpenStack's (https://docs.openstack.org/nova/latest/user/metadata.html) and EC2's instance metadata
// service, versions 1 and 2. It answers on the guest's own host, from what the host knows.
package metadata

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/unkai-cloud/unkai/core/compute"
)

// versions of OpenStack's documents, oldest first. Each only adds to the one before.
var versions = []string{"2012-08-10", "2013-04-04", "2013-10-17", "2015-10-15", "2016-06-30", "2016-10-06",
	"2017-02-22", "2018-08-27", "2020-10-14"}

// at reports whether a document of this version has what came with since.
func at(version, since string) bool { return version == "latest" || version >= since }

// metaData is OpenStack's meta_data.json.
type metaData struct {
	UUID             string            `json:"uuid"`
	Name             string            `json:"name"`
	Hostname         string            `json:"hostname"`
	AvailabilityZone string            `json:"availability_zone"`
	LaunchIndex      int               `json:"launch_index"`
	ProjectID        string            `json:"project_id,omitempty"`
	Meta             map[string]string `json:"meta,omitempty"`
	PublicKeys       map[string]string `json:"public_keys,omitempty"`
	Keys             []key             `json:"keys,omitempty"`
	AdminPass        string            `json:"admin_pass,omitempty"`
	Files            []file            `json:"files,omitempty"`
	RandomSeed       string            `json:"random_seed,omitempty"`
	Devices          []device          `json:"devices"`
	DedicatedCPUs    []int             `json:"dedicated_cpus,omitempty"`
}

type key struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Data string `json:"data"`
}

type file struct {
	ContentPath string `json:"content_path"`
	Path        string `json:"path"`
}

type device struct {
	Type    string   `json:"type"`
	Bus     string   `json:"bus"`
	Address string   `json:"address"`
	MAC     string   `json:"mac,omitempty"`
	Serial  string   `json:"serial,omitempty"`
	Tags    []string `json:"tags"`
}

func metaDataOf(g *compute.Guest, version string) metaData {
	m := g.Metadata
	d := metaData{UUID: g.ID.String(), Name: g.Name, Hostname: m.Hostname, AvailabilityZone: m.Zone,
		LaunchIndex: m.LaunchIndex, Meta: m.Tags, AdminPass: m.AdminPassword, Devices: []device{}}
	if at(version, "2015-10-15") {
		d.ProjectID = g.ProjectID.Hex()
	}
	for i, k := range m.Keys {
		if k.Type == "ssh" {
			if d.PublicKeys == nil {
				d.PublicKeys = map[string]string{}
			}
			d.PublicKeys[k.Name] = k.Key + "\n"
		}
		d.Keys = append(d.Keys, key{k.Name, m.Keys[i].Type, k.Key + "\n"})
	}
	for i, f := range m.Files {
		d.Files = append(d.Files, file{fmt.Sprintf("/content/%04d", i), f.Path})
	}
	if at(version, "2016-06-30") {
		for _, v := range m.Devices {
			d.Devices = append(d.Devices, device{Type: v.Kind, Bus: "none", Address: "none", MAC: v.MAC, Serial: v.Serial, Tags: v.Tags})
		}
	}
	return d
}

// networkData is OpenStack's network_data.json (doc/api_schemas/network_data.json).
type networkData struct {
	Links    []link    `json:"links"`
	Networks []network `json:"networks"`
	Services []service `json:"services"`
}

type link struct {
	ID   string `json:"id"`
	VIF  string `json:"vif_id"`
	Type string `json:"type"`
	MTU  int    `json:"mtu"`
	MAC  string `json:"ethernet_mac_address"`
}

type network struct {
	ID        string    `json:"id"`
	Type      string    `json:"type"`
	Link      string    `json:"link"`
	IPAddress string    `json:"ip_address,omitempty"`
	Netmask   string    `json:"netmask,omitempty"`
	Routes    []route   `json:"routes,omitempty"`
	NetworkID string    `json:"network_id"`
	Gateway   string    `json:"gateway,omitempty"`
	Services  []service `json:"services,omitempty"`
}

type route struct {
	Network string `json:"network"`
	Netmask string `json:"netmask"`
	Gateway string `json:"gateway"`
}

type service struct {
	Type    string `json:"type"`
	Address string `json:"address"`
}

func networkDataOf(g *compute.Guest) networkData {
	d := networkData{Links: []link{}, Networks: []network{}, Services: []service{}}
	for i, l := range g.Metadata.Links {
		name := "tap" + l.PortID.String()[:11]
		d.Links = append(d.Links, link{name, l.PortID.String(), "ovs", l.MTU, l.MAC})
		for _, dns := range l.DNS {
			if s := (service{"dns", dns}); !slices.Contains(d.Services, s) {
				d.Services = append(d.Services, s)
			}
		}
		for _, a := range l.Addresses {
			d.Networks = append(d.Networks, networkOf(fmt.Sprintf("network%d", len(d.Networks)), name, g.Metadata.Links[i], a))
		}
	}
	return d
}

func networkOf(id, name string, l compute.Link, a compute.LinkAddress) network {
	n := network{ID: id, Link: name, NetworkID: l.NetworkID.String()}
	ip, err := netip.ParseAddr(a.Address)
	family := "ipv4"
	if err == nil && ip.Is6() {
		family = "ipv6"
	}
	switch {
	case a.Mode == "slaac", strings.HasPrefix(a.Mode, "dhcpv6"):
		n.Type = "ipv6_" + a.Mode
	case a.Mode == "dhcp":
		n.Type = family + "_dhcp"
		return n
	default:
		n.Type = family
	}
	n.IPAddress, n.Netmask, n.Gateway = a.Address, netmask(ip, a.Prefix), a.Gateway
	if a.Gateway != "" {
		any := "0.0.0.0"
		if ip.Is6() {
			any = "::"
		}
		n.Routes = append(n.Routes, route{any, any, a.Gateway})
	}
	for _, r := range a.Routes {
		if p, err := netip.ParsePrefix(r.Destination); err == nil {
			n.Routes = append(n.Routes, route{p.Addr().String(), netmask(p.Addr(), p.Bits()), r.NextHop})
		}
	}
	return n
}

func netmask(ip netip.Addr, bits int) string {
	all := netip.MustParseAddr("255.255.255.255")
	if ip.Is6() {
		all = netip.MustParseAddr("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	}
	p, err := all.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.Addr().String()
}

// document gives one OpenStack document by its name; false if there is none. seed is
// randomness for the guest, where the document has it.
func document(g *compute.Guest, version, name, seed string) ([]byte, bool) {
	var v any
	switch name {
	case "meta_data.json":
		d := metaDataOf(g, version)
		if at(version, "2013-04-04") {
			d.RandomSeed = seed
		}
		v = d
	case "user_data":
		return g.Metadata.UserData, len(g.Metadata.UserData) > 0
	case "vendor_data.json":
		return []byte("{}"), at(version, "2013-10-17")
	case "vendor_data2.json":
		return []byte("{}"), at(version, "2016-10-06")
	case "network_data.json":
		if !at(version, "2015-10-15") {
			return nil, false
		}
		v = networkDataOf(g)
	default:
		return nil, false
	}
	text, err := json.Marshal(v)
	return text, err == nil
}

// documents lists those of a version.
func documents(g *compute.Guest, version string) []string {
	var names []string
	for _, name := range []string{"meta_data.json", "user_data", "vendor_data.json", "vendor_data2.json", "network_data.json"} {
		if _, ok := document(g, version, name, ""); ok {
			names = append(names, name)
		}
	}
	return names
}

// A ConfigFile is one file of a config drive.
type ConfigFile struct {
	Path string
	Data []byte
}

// ConfigDrive is what a guest finds on its config drive (label config-2). seed is
// randomness for the guest.
func ConfigDrive(g *compute.Guest, seed []byte) []ConfigFile {
	text := base64.StdEncoding.EncodeToString(seed)
	var files []ConfigFile
	for _, version := range append(slices.Clone(versions), "latest") {
		for _, name := range documents(g, version) {
			data, _ := document(g, version, name, text) // documents has just listed it
			files = append(files, ConfigFile{"openstack/" + version + "/" + name, data})
		}
	}
	for i, f := range g.Metadata.Files {
		files = append(files, ConfigFile{fmt.Sprintf("openstack/content/%04d", i), f.Data})
	}
	for _, version := range []string{"2009-04-04", "latest"} {
		data, err := json.Marshal(ec2Tree(g))
		if err == nil {
			files = append(files, ConfigFile{"ec2/" + version + "/meta-data.json", data})
		}
		if len(g.Metadata.UserData) > 0 {
			files = append(files, ConfigFile{"ec2/" + version + "/user-data", g.Metadata.UserData})
		}
	}
	return files
}

// ec2Tree is EC2's instance metadata ("Instance metadata categories"), as a tree of
// maps with texts for leaves.
func ec2Tree(g *compute.Guest) map[string]any {
	m := g.Metadata
	tree := map[string]any{
		"ami-id":               "ami-" + m.ImageID.Tail(),
		"ami-launch-index":     strconv.Itoa(m.LaunchIndex),
		"hostname":             m.Hostname,
		"local-hostname":       m.Hostname,
		"public-hostname":      m.Hostname,
		"instance-id":          "i-" + g.ID.Tail(),
		"instance-action":      "none",
		"instance-type":        m.Type,
		"reservation-id":       m.ReservationID,
		"security-groups":      strings.Join(m.SecurityGroups, "\n"),
		"placement":            map[string]any{"availability-zone": m.Zone},
		"block-device-mapping": map[string]any{"ami": "vda", "root": "/dev/vda"},
	}
	if g.Kernel != nil {
		tree["kernel-id"] = "aki-" + g.Kernel.ID.Tail()
	}
	if g.Initrd != nil {
		tree["ramdisk-id"] = "ari-" + g.Initrd.ID.Tail()
	}
	macs := map[string]any{}
	for i, l := range m.Links {
		var v4, v6 []string
		for _, a := range l.Addresses {
			if strings.Contains(a.Address, ":") {
				v6 = append(v6, a.Address)
			} else if a.Address != "" {
				v4 = append(v4, a.Address)
			}
		}
		mac := map[string]any{"device-number": strconv.Itoa(i), "mac": l.MAC, "interface-id": "eni-" + l.PortID.Tail(),
			"vpc-id": "vpc-" + l.NetworkID.Tail(), "local-ipv4s": strings.Join(v4, "\n")}
		if len(v6) > 0 {
			mac["ipv6s"] = strings.Join(v6, "\n")
		}
		if l.PublicIPv4 != "" {
			mac["public-ipv4s"] = l.PublicIPv4
		}
		macs[l.MAC] = mac
		if i == 0 {
			tree["mac"] = l.MAC
			if len(v4) > 0 {
				tree["local-ipv4"] = v4[0]
			}
			tree["public-ipv4"] = l.PublicIPv4
		}
	}
	tree["network"] = map[string]any{"interfaces": map[string]any{"macs": macs}}
	if len(m.Keys) > 0 {
		keys := map[string]any{}
		for i, k := range m.Keys {
			keys[strconv.Itoa(i)] = keyNode{k.Name, map[string]any{"openssh-key": k.Key}}
		}
		tree["public-keys"] = keys
	}
	if len(m.Tags) > 0 {
		tags := map[string]any{}
		for k, v := range m.Tags {
			if !strings.Contains(k, "/") {
				tags[k] = v
			}
		}
		tree["tags"] = map[string]any{"instance": tags}
	}
	return tree
}

// keyNode is a folder that is listed as "0=name".
type keyNode struct {
	name string
	tree map[string]any
}

// MarshalJSON writes the folder without its name.
func (k keyNode) MarshalJSON() ([]byte, error) {
	with := map[string]any{"_name": k.name}
	for key, v := range k.tree {
		with[key] = v
	}
	return json.Marshal(with)
}
