package nova

import (
	"net/http"
	"slices"

	"github.com/unkai-cloud/unkai/base/fault"
)

// extensions are the parts of the API that were optional once, by alias, with their names.
// They can no longer be switched off; old clients still ask.
var extensions = map[string]string{
	"OS-DCF": "DiskConfig", "OS-EXT-AZ": "ExtendedAvailabilityZone", "OS-EXT-IMG-SIZE": "ImageSize", "OS-EXT-IPS": "ExtendedIps",
	"OS-EXT-IPS-MAC": "ExtendedIpsMac", "OS-EXT-SRV-ATTR": "ExtendedServerAttributes", "OS-EXT-STS": "ExtendedStatus",
	"OS-FLV-DISABLED": "FlavorDisabled", "OS-FLV-EXT-DATA": "FlavorExtraData", "OS-SCH-HNT": "SchedulerHints", "OS-SRV-USG": "ServerUsage",
	"os-access-ips": "AccessIPs", "os-admin-actions": "AdminActions", "os-aggregates": "Aggregates", "os-attach-interfaces": "AttachInterfaces",
	"os-availability-zone": "AvailabilityZone", "os-config-drive": "ConfigDrive", "os-console-output": "ConsoleOutput", "os-consoles": "Consoles",
	"os-deferred-delete": "DeferredDelete", "os-extended-volumes": "ExtendedVolumes", "os-flavor-access": "FlavorAccess",
	"os-flavor-extra-specs": "FlavorExtraSpecs", "os-flavor-manage": "FlavorManage", "os-flavor-rxtx": "FlavorRxtx", "os-flavor-swap": "FlavorSwap",
	"os-floating-ip-pools": "FloatingIpPools", "os-floating-ips": "FloatingIps", "os-hide-server-addresses": "HideServerAddresses", "os-hosts": "Hosts",
	"os-hypervisors": "Hypervisors", "os-instance-actions": "InstanceActions", "os-instance_usage_audit_log": "OSInstanceUsageAuditLog",
	"os-keypairs": "Keypairs", "os-migrations": "Migrations", "os-multinic": "Multinic", "os-multiple-create": "MultipleCreate", "os-networks": "Networks",
	"os-pause-server": "PauseServer", "os-personality": "Personality", "os-quota-class-sets": "QuotaClasses", "os-quota-sets": "Quotas",
	"os-remote-consoles": "Consoles", "os-security-groups": "SecurityGroups", "os-server-diagnostics": "ServerDiagnostics",
	"os-server-groups": "ServerGroups", "os-server-start-stop": "ServerStartStop", "os-services": "Services", "os-suspend-server": "SuspendServer",
	"os-tenant-networks": "OSTenantNetworks", "os-used-limits": "UsedLimits", "os-user-data": "UserData", "os-virtual-interfaces": "VirtualInterfaces",
	"servers": "Servers", "flavors": "Flavors", "image-metadata": "ImageMetadata", "images": "Images", "ips": "Ips", "limits": "Limits",
	"os-lock-server": "LockServer", "server-metadata": "ServerMetadata", "versions": "Versions", "extensions": "Extensions",
}

func extensionView(alias string) map[string]any {
	return map[string]any{"alias": alias, "name": extensions[alias], "description": extensions[alias] + ".", "links": []any{},
		"namespace": "http://docs.openstack.org/compute/ext/fake_xml", "updated": "2014-12-03T00:00:00Z"}
}

func (s *server) listExtensions(w http.ResponseWriter, r *http.Request) error {
	aliases := make([]string, 0, len(extensions))
	for alias := range extensions {
		aliases = append(aliases, alias)
	}
	slices.Sort(aliases)
	views := []map[string]any{}
	for _, alias := range aliases {
		views = append(views, extensionView(alias))
	}
	return answer(w, http.StatusOK, map[string]any{"extensions": views})
}

func (s *server) showExtension(w http.ResponseWriter, r *http.Request) error {
	alias := r.PathValue("alias")
	if _, ok := extensions[alias]; !ok {
		return fault.Errorf(fault.NotFound, "Extension %s could not be found.", alias)
	}
	return answer(w, http.StatusOK, map[string]any{"extension": extensionView(alias)})
}
