#!/bin/bash
# Controller and agent apart, each in a network namespace of its own, with nothing between them but mutual TLS:
# joining, real QEMU, the sudden end of either half, and the end of a host's membership.
PREFIX=${PREFIX:-uka}
. "$(dirname "$0")/lib.sh"

here=apart-$$-c there=apart-$$-a # the controller's namespace and the agent's
cdata=$work/controller adata=$work/agent
hosts=https://10.213.7.1:8702
cpid= apid=

inside() { local ns=$1; shift; exec nsenter --net="/run/netns/$ns" "$@"; }

controller() {
	: >"$work/c.out"
	inside $here "$unkai" controller --data "$cdata" --listen 127.0.0.1:8700 --hosts 10.213.7.1:8702 --pool "$pool" \
		</dev/null >"$work/c.out" 2>>"$work/log" &
	cpid=$!
	until_ok 30 grep -q ^ready "$work/c.out" || fail "the controller is not ready"
	url=$(sed -n 's/^ready //p' "$work/c.out")
}

# join DATA [OPTION…] runs an agent in the foreground.
join() {
	local to=$1; shift
	(inside $there "$unkai" agent --data "$to" --join $hosts --prefix "$prefix" --pool "$pool" --name host-a "$@")
}

agent() {
	: >"$work/a.out"
	inside $there "$unkai" agent --data "$adata" --join $hosts --prefix "$prefix" --pool "$pool" --name host-a "$@" \
		</dev/null >"$work/a.out" 2>>"$work/a.log" &
	apid=$!
	until_ok 30 grep -q ^ready "$work/a.out" || { tail "$work/a.log" >&2; fail "the agent is not ready"; }
}

token() { "$unkai" controller token --data "$cdata" "$@"; }
status() { "$unkai" status --data "$cdata" --json; }
up() { status | jq -e '.Hosts | length == 1 and .[0].Up'; }
api() { (inside $here curl -sS -f -H "X-Auth-Token: $auth" -H 'Content-Type: application/json' "$@"); }
state() { [ "$(api "$url/compute/v2.1/servers/$1" | jq -r .server.status)" = "$2" ]; }

# end PID SIGNAL ends one half.
end() { kill "-$2" "$1"; wait "$1" 2>/dev/null || true; }

# refused WHY COMMAND… wants a command to fail, and to say why.
refused() {
	local why=$1; shift
	if timeout 20 bash -c "$(declare -f inside join); hosts=$hosts there=$there unkai=$unkai prefix=$prefix pool=$pool; $*" >"$work/refused" 2>&1; then
		fail "not refused: $*"
	fi
	grep -q "$why" "$work/refused" || { cat "$work/refused" >&2; fail "it does not say: $why"; }
}

ending() {
	[ -z "$apid" ] || end "$apid" TERM
	[ -z "$cpid" ] || end "$cpid" TERM
	(inside $there "$unkai" down --data "$adata" --prefix "$prefix" --pool "$pool" --purge)
	ip netns del $here
	ip netns del $there
}

ip netns add $here
ip netns add $there
ip link add unkai-c netns $here type veth peer name unkai-a netns $there
for half in "$here unkai-c 10.213.7.1" "$there unkai-a 10.213.7.2"; do
	read -r ns link address <<<"$half"
	ip -n $ns link set lo up
	ip -n $ns addr add "$address/30" dev $link
	ip -n $ns link set $link up
done

# --- joining
controller
refused "token is needed" join "$work/other"
refused "not the one that the token is from" join "$work/other" --token abc.def
t=$(token --valid 1s)
sleep 1.1
refused "not known, was used, or has expired" join "$work/other" --token "$t"
t=$(token)
agent --token "$t"
until_ok 30 up || fail "the host is not up"
refused "not known, was used, or has expired" join "$work/other" --token "$t"
refused "is in use by process $apid" join "$adata"
status | jq -e '.At.HostsURL == "'$hosts'" and .Hosts[0].Name == "host-a" and .Hosts[0].Driver == "qemu"' >/dev/null || fail "the status is wrong"
("$unkai" status --data "$cdata" || true) | grep "host-a " >/dev/null || fail "the status does not show the host"
ok "a machine joins once with a one-time token; a used, an expired and a stranger's token are refused"

# --- a machine whose address or wire does not do is told so at the join, and its token stays good
t=$(token)
for _ in 1 2; do refused "so does host host-a" join "$work/other" --token "$t" --name host-b --address 10.213.7.2; done
ip -n $there link add thin mtu 1400 type veth peer name thinner
ip -n $there addr add 10.213.7.9/32 dev thin
refused "1400 bytes at 10.213.7.9, and 1500 are needed" join "$work/other" --token "$t" --name host-b --address 10.213.7.9
ip -n $there link del thin
refused "over IPv4" join "$work/other" --token "$t" --name host-b --address 2001:db8::9
status | jq -e '.Newcomers == null and (.Hosts | length) == 1' >/dev/null || fail "a machine that was refused has joined"
ok "what does not fit is told at the join, with the token as good as before"

# --- a server
auth=$(admin_token "$cdata/secrets.json" "$url" inside $here curl)
[ -n "$auth" ] || fail "no token"
image=$(api "$url/image/v2/images" -d '{"name":"blank","disk_format":"raw","container_format":"bare"}' | jq -r .id)
head -c 1048576 /dev/zero | (inside $here curl -sS -f -T - -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$url/image/v2/images/$image/file")
network=$(api "$url/network/v2.0/networks?name=private" | jq -r '.networks[0].id')
vm=$(api "$url/compute/v2.1/servers" -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
until_ok 60 state "$vm" ACTIVE || fail "the server is not ACTIVE"
guest_pid=$(qemu "$vm") || fail "there is no QEMU"
carries() { [ "$(api "$url/v1/hosts" | jq -r '.items[0].mtu')" = "$1" ]; }
carries 1500 || fail "the wire is not known"
ip -n $there link set unkai-a mtu 1400
until_ok 20 carries 1400 || fail "that the wire carries less is not told"
status | jq -e '.Hosts[0].Unfit == null' >/dev/null || fail "a host that is alone is shut"
ip -n $there link set unkai-a mtu 1500
until_ok 20 carries 1500 || fail "that the wire carries more again is not told"
ok "a server runs on the host, its image came over the stream"

# obeys wants the guest to be the same as ever, and the halves to work together.
obeys() {
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest was restarted"
	api "$url/compute/v2.1/servers/$vm/action" -d '{"pause":null}'
	until_ok 30 state "$vm" PAUSED || fail "the guest cannot be paused"
	api "$url/compute/v2.1/servers/$vm/action" -d '{"unpause":null}'
	until_ok 30 state "$vm" ACTIVE || fail "the guest does not go on"
	"$unkai" audit --data "$cdata" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
}

# --- the end of either half
end "$apid" KILL
kill -0 "$guest_pid" || fail "the guest died with the agent"
agent
until_ok 30 up || fail "the host is not up again"
obeys
ok "kill -9 of the agent: the guest lives, and is adopted again"

end "$cpid" KILL
sleep 1
kill -0 "$guest_pid" || fail "the guest died with the controller"
kill -0 "$apid" || fail "the agent died with the controller"
controller
until_ok 30 bash -c "$(declare -f status up); unkai=$unkai cdata=$cdata; up" || fail "the agent does not reconnect"
obeys
ok "kill -9 of the controller: the guest lives, and the agent comes back by itself"

end "$cpid" TERM
end "$apid" TERM
kill -0 "$guest_pid" || fail "the guest ended with both"
agent # it starts without any controller
controller
until_ok 30 up || fail "the halves do not find each other"
obeys
ok "both restarted, the agent first"

# --- the end of a membership
refused "still has 1 servers" "$unkai" controller remove host-a --data "$cdata"
api -X DELETE "$url/compute/v2.1/servers/$vm"
until_ok 60 bash -c '! kill -0 '"$guest_pid" || fail "QEMU does not end"
until_ok 30 bash -c "$(declare -f inside api); here=$here auth=$auth; ! api $url/compute/v2.1/servers/$vm" || fail "the server is not gone"
"$unkai" controller remove host-a --data "$cdata" >/dev/null
until_ok 20 grep -q "no host of this cloud, or no more" "$work/a.log" || fail "the removed host is not refused"
status | jq -e '.Hosts == null' >/dev/null || fail "the removed host is still there"
end "$apid" TERM
agent
sleep 2
status | jq -e '.Hosts == null' >/dev/null || fail "the removed host came back"
kill -0 "$apid" || fail "an agent that is refused ended"
end "$apid" TERM
ok "a removed host is cut off at once, and refused with its certificate"

# --- nothing is left
(inside $there "$unkai" down --data "$adata" --prefix "$prefix" --pool "$pool" --purge) >/dev/null
apid=
[ ! -e "$adata" ] || fail "the agent's directory is left"
! ip netns list | grep -q "^$prefix-" || fail "network namespaces are left"
! ip -n $there link show | grep -q " $prefix-" || fail "links are left"
[ -z "$(qemu "$work")" ] || fail "a QEMU is left"
"$unkai" audit --data "$cdata" >/dev/null || fail "the audit found contradictions"
refused "is in use by process $cpid" "$unkai" down --data "$cdata" --purge
end "$cpid" TERM
cpid=
"$unkai" down --data "$cdata" --purge >/dev/null
[ ! -e "$cdata" ] || fail "the controller's directory is left"
ok "down leaves nothing"
step "done"
echo "apart: $passed passed, 0 failed"
