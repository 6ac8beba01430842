#!/bin/bash
# Controller and agent apart, each in a network namespace of its own, with nothing between them but mutual TLS:
# joining, real QEMU, the sudden end of either half, and the end of a host's membership.
#   NET=fd13:7: apart.sh     over IPv6 alone
PREFIX=${PREFIX:-uka}
. "$(dirname "$0")/lib.sh"

net=${NET:-10.213.7} tag=$prefix dir=$work
. "$root/test/hosts.sh"
hosts=https://$(on c1 8702)

# half M [OPTION…] runs one half and waits until it serves.
half() { launch "$@"; ready "$1" || fail "$1 is not ready"; }

# join DATA [OPTION…] runs an agent in the foreground.
join() {
	local to=$1; shift
	(inside a1 "$unkai" agent --data "$to" --join "$hosts" --prefix "${prefix}1" --pool "$pool" --name a1 "$@")
}

up() { status c1 | jq -e '.Hosts | length == 1 and .[0].Up'; }
api() { ask c1 "$1" "$2" -f "${@:3}"; }
state() { [ "$(api GET "/compute/v2.1/servers/$1" | jq -r .server.status)" = "$2" ]; }

# end M SIGNAL ends one half.
end() { halt "$1" "$2" || fail "$1 does not end"; }

# refused WHY COMMAND… wants a command to fail, and to say why.
refused() {
	local why=$1; shift
	if timeout 20 bash -c "$(declare -f inside join ns); tag=$tag hosts=$hosts unkai=$unkai prefix=$prefix pool=$pool; $*" >"$work/refused" 2>&1; then
		fail "not refused: $*"
	fi
	grep -q "$why" "$work/refused" || { cat "$work/refused" >&2; fail "it does not say: $why"; }
}

ending() {
	halt a1
	halt c1
	clear_agent a1
	unwire
}

wire c1 a1 out
ip -n "$(ns a1)" link del "${prefix}1-public" # the agent makes it where no operator did

# --- joining
half c1
refused "token is needed" join "$work/other"
refused "not the one that the token is from" join "$work/other" --token abc.def
t=$("$unkai" controller token --data "$work/c1" --valid 1s)
sleep 1.1
refused "not known, was used, or has expired" join "$work/other" --token "$t"
t=$(token c1 host)
half a1 --token "$t"
until_ok 30 up || fail "the host is not up"
refused "not known, was used, or has expired" join "$work/other" --token "$t"
refused "is in use by process $(alive a1)" join "$work/a1"
status c1 | jq -e '.At.HostsURL == "'$hosts'" and .Hosts[0].Name == "a1" and .Hosts[0].Driver == "qemu"' >/dev/null || fail "the status is wrong"
("$unkai" status --data "$work/c1" || true) | grep "a1 " >/dev/null || fail "the status does not show the host"
ok "a machine joins once with a one-time token; a used, an expired and a stranger's token are refused"

# --- a machine whose address or wire does not do is told so at the join, and its token stays good
t=$(token c1 host)
for _ in 1 2; do refused "so does host a1" join "$work/other" --token "$t" --name a2 --address "$(at a1)"; done
ip -n "$(ns a1)" link add thin mtu 1400 type veth peer name thinner
case $net in
*:) bits=128 family=IPv6 other=192.0.2.9 ;;
*) bits=32 family=IPv4 other=2001:db8::9 ;;
esac
ip -n "$(ns a1)" addr add "$(host 9)/$bits" dev thin
refused "1400 bytes at $(host 9), and 1500 are needed" join "$work/other" --token "$t" --name a2 --address "$(host 9)"
ip -n "$(ns a1)" link del thin
refused "over $family" join "$work/other" --token "$t" --name a2 --address $other
status c1 | jq -e '.Newcomers == null and (.Hosts | length) == 1' >/dev/null || fail "a machine that was refused has joined"
ok "what does not fit is told at the join, with the token as good as before"

# --- a server
auth=$(login c1)
[ -n "$auth" ] || fail "no token"
head -c 1048576 /dev/zero >"$work/blank"
image=$(image c1 blank "$work/blank" raw) || fail "no image"
network=$(api GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
vm=$(api POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
until_ok 60 state "$vm" ACTIVE || fail "the server is not ACTIVE"
guest_pid=$(qemu "$vm") || fail "there is no QEMU"
carries() { [ "$(api GET /v1/hosts | jq -r '.items[0].mtu')" = "$1" ]; }
carries 1500 || fail "the wire is not known"
ip -n "$(ns a1)" link set up0 mtu 1400
until_ok 20 carries 1400 || fail "that the wire carries less is not told"
status c1 | jq -e '.Hosts[0].Unfit == null' >/dev/null || fail "a host that is alone is shut"
ip -n "$(ns a1)" link set up0 mtu 1500
until_ok 20 carries 1500 || fail "that the wire carries more again is not told"
ok "a server runs on the host, its image came over the stream"

# obeys wants the guest to be the same as ever, and the halves to work together.
obeys() {
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest was restarted"
	api POST "/compute/v2.1/servers/$vm/action" -d '{"pause":null}'
	until_ok 30 state "$vm" PAUSED || fail "the guest cannot be paused"
	api POST "/compute/v2.1/servers/$vm/action" -d '{"unpause":null}'
	until_ok 30 state "$vm" ACTIVE || fail "the guest does not go on"
	"$unkai" audit --data "$work/c1" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
}

# --- the end of either half
end a1 KILL
kill -0 "$guest_pid" || fail "the guest died with the agent"
half a1
until_ok 30 up || fail "the host is not up again"
obeys
ok "kill -9 of the agent: the guest lives, and is adopted again"

end c1 KILL
sleep 1
kill -0 "$guest_pid" || fail "the guest died with the controller"
alive a1 >/dev/null || fail "the agent died with the controller"
half c1
until_ok 30 up || fail "the agent does not reconnect"
obeys
ok "kill -9 of the controller: the guest lives, and the agent comes back by itself"

end c1 TERM
end a1 TERM
kill -0 "$guest_pid" || fail "the guest ended with both"
half a1 # it starts without any controller
half c1
until_ok 30 up || fail "the halves do not find each other"
obeys
ok "both restarted, the agent first"

# --- the end of a membership
refused "still has 1 servers" "$unkai" controller remove a1 --data "$work/c1"
api DELETE "/compute/v2.1/servers/$vm"
until_ok 60 bash -c '! kill -0 '"$guest_pid" || fail "QEMU does not end"
gone() { [ "$(ask c1 GET "/compute/v2.1/servers/$vm" -o /dev/null -w '%{http_code}')" = 404 ]; }
until_ok 30 gone || fail "the server is not gone"
"$unkai" controller remove a1 --data "$work/c1" >/dev/null
until_ok 20 grep -q "no host of this cloud, or no more" "$work/a1.log" || fail "the removed host is not refused"
status c1 | jq -e '.Hosts == null' >/dev/null || fail "the removed host is still there"
end a1 TERM
half a1
sleep 2
status c1 | jq -e '.Hosts == null' >/dev/null || fail "the removed host came back"
alive a1 >/dev/null || fail "an agent that is refused ended"
end a1 TERM
ok "a removed host is cut off at once, and refused with its certificate"

# --- nothing is left
(inside a1 "$unkai" down --data "$work/a1" --prefix "${prefix}1" --pool "$pool" --purge) >/dev/null
[ ! -e "$work/a1" ] || fail "the agent's directory is left"
! ip netns list | grep "^${prefix}1-" >/dev/null || fail "network namespaces are left"
! ip -n "$(ns a1)" link show | grep " ${prefix}1-" >/dev/null || fail "links are left"
[ -z "$(qemu "$work")" ] || fail "a QEMU is left"
"$unkai" audit --data "$work/c1" >/dev/null || fail "the audit found contradictions"
refused "is in use by process $(alive c1)" "$unkai" down --data "$work/c1" --purge
end c1 TERM
"$unkai" down --data "$work/c1" --purge >/dev/null
[ ! -e "$work/c1" ] || fail "the controller's directory is left"
ok "down leaves nothing"
step "done"
echo "apart: $passed passed, 0 failed"
