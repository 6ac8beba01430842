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

// imageKinds are the prefixes of IDs and EC2's types, by format.
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
		item.State = "deregistered"
	}
	if !i.Boot.KernelID.IsZero() {
		item.Kernel = idOf("aki", i.Boot.KernelID)
	}
	if !i.Boot.InitrdID.IsZero() {
		item.Ramdisk = idOf("ari", i.Boot.InitrdID)
	}
	return item
}

// image finds an image that the actor may use, by EC2's ID.
func (s *Server) image(c *call, tx *state.Tx, id string) (*image.Image, error) {
	if id == "" {
		return nil, refuse("MissingParameter", "The request must contain the parameter ImageId")
	}
	for _, prefix := range []string{"ami", "aki", "ari"} {
		tail, ok := ownID(prefix, id)
		if !ok {
			continue
		}
		if i, ok := image.Table().Lookup(tx, "tail", state.KeyOf(tail)); ok {
			if seen, err := s.Images.Get(c.ctx, i.ID); err == nil {
				return seen, nil
			}
		}
		return nil, refuse("InvalidAMIID.NotFound", "The image id '[%s]' does not exist", id)
	}
	return nil, refuse("InvalidAMIID.Malformed", "Invalid id: \"%s\" (expecting \"ami-...\")", printable(id))
}

var imageFilters = known("image-id", "name", "state", "is-public", "owner-id", "architecture", "image-type", "root-device-type", "virtualization-type", "kernel-id", "ramdisk-id", "description", "hypervisor", "creation-date")

func (s *Server) describeImages(c *call) (any, error) {
	filters, err := c.filters(imageFilters)
	if err != nil {
		return nil, err
	}
	tx, err := s.State.View(c.ctx)
	if err != nil {
		return nil, err
	}
	ids, owners := c.list("ImageId"), c.list("Owner")
	for _, id := range ids {
		if _, err := s.image(c, tx, id); err != nil {
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
		if len(ids) > 0 && !slices.Contains(ids, item.ID) ||
			len(owners) > 0 && !slices.Contains(owners, item.OwnerID) && !(own && slices.Contains(owners, "self")) ||
			item.State == "pending" && !own {
			continue
		}
		public := "false"
		if item.Public {
			public = "true"
		}
		if keeps(filters, facts{"image-id": {item.ID}, "name": {item.Name}, "state": {item.State}, "is-public": {public},
			"owner-id": {item.OwnerID}, "architecture": {item.Architecture}, "image-type": {item.Type}, "root-device-type": {item.RootType},
			"virtualization-type": {item.Virtualization}, "kernel-id": {item.Kernel}, "ramdisk-id": {item.Ramdisk},
			"description": {item.Description}, "hypervisor": {item.Hypervisor}, "creation-date": {item.Created}}, textTags(i.Tags)) {
			items = append(items, item)
		}
	}
	items, next, err := page(c, items, 1, 1000)
	return struct {
		Items     []imageItem `xml:"imagesSet>item"`
		NextToken string      `xml:"nextToken,omitempty"`
	}{items, next}, err
}

type instanceType struct {
	Name           string   `xml:"instanceType"`
	Current        bool     `xml:"currentGeneration"`
	BareMetal      bool     `xml:"bareMetal"`
	Hypervisor     string   `xml:"hypervisor"`
	Architectures  []string `xml:"processorInfo>supportedArchitectures>item"`
	VCPUs          int      `xml:"vCpuInfo>defaultVCpus"`
	MemoryMiB      int      `xml:"memoryInfo>sizeInMiB"`
	StorageGiB     int      `xml:"instanceStorageInfo>totalSizeInGB"`
	RootTypes      []string `xml:"supportedRootDeviceTypes>item"`
	Virtualization []string `xml:"supportedVirtualizationTypes>item"`
	Usage          []string `xml:"supportedUsageClasses>item"`
}

func (s *Server) describeInstanceTypes(c *call) (any, error) {
	filters, err := c.filters(known("instance-type", "vcpu-info.default-vcpus", "memory-info.size-in-mib", "current-generation", "bare-metal"))
	if err != nil {
		return nil, err
	}
	flavors, err := s.Compute.ListFlavors(c.ctx, compute.FlavorQuery{})
	if err != nil {
		return nil, err
	}
	want := c.list("InstanceType")
	var items []instanceType
	for _, f := range flavors.Items {
		if len(want) > 0 && !slices.Contains(want, f.Name) || !keeps(filters, facts{"instance-type": {f.Name},
			"vcpu-info.default-vcpus": {itoa(f.VCPUs)}, "memory-info.size-in-mib": {itoa(f.MemoryMiB)},
			"current-generation": {"true"}, "bare-metal": {"false"}}, nil) {
			continue
		}
		items = append(items, instanceType{Name: f.Name, Current: true, Hypervisor: "xen", Architectures: []string{"x86_64"},
			VCPUs: f.VCPUs, MemoryMiB: f.MemoryMiB, StorageGiB: f.RootGiB + f.EphemeralGiB, RootTypes: []string{"ebs"},
			Virtualization: []string{"hvm"}, Usage: []string{"on-demand"}})
	}
	for _, name := range want {
		if !slices.ContainsFunc(items, func(i instanceType) bool { return i.Name == name }) {
			return nil, refuse("InvalidInstanceType", "The following supplied instance types do not exist: [%s]", printable(name))
		}
	}
	items, next, err := page(c, items, 5, 100)
	return struct {
		Items     []instanceType `xml:"instanceTypeSet>item"`
		NextToken string         `xml:"nextToken,omitempty"`
	}{items, next}, err
}

// flavor is the reference of the instance type of this name; EC2's own default when it is "".
func (s *Server) flavor(c *call, tx *state.Tx, name string) (string, error) {
	if name == "" {
		return "", refuse("MissingParameter", "The request must contain the parameter InstanceType")
	}
	if f, ok := compute.Flavors().Lookup(tx, "name", state.KeyOf(name)); ok {
		if seen, err := s.Compute.Flavor(c.ctx, f.Ref); err == nil {
			return seen.Ref, nil
		}
	}
	return "", refuse("InvalidParameterValue", "Invalid value '%s' for InstanceType.", printable(name))
}
