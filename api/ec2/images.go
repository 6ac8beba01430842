package ec2

import (
	"slices"

	"github.com/unkai-cloud/unkai/base/state"
	"github.com/unkai-cloud/unkai/core/compute"
	"github.com/unkai-cloud/unkai/core/image"
)

type imageItem struct {
	ID             string  `xml:"imageId"`
	Location       string  `xml:"imageLocation"`
	State          string  `xml:"imageState"`
	OwnerID        string  `xml:"imageOwnerId"`
	Created        string  `xml:"creationDate"`
	Public         bool    `xml:"isPublic"`
	Architecture   string  `xml:"architecture"`
	Type           string  `xml:"imageType"`
	Kernel         string  `xml:"kernelId,omitempty"`
	Ramdisk        string  `xml:"ramdiskId,omitempty"`
	Name           string  `xml:"name"`
	Description    string  `xml:"description,omitempty"`
	RootType       string  `xml:"rootDeviceType"`
	RootName       string  `xml:"rootDeviceName"`
	Virtualization string  `xml:"virtualizationType"`
	Hypervisor     string  `xml:"hypervisor"`
	Tags           *tagSet `xml:"tagSet"`
}

// imageKind gives the prefix of an image's ID and EC2's type, by its format.
func imageKind(i *image.Image) (prefix, kind string) {
	switch i.Format {
	case "aki":
		return "aki", "kernel"
	case "ari":
		return "ari", "ramdisk"
	}
	return "ami", "machine"
}

func imageOf(i *image.Image) imageItem {
	prefix, kind := imageKind(i)
	item := imageItem{ID: idOf(prefix, i.ID), Location: i.ProjectID.Hex() + "/" + i.Name, State: "pending", OwnerID: i.ProjectID.Hex(),
		Created: i.CreatedAt.UTC().Format(timeFormat), Public: i.Visibility == image.Public, Architecture: "x86_64", Type: kind,
		Name: i.Name, RootType: "ebs", RootName: "/dev/vda", Virtualization: "hvm", Hypervisor: "xen",
		Description: i.Properties["description"], Tags: tagsOf(textTags(i.Tags))}
	switch i.State {
	case image.Active:
		item.State = "available"
	case image.Deactivated:
		item.State = "disabled"
	}
	if !i.Boot.KernelID.IsZero() {
		item.Kernel = idOf("aki", i.Boot.KernelID)
	}
	if !i.Boot.InitrdID.IsZero() {
		item.Ramdisk = idOf("ari", i.Boot.InitrdID)
	}
	return item
}

// image finds an image that the actor may use, by an ID with one of these prefixes.
func (s *Server) image(c *call, tx *state.Tx, id string, prefixes ...string) (*image.Image, error) {
	for _, prefix := range prefixes {
		tail, ok := ownID(prefix, id)
		if !ok {
			continue
		}
		if i, ok := image.Table().Lookup(tx, "tail", state.KeyOf(tail)); ok {
			if is, _ := imageKind(i); is == prefix {
				if seen, err := s.Images.Get(c.ctx, i.ID); err == nil {
					return seen, nil
				}
			}
		}
		return nil, refuse("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", id)
	}
	return nil, refuse("InvalidAMIID.Malformed", "Invalid id: \"%s\" (expecting \"ami-...\")", printable(id))
}

var imageFilters = known("architecture creation-date description hypervisor image-id image-type is-public kernel-id manifest-location" +
	" name owner-id ramdisk-id root-device-name root-device-type state virtualization-type")

func (i *imageItem) facts() facts {
	return facts{"image-id": {i.ID}, "name": {i.Name}, "state": {i.State}, "is-public": truth(i.Public), "owner-id": {i.OwnerID},
		"architecture": {i.Architecture}, "image-type": {i.Type}, "root-device-type": {i.RootType}, "root-device-name": {i.RootName},
		"virtualization-type": {i.Virtualization}, "kernel-id": {i.Kernel}, "ramdisk-id": {i.Ramdisk}, "manifest-location": {i.Location},
		"description": {i.Description}, "hypervisor": {i.Hypervisor}, "creation-date": {i.Created}}
}

func (s *Server) describeImages(c *call) (any, error) {
	filters, err := c.filters(imageFilters)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"IncludeDeprecated", "IncludeDisabled"} { // nothing is left out for being so
		if _, err := c.in.bool(name); err != nil {
			return nil, err
		}
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids, owners, users := c.in.texts("ImageId"), c.in.texts("Owner"), c.in.texts("ExecutableBy")
	for _, id := range ids {
		if _, err := s.image(c, tx, id, "ami", "aki", "ari"); err != nil {
			return nil, err
		}
	}
	listed, err := s.Images.List(c.ctx, image.Query{})
	if err != nil {
		return nil, err
	}
	var items []imageItem
	for _, i := range listed.Items {
		item := imageOf(i)
		own := i.ProjectID == c.actor.ProjectID
		if wanted(ids, item.ID) && ownedBy(owners, item.OwnerID, own) && launchedBy(users, item.Public, own) &&
			(own || item.State != "pending") && keeps(filters, item.facts(), textTags(i.Tags)) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 1, 1000)
	return struct {
		Images    set[imageItem] `xml:"imagesSet"`
		NextToken string         `xml:"nextToken,omitempty"`
	}{set[imageItem]{items}, next}, err
}

// ownedBy reports whether one of the owners that a request names is an image's.
func ownedBy(owners []string, owner string, own bool) bool {
	return wanted(owners, owner) || own && slices.Contains(owners, "self")
}

// launchedBy reports whether an image is for one of the users that a request names: all, or
// the account itself, with which it is then shared.
func launchedBy(users []string, public, own bool) bool {
	return len(users) == 0 || public && slices.Contains(users, "all") || !public && !own && slices.Contains(users, "self")
}

type instanceType struct {
	Name           string      `xml:"instanceType"`
	Current        bool        `xml:"currentGeneration"`
	FreeTier       bool        `xml:"freeTierEligible"`
	BareMetal      bool        `xml:"bareMetal"`
	Hypervisor     string      `xml:"hypervisor"`
	Architectures  set[string] `xml:"processorInfo>supportedArchitectures"`
	VCPUs          int         `xml:"vCpuInfo>defaultVCpus"`
	MemoryMiB      int         `xml:"memoryInfo>sizeInMiB"`
	Local          bool        `xml:"instanceStorageSupported"`
	LocalGiB       int         `xml:"instanceStorageInfo>totalSizeInGB,omitempty"`
	RootTypes      set[string] `xml:"supportedRootDeviceTypes"`
	Virtualization set[string] `xml:"supportedVirtualizationTypes"`
	Usage          set[string] `xml:"supportedUsageClasses"`
}

func typeOf(f *compute.Flavor) instanceType {
	return instanceType{Name: f.Name, Current: true, Hypervisor: "xen", Architectures: set[string]{[]string{"x86_64"}},
		VCPUs: f.VCPUs, MemoryMiB: f.MemoryMiB, Local: f.EphemeralGiB > 0, LocalGiB: f.EphemeralGiB, RootTypes: set[string]{[]string{"ebs"}},
		Virtualization: set[string]{[]string{"hvm"}}, Usage: set[string]{[]string{"on-demand"}}}
}

var typeFilters = known("bare-metal current-generation free-tier-eligible hypervisor instance-storage-supported instance-type" +
	" memory-info.size-in-mib processor-info.supported-architecture supported-root-device-type supported-usage-class" +
	" supported-virtualization-type vcpu-info.default-vcpus")

func (i *instanceType) facts() facts {
	return facts{"instance-type": {i.Name}, "vcpu-info.default-vcpus": number(i.VCPUs), "memory-info.size-in-mib": number(i.MemoryMiB),
		"current-generation": truth(i.Current), "bare-metal": truth(i.BareMetal), "free-tier-eligible": truth(i.FreeTier),
		"hypervisor": {i.Hypervisor}, "instance-storage-supported": truth(i.Local),
		"processor-info.supported-architecture": i.Architectures.Items, "supported-root-device-type": i.RootTypes.Items,
		"supported-usage-class": i.Usage.Items, "supported-virtualization-type": i.Virtualization.Items}
}

func (s *Server) describeInstanceTypes(c *call) (any, error) {
	filters, err := c.filters(typeFilters)
	if err != nil {
		return nil, err
	}
	flavors, err := s.Compute.ListFlavors(c.ctx, compute.FlavorQuery{})
	if err != nil {
		return nil, err
	}
	names := c.in.texts("InstanceType")
	for _, name := range names {
		if !slices.ContainsFunc(flavors.Items, func(f *compute.Flavor) bool { return f.Name == name }) {
			return nil, refuse("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", printable(name))
		}
	}
	var items []instanceType
	for _, f := range flavors.Items {
		if item := typeOf(f); wanted(names, f.Name) && keeps(filters, item.facts(), nil) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 5, 100)
	return struct {
		Types     set[instanceType] `xml:"instanceTypeSet"`
		NextToken string            `xml:"nextToken,omitempty"`
	}{set[instanceType]{items}, next}, err
}
