package neutron

import (
	"net/http"

	"github.com/unkai-cloud/unkai/api/wire"
	"github.com/unkai-cloud/unkai/base/fault"
)

// bad is a request that this dialect itself refuses; typ is Neutron's name of the exception.
func bad(typ, format string, args ...any) error {
	return fault.Errorf(fault.Invalid, format, args...).WithCode("=" + typ)
}

// invalid refuses the value of an attribute.
func invalid(name, format string, args ...any) error {
	f := fault.Errorf(fault.Invalid, format, args...)
	f.Message = "Invalid input for " + name + ". Reason: " + f.Message + "."
	return f.WithCode("=HTTPBadRequest")
}

// A failure is what Neutron calls one of the core's faults.
type failure struct {
	typ     string
	message string // instead of the core's, where Neutron's own words are asked for; "": the core's
}

// failures by the codes of the core (Neutron's and neutron-lib's exceptions).
var failures = map[string]failure{
	"address-group-in-use":          {typ: "AddressGroupInUse"},
	"address-group-not-found":       {typ: "AddressGroupNotFound"},
	"address-in-use":                {typ: "IpAddressInUse"},
	"address-not-in-network":        {typ: "InvalidIpForNetwork"},
	"address-not-in-subnet":         {typ: "InvalidIpForSubnet"},
	"address-scope-not-found":       {typ: "AddressScopeNotFound"},
	"addresses-exhausted":           {typ: "IpAddressGenerationFailure"},
	"auto-address":                  {typ: "AllocationOnAutoAddressSubnet"},
	"bad-interface":                 {typ: "BadRequest"},
	"cidr":                          {typ: "InvalidInput"},
	"cidr-overlap":                  {typ: "InvalidInput"},
	"default-exists":                {typ: "DefaultExternalNetworkExists"},
	"default-group-exists":          {typ: "SecurityGroupDefaultAlreadyExists"},
	"default-group-kept":            {typ: "SecurityGroupCannotRemoveDefault"},
	"dns":                           {typ: "DNSNameServersExhausted"},
	"external-in-use":               {typ: "ExternalNetworkInUse"},
	"external-unreachable":          {typ: "ExternalGatewayForFloatingIPNotFound"},
	"fixed-not-on-port":             {typ: "BadRequest"},
	"floating-address-not-found":    {typ: "FloatingIPNotFound"},
	"floating-has-forwards":         {typ: "FipInUseByPortForwarding"},
	"floating-in-use":               {typ: "PortForwardingNotSupportFilterField"},
	"floating-taken":                {typ: "FloatingIPPortAlreadyAssociated"},
	"foreign-port":                  {typ: "BadRequest"},
	"forward-exists":                {typ: "BadRequest"},
	"gateway":                       {typ: "InvalidInput"},
	"gateway-in-pool":               {typ: "GatewayConflictWithAllocationPools"},
	"gateway-in-use":                {typ: "GatewayIpInUse"},
	"gateway-needed":                {typ: "RouterExternalGatewayInUseByFloatingIp"},
	"group-twice":                   {typ: "InvalidInput"},
	"interface-in-use-floating":     {typ: "RouterInterfaceInUseByFloatingIP"},
	"interface-in-use-route":        {typ: "RouterInterfaceInUseByRoute"},
	"invalid-input":                 {typ: "InvalidInput"},
	"mac-in-use":                    {typ: "MacAddressInUse"},
	"mtu":                           {typ: "InvalidInput"},
	"network-in-use":                {typ: "NetworkInUse"},
	"network-not-found":             {typ: "NetworkNotFound"},
	"no-mac":                        {typ: "MacAddressGenerationFailure"},
	"no-segment":                    {typ: "NoNetworkAvailable"},
	"not-external":                  {typ: "BadRequest"},
	"over-quota":                    {typ: "OverQuota"},
	"pair-twice":                    {typ: "DuplicateAddressPairInRequest"},
	"pairs-exhausted":               {typ: "AllowedAddressPairExhausted"},
	"pairs-need-security":           {typ: "AddressPairAndPortSecurityRequired"},
	"pool":                          {typ: "InvalidAllocationPool"},
	"pool-bits":                     {typ: "IllegalSubnetPoolPrefixBounds"},
	"pool-bits-max":                 {typ: "MaxPrefixSubnetAllocationError"},
	"pool-bits-min":                 {typ: "MinPrefixSubnetAllocationError"},
	"pool-default":                  {typ: "InvalidInput"},
	"pool-default-bits":             {typ: "IllegalSubnetPoolPrefixBounds"},
	"pool-exhausted":                {typ: "SubnetAllocationError"},
	"pool-in-use":                   {typ: "SubnetPoolDeleteError"},
	"pool-out-of-bounds":            {typ: "OutOfBoundsAllocationPool"},
	"pool-overlap":                  {typ: "OverlappingAllocationPools"},
	"pool-prefix":                   {typ: "SubnetPoolMissingPrefixes"},
	"pool-prefix-kept":              {typ: "IllegalSubnetPoolUpdate", message: "Illegal subnetpool update : Existing prefixes must be a subset of the new prefixes."},
	"pool-quota":                    {typ: "SubnetPoolQuotaExceeded"},
	"pool-scope":                    {typ: "IllegalSubnetPoolAssociationToAddressScope"},
	"pool-version":                  {typ: "PrefixVersionMismatch"},
	"port-bound":                    {typ: "PortBound"},
	"port-forward-not-found":        {typ: "PortForwardingNotFound"},
	"port-has-groups":               {typ: "PortSecurityPortHasSecurityGroup"},
	"port-in-use":                   {typ: "PortInUse"},
	"port-not-found":                {typ: "PortNotFound"},
	"provider":                      {typ: "InvalidInput"},
	"quota-not-found":               {typ: "TenantQuotaNotFound"},
	"revision":                      {typ: "RevisionNumberConstraintFailed"},
	"route":                         {typ: "InvalidRoutes"},
	"route-hop":                     {typ: "InvalidRoutes"},
	"router-has-subnet":             {typ: "BadRequest"},
	"router-in-use":                 {typ: "RouterInUse"},
	"router-interface-not-found":    {typ: "RouterInterfaceNotFound"},
	"router-not-found":              {typ: "RouterNotFound"},
	"router-overlap":                {typ: "BadRequest"},
	"router-subnet-not-found":       {typ: "RouterInterfaceNotFoundForSubnet"},
	"router-up":                     {typ: "BadRequest", message: "Cannot upgrade active router to distributed. Please set router admin_state_up to False prior to upgrade."},
	"routes":                        {typ: "HostRoutesExhausted"},
	"routes-exhausted":              {typ: "RoutesExhausted"},
	"rule-ethertype":                {typ: "SecurityGroupRuleParameterConflict", message: "Conflicting value ethertype: it is not that of remote_ip_prefix."},
	"rule-ethertype-protocol":       {typ: "SecurityGroupEthertypeConflictWithProtocol", message: "Invalid ethertype for protocol: an ICMPv6 protocol needs the ethertype IPv6."},
	"rule-exists":                   {typ: "SecurityGroupRuleExists"},
	"rule-icmp":                     {typ: "SecurityGroupInvalidIcmpValue"},
	"rule-icmp-type":                {typ: "SecurityGroupMissingIcmpType", message: "ICMP code (port-range-max) is provided but ICMP type (port-range-min) is missing."},
	"rule-port":                     {typ: "SecurityGroupInvalidPortValue"},
	"rule-port-protocol":            {typ: "SecurityGroupInvalidProtocolForPort"},
	"rule-port-range":               {typ: "SecurityGroupInvalidPortRange", message: "For TCP/UDP protocols, port_range_min must be <= port_range_max"},
	"rule-protocol":                 {typ: "SecurityGroupRuleInvalidProtocol"},
	"rule-protocol-required":        {typ: "SecurityGroupProtocolRequiredWithPorts"},
	"rule-remotes":                  {typ: "SecurityGroupMultipleRemoteEntites", message: "Only remote_ip_prefix or remote_group_id or remote_address_group_id may be provided."},
	"scope-conflict":                {typ: "AddressScopePrefixConflict"},
	"scope-in-use":                  {typ: "AddressScopeInUse"},
	"scope-mixed":                   {typ: "NetworkAddressScopeAffinityError"},
	"scope-unshare":                 {typ: "AddressScopeUpdateError"},
	"security-group-ambiguous":      {typ: "SecurityGroupConflict"},
	"security-group-in-use":         {typ: "SecurityGroupInUse"},
	"security-group-not-found":      {typ: "SecurityGroupNotFound"},
	"security-group-rule-not-found": {typ: "SecurityGroupRuleNotFound"},
	"segment-in-use":                {typ: "VlanIdInUse"},
	"share-action":                  {typ: "InvalidInput"},
	"share-exists":                  {typ: "DuplicateRbacPolicy"},
	"share-in-use":                  {typ: "RbacPolicyInUse"},
	"share-kind":                    {typ: "InvalidInput"},
	"share-not-found":               {typ: "RbacPolicyNotFound"},
	"sharing":                       {typ: "InvalidSharedSetting"},
	"subnet-in-use":                 {typ: "SubnetInUse"},
	"subnet-mismatch":               {typ: "SubnetMismatchForPort"},
	"subnet-not-found":              {typ: "SubnetNotFound"},
	"subnet-pool-not-found":         {typ: "SubnetPoolNotFound"},
	"tag-not-found":                 {typ: "TagNotFound"},
	"too-many-addresses":            {typ: "InvalidInput"},
	"v6-mode":                       {typ: "InvalidInput"},
}

// usual are the types of faults whose code says no more.
var usual = map[fault.Kind]string{
	fault.Internal:     "HTTPInternalServerError",
	fault.Invalid:      "HTTPBadRequest",
	fault.Forbidden:    "PolicyNotAuthorized",
	fault.NotFound:     "HTTPNotFound",
	fault.Conflict:     "Conflict",
	fault.Exists:       "Conflict",
	fault.Exhausted:    "Conflict",
	fault.OverQuota:    "OverQuota",
	fault.TooLarge:     "HTTPRequestEntityTooLarge",
	fault.Unsupported:  "HTTPBadRequest",
	fault.Precondition: "HTTPPreconditionFailed",
	fault.Unavailable:  "ServiceUnavailable",
	fault.Gone:         "HTTPGone",
}

func writeError(w http.ResponseWriter, r *http.Request, status int, f *fault.Error) {
	if status == http.StatusUnauthorized {
		// The client went away if this fails, here and below, and there is nobody left to tell.
		_ = wire.WriteJSON(w, status, object{"error": object{"code": status, "title": "Unauthorized",
			"message": "The request you have made requires authentication."}})
		return
	}
	if f.Kind == fault.OverQuota {
		status = http.StatusConflict
	}
	typ, message := usual[f.Kind], f.Message
	if named, ok := failures[f.Code]; ok {
		typ = named.typ
		if named.message != "" {
			message = named.message
		}
	} else if name, ok := notFound[f.Code]; ok {
		typ = name
	} else if len(f.Code) > 1 && f.Code[0] == '=' {
		typ = f.Code[1:]
	}
	if f.Code == "over-quota" {
		message = "Quota exceeded for resources: ['" + quotaWords[f.Details["quota"]] + "']."
	}
	_ = wire.WriteJSON(w, status, object{"NeutronError": object{"type": typ, "message": message, "detail": ""}})
}

// notFound are the exceptions for kinds whose ID in the path was none, by the kinds' names.
var notFound = map[string]string{
	"network": "NetworkNotFound", "subnet": "SubnetNotFound", "port": "PortNotFound", "router": "RouterNotFound",
	"floatingip": "FloatingIPNotFound", "security_group": "SecurityGroupNotFound", "security_group_rule": "SecurityGroupRuleNotFound",
	"rbac_policy": "RbacPolicyNotFound", "subnetpool": "SubnetPoolNotFound", "address_scope": "AddressScopeNotFound",
	"address_group": "AddressGroupNotFound", "port_forwarding": "PortForwardingNotFound",
}
