#!/bin/bash
# A region's networks on real packets: three controllers and three hosts in network namespaces, and guests on two of the hosts. One guest
# has no floating address: what it says outside leaves under its router's address, at the router's home, a third host. That host's
# links are cut, and then the cable of the next one's network outside; it prints for how long the guest reached nobody, and what became of a connection. IPv6 between the hosts:
# router advertisements, metadata, ping, and a live move.
PREFIX=${PREFIX:-ukn}
. "$(dirname "$0")/lib.sh"
pool=${POOL:-172.31.251.0/24}
net=${NET:-10.213.13}
export LAB=$work/lab PREFIX=$prefix HOSTS=3 UNKAI=$unkai GUEST=$guest POOL=$pool NET=$net
dir=$LAB tag=$prefix
. "$root/test/hosts.sh"

ending() {
	[ -z "${echoes:-}" ] || kill "$echoes"
	cp "$dir"/*.log "$work/"
	"$root/test/lab.sh" down
}
"$root/guest/build.sh" "$guest" >/dev/null 2>&1 || fail "there is no guest's image"
"$root/test/lab.sh" up >>"$work/log" 2>&1 || fail "the lab is not ready"
auth=$(login c1)
api() { ask c1 "$1" "$2" -H 'OpenStack-API-Version: compute 2.90' -f "${@:3}"; }
ok "three controllers and three hosts"

# --- a network with both families behind a router, and its guests away from the router's home
disk=$(quick c1) || fail "no image"
netid=$(api POST /network/v2.0/networks -d '{"network":{"name":"n"}}' | jq -r .network.id)
public=$(api GET '/network/v2.0/networks?router:external=true' | jq -r '.networks[0].id')
router=$(api POST /network/v2.0/routers -d '{"router":{"name":"r","external_gateway_info":{"network_id":"'"$public"'"}}}' | jq -r .router.id)
for subnet in '"ip_version":4,"cidr":"10.88.0.0/24"' '"ip_version":6,"cidr":"fd88::/64","ipv6_address_mode":"slaac","ipv6_ra_mode":"slaac"'; do
	id=$(api POST /network/v2.0/subnets -d '{"subnet":{"network_id":"'"$netid"'",'"$subnet"'}}' | jq -r .subnet.id)
	api PUT "/network/v2.0/routers/$router/add_router_interface" -d '{"subnet_id":"'"$id"'"}' >/dev/null || fail "no interface"
done
group=$(api POST /network/v2.0/security-groups -d '{"security_group":{"name":"in"}}' | jq -r .security_group.id)
for rule in '"protocol":"icmp"' '"protocol":"tcp","port_range_min":22,"port_range_max":22' '"protocol":"ipv6-icmp","ethertype":"IPv6"'; do
	api POST /network/v2.0/security-group-rules -d '{"security_group_rule":{"security_group_id":"'"$group"'","direction":"ingress",'"$rule"'}}' >/dev/null || fail "no rule"
done
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
api POST /compute/v2.1/os-keypairs -d '{"keypair":{"name":"k","type":"ssh","public_key":"'"$(cat "$work/key.pub")"'"}}' >/dev/null || fail "no key pair"
home() { api GET "/network/v2.0/ports?device_id=$router&device_owner=network:router_gateway" | jq -r '.ports[0]."binding:host_id"'; }
home=$(home)
mapfile -t others < <(printf '%s\n' a1 a2 a3 | grep -vx "$home")
[ ${#others[@]} = 2 ] || fail "the router's home is $home"
port() { api GET "/network/v2.0/ports?device_id=${vm[$1]}" | jq -r '.ports[0]'; }
fixed() { port "$1" | jq -r --arg at "$2" '[.fixed_ips[].ip_address | select(contains($at))][0]'; }
declare -A vm
n=0
for name in door inner; do
	vm[$name]=$(api POST /compute/v2.1/servers -d '{"server":{"name":"'$name'","imageRef":"'"$disk"'","flavorRef":"42","key_name":"k","networks":[{"uuid":"'"$netid"'"}],
		"security_groups":[{"name":"in"}],"host":"'"${others[$n]}"'"}}' | jq -r .server.id)
	n=$((n + 1))
done
door=$(api POST /network/v2.0/floatingips -d '{"floatingip":{"floating_network_id":"'"$public"'","port_id":"'"$(port door | jq -r .id)"'"}}' | jq -r .floatingip.floating_ip_address)
options=(-n -i "$work/key" -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=3 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=no
	-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR)
at_door() { (inside out ssh "${options[@]}" "cirros@$door" "$@"); }
at_inner() { (inside out ssh "${options[@]}" -o "ProxyCommand=ssh ${options[*]/-n/} -W %h:%p cirros@$door" "cirros@$inner" "$@"); }
inner=$(fixed inner .)
until_ok 180 at_door true || fail "the guest does not answer at $door"
until_ok 120 at_inner true || fail "the guest does not answer behind the other"
ok "guests on ${others[*]}; what has no floating address goes out at $home"

# gap FILE SINCE prints the longest time, in ms, without an answer that ping -D tells of since then and until now. The guest's clock need not go
# right: one that boots while the machine is busy may take its processor for a slower one (the kernel measures it), and its clock is
# fast then. So the time is put right by ours.
gap() {
	local wall up ours
	read -r wall up ours <<<"$2"
	{ at_inner "cat $1; date +'[%s] time='" | sed -n 's/^\[\([0-9.]*\)\].* time=.*/\1/p'; echo "rate $up $ours $(now)"; } |
		awk -v from="$wall" 'BEGIN { last = from } $1 == "rate" { print int(1000 * most * ($6 - $3) / ($5 - $2)); exit } $1 >= from { if ($1 - last > most) most = $1 - last; last = $1 }'
}
# now prints the guest's time, its uptime, and our time.
now() { echo "$(at_inner 'date +%s; cut -d" " -f1 /proc/uptime' | tr '\n' ' ') $(date +%s.%N)"; }
pinging() { at_inner "sudo sh -c 'setsid /usr/bin/ping $3 -D -n -i 0.2 $1 >$2 2>&1 </dev/null &'"; until_ok 20 at_inner "grep -q time= $2" || { at_inner "cat $2" >&2; fail "$1 does not answer"; }; }

# --- IPv6
six=$(fixed door :)
[ "$(at_inner 'ip -6 route show default' | grep -c 'proto ra')" -ge 1 ] || fail "no router is advertised"
[ "$(at_inner "ip -6 addr show scope global" | grep -c "$(fixed inner :)/")" = 1 ] || fail "the guest has not made the address that it was promised"
at_inner "curl -sg -m 20 'http://[fe80::a9fe:a9fe%25eth0]/openstack/latest/meta_data.json'" | jq -e --arg id "${vm[inner]}" '.uuid == $id' >/dev/null || fail "no metadata over IPv6"
pinging "$six" /tmp/six -6
ok "IPv6: advertised, metadata, and guests on two hosts reach each other"
moved() { [ "$(api GET "/compute/v2.1/servers/${vm[inner]}" | jq -r '.server | "\(."OS-EXT-SRV-ATTR:host") \(.status)"')" = "$1 ACTIVE" ]; }
for to in "${others[0]}" "${others[1]}"; do
	since=$(now)
	api POST "/compute/v2.1/servers/${vm[inner]}/action" -d '{"os-migrateLive":{"host":"'"$to"'","block_migration":"auto"}}' || fail "the move is refused"
	until_ok 90 moved "$to" || fail "it is not on $to"
	sleep 2
	most=$(gap /tmp/six "$since")
	step "  live, to $to: nobody answered for $most ms (IPv6)"
	[ "$most" -gt 0 ] && [ "$most" -lt 3000 ] || fail "IPv6 was away for $most ms"
done
ok "a guest that moves keeps its IPv6"

# --- the router's home
cat >"$work/echo.py" <<'END'
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("", 9000), Echo).serve_forever()
END
inside out python3 -B "$work/echo.py" 2>>"$work/log" &
echoes=$!
out=$(outside)
pinging "$out" /tmp/out -4
at_inner "echo 'while :; do cut -d\" \" -f1 /proc/uptime; sleep 0.2; done | nc $out 9000 >/tmp/talk; echo over >>/tmp/talk' >/tmp/talker; setsid sh /tmp/talker >/dev/null 2>&1 </dev/null &"
until_ok 20 at_inner 'test -s /tmp/talk' || fail "the guest cannot speak outside"

# fate tells what became of that connection.
fate() { at_inner 'tail -n 1 /tmp/talk; cut -d" " -f1 /proc/uptime' | awk 'NR == 1 { if ($1 == "over") { print "ended"; exit }; last = $1 } NR == 2 { print $1 - last < 3 ? "goes on" : "hangs" }'; }

since=$(now)
halt "$home" KILL
sleep 3
[ "$(home)" = "$home" ] || fail "the router left for the end of an agent"
launch "$home"
ready "$home" || fail "$home is not ready"
most=$(gap /tmp/out "$since")
step "  the agent of $home killed: nobody answered for $most ms"
[ "$most" -lt 1500 ] && [ "$(fate)" = "goes on" ] || fail "the end of an agent was noticed"
ok "the end of the agent at a router's home changes nothing for who goes out there"

sleep 2
wires() { for p in "$home" "w$home"; do ip -n "$(ns sw)" link set "$p" "$1"; done; }
since=$(now)
wires down
until_ok 30 eval '[ "$(home)" != "$home" ]' || fail "the router stays at a home that is cut off"
step "  the links of $home cut: its router is at $(home)"
sleep 4
most=$(gap /tmp/out "$since")
step "  the guest reached nobody outside for $most ms"
[ "$most" -gt 0 ] && [ "$most" -lt 5000 ] || fail "it took too long"
until_ok 20 eval '[ "$(fate)" != hangs ]' || true # both ends wait longer each time before they try again
step "  a TCP connection that was open $(fate)"
[ "$(fate)" = "goes on" ] || fail "it did not survive"
ok "SNAT is elsewhere within 5 s after its host is cut off"
wires up
until_ok 60 eval '[ "$(status c1 | jq "[.Hosts[]? | select(.Up)] | length")" = 3 ]' || fail "$home does not come back"
since=$(now)
sleep 3
most=$(gap /tmp/out "$since")
[ "$most" -gt 0 ] && [ "$most" -lt 1500 ] || fail "its return was noticed: $most ms"
ok "its return changes nothing"

# The machine lives, and the cable of its network outside is pulled.
home=$(home)
cable() { ip -n "$(ns sw)" link set "w$home" "$1"; }
since=$(now)
cable down
until_ok 30 eval '[ "$(home)" != "$home" ]' || fail "the router stays at a home whose uplink has no carrier"
next=$(home)
step "  the cable of $home pulled: its router is at $next"
sleep 3
most=$(gap /tmp/out "$since")
step "  the guest reached nobody outside for $most ms; a TCP connection that was open $(fate)"
[ "$most" -gt 0 ] && [ "$most" -lt 5000 ] || fail "it took too long"
cable up
sleep 1
cable down
sleep 1
cable up
[ "$(home)" = "$next" ] || fail "the router went back to a link that comes and goes"
ok "SNAT is elsewhere within 5 s after its uplink's carrier is lost"

"$unkai" audit --data "$dir/c1" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
step "done"
echo "outside: $passed passed, 0 failed"
