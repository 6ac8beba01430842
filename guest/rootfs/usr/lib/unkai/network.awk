# Reads json.awk's lines of a network_data.json, and prints what it says of the interface with one address
# (-v mac=...), a line each:
#   mtu BYTES | address ADDRESS/BITS | route NETWORK/BITS GATEWAY | dns ADDRESS | dhcp
# and nothing at all if it does not know the interface.

function bits(mask,   part, n, i, count, value) {
	if (mask ~ /^[0-9]+$/) return mask
	count = 0
	if (mask ~ /:/) {
		n = split(tolower(mask), part, "")
		for (i = 1; i <= n; i++)
			if (part[i] != ":")
				for (value = index("0123456789abcdef", part[i]) - 1; value > 0; value = int(value / 2)) count += value % 2
		return count
	}
	n = split(mask, part, ".")
	for (i = 1; i <= n; i++)
		for (value = part[i]; value > 0; value = int(value / 2)) count += value % 2
	return count
}

BEGIN { FS = "\t" }

{ fact[$1] = $2 }

END {
	for (i = 0; ("links/" i "/id") in fact; i++)
		if (tolower(fact["links/" i "/ethernet_mac_address"]) == tolower(mac)) {
			link = fact["links/" i "/id"]
			if (fact["links/" i "/mtu"] + 0 > 0) print "mtu " fact["links/" i "/mtu"]
		}
	if (link == "") exit
	for (i = 0; (n = "networks/" i "/") && ((n "type") in fact); i++) {
		if (fact[n "link"] != link) continue
		if (fact[n "type"] == "ipv4_dhcp") print "dhcp"
		if (fact[n "type"] !~ /^(ipv4|ipv6|ipv6_dhcpv6-stateful)$/ || fact[n "ip_address"] == "") continue
		address = fact[n "ip_address"]
		if (address !~ /\//) address = address "/" bits(fact[n "netmask"])
		print "address " address
		for (j = 0; (r = n "routes/" j "/") && ((r "gateway") in fact); j++)
			print "route " fact[r "network"] "/" bits(fact[r "netmask"]) " " fact[r "gateway"]
	}
	for (i = 0; ("services/" i "/address") in fact; i++)
		if (fact["services/" i "/type"] == "dns") print "dns " fact["services/" i "/address"]
}
