#!/bin/bash
# Three controllers and a host, each in a network namespace of its own: whoever is asked speaks for all, the sudden end of the
# one that leads costs seconds and nothing else, and without a majority nothing is written and reads say that they may be old.
PREFIX=${PREFIX:-ukc}
. "$(dirname "$0")/lib.sh"

net=10.213.8
ns() { echo "cl-$$-$1"; }
declare -A pids
apid=

inside() { local in=$1; shift; exec nsenter --net="/run/netns/$(ns "$in")" "$@"; }
url() { echo "http://$net.$1:8700"; }

# controller N [OPTION…] runs one controller and waits until it serves.
controller() {
	local n=$1; shift
	: >"$work/c$n.out"
	inside "$n" "$unkai" controller --name "c$n" --address $net."$n" --data "$work/c$n" --listen $net."$n":8700 --insecure-plain-http \
		--hosts $net."$n":8702 --peers $net."$n":8703 --pool "$pool" "$@" </dev/null >"$work/c$n.out" 2>>"$work/c$n.log" &
	pids[$n]=$!
	until_ok 60 grep -q ^ready "$work/c$n.out" || { tail "$work/c$n.log" >&2; fail "controller $n is not ready"; }
}
end() { kill "-$2" "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"; }
token() { "$unkai" controller token --data "$work/c$1" --for "$2" | tail -n 1; }

agent() {
	: >"$work/a.out"
	inside 4 "$unkai" agent --data "$work/agent" --join https://$net.1:8702 --prefix "$prefix" --pool "$pool" --name host-a "$@" \
		</dev/null >"$work/a.out" 2>>"$work/a.log" &
	apid=$!
	until_ok 30 grep -q ^ready "$work/a.out" || { tail "$work/a.log" >&2; fail "the agent is not ready"; }
}

# ask N METHOD PATH [CURL-OPTION…] asks one controller.
ask() { local n=$1 method=$2 path=$3; shift 3; (inside 4 curl -sS --max-time 30 -X "$method" -H "X-Auth-Token: $auth" -H 'Content-Type: application/json' "$(url "$n")$path" "$@"); }
load() { (inside 4 python3 -B "$root/test/cluster_load.py" "$auth" "$@"); }
led_by() { for n in "${!pids[@]}"; do "$unkai" status --data "$work/c$n" --json | jq -e .Leads >/dev/null && { echo "$n"; return; }; done; return 1; }
up() { "$unkai" status --data "$work/c$1" --json | jq -e '.Hosts | length == 1 and .[0].Up'; }
state() { [ "$(ask "$1" GET /compute/v2.1/servers/"$2" | jq -r .server.status)" = "$3" ]; }
qemu() { pgrep -f "^[^ ]*qemu-system.*$1" | head -n 1; }

# counted FILE ON wants each acknowledged network to be there once, on one controller.
counted() {
	ask "$2" GET '/network/v2.0/networks?fields=name' | jq -r '.networks[].name' | grep ^load | sort >"$work/have"
	jq -r '.acknowledged[]' "$1" | sort >"$work/want" # of this run; what an earlier one made stays
	comm -23 "$work/want" "$work/have" | grep -q . && fail "acknowledged and lost: $(comm -23 "$work/want" "$work/have" | head -n 3)"
	uniq -d "$work/have" | grep -q . && fail "made twice: $(uniq -d "$work/have" | head -n 3)"
	return 0
}

finish() {
	local code=$?
	[ -z "$apid" ] || kill -TERM "$apid" 2>/dev/null || true
	for n in "${!pids[@]}"; do kill -TERM "${pids[$n]}" 2>/dev/null || true; done
	wait 2>/dev/null || true
	(inside 4 "$unkai" down --data "$work/agent" --prefix "$prefix" --pool "$pool" --purge) >>"$work/log" 2>&1 || true
	for n in 1 2 3 4 0; do ip netns del "$(ns $n)" 2>/dev/null || true; done
	if [ $code = 0 ]; then rm -rf "$work"; else { for l in "$work"/*.log; do grep -v etcd: "$l" | tail -n 8 >&2; done; } || true; echo "kept: $work" >&2; fi
	exit $code
}

ip netns add "$(ns 0)"
ip -n "$(ns 0)" link add name sw type bridge
ip -n "$(ns 0)" link set sw up
for n in 1 2 3 4; do
	ip netns add "$(ns $n)"
	ip link add up0 netns "$(ns $n)" type veth peer name "p$n" netns "$(ns 0)"
	ip -n "$(ns 0)" link set "p$n" master sw up
	ip -n "$(ns $n)" addr add $net.$n/24 dev up0
	ip -n "$(ns $n)" link set up0 up
	ip -n "$(ns $n)" link set lo up
done

# --- three become one
controller 1 --cluster
host_token=$(token 1 host)
if (inside 2 timeout 20 "$unkai" controller --name x --address $net.2 --data "$work/x" --listen $net.2:8700 --insecure-plain-http --hosts $net.2:8702 \
	--peers $net.2:8703 --join https://$net.1:8702 --token "$host_token") >"$work/refused" 2>&1; then
	fail "a host's token made a controller"
fi
grep -q 'is for something else' "$work/refused" || { cat "$work/refused" >&2; fail "it does not say why"; }
controller 2 --join https://$net.1:8702 --token "$(token 1 controller)"
controller 3 --join https://$net.1:8702 --token "$(token 1 controller)"
ok "three controllers, joined with one-time tokens; a host's token is refused"

password=$(jq -r .Admin "$work/c2/secrets.json")
login() {
	(inside 4 curl -sS -D - -o /dev/null -H 'Content-Type: application/json' "$(url "$1")/identity/v3/auth/tokens" -d '{"auth":{"identity":{"methods":["password"],
	"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"'"$password"'"}}},"scope":{"project":{"name":"admin","domain":{"id":"default"}}}}}') |
		tr -d '\r' | sed -n 's/^[Xx]-[Ss]ubject-[Tt]oken: //p'
}
auth=$(login 3)
[ -n "$auth" ] || fail "no token"
admin=$(ask 2 GET '/identity/v3/projects?name=admin' | jq -r '.projects[0].id')
ask 2 PUT "/network/v2.0/quotas/$admin" -d '{"quota":{"network":-1}}' -f >/dev/null || fail "the quota cannot be lifted"
for i in $(seq 30); do
	id=$(ask $((i % 3 + 1)) POST /network/v2.0/networks -d '{"network":{"name":"seen-'"$i"'"}}' | jq -r .network.id)
	[ "$(ask $(((i + 1) % 3 + 1)) GET "/network/v2.0/networks/$id" | jq -r .network.name)" = "seen-$i" ] || fail "what one controller acknowledged the next does not show"
	ask $(((i + 2) % 3 + 1)) DELETE "/network/v2.0/networks/$id"
	[ "$(ask $((i % 3 + 1)) GET "/network/v2.0/networks/$id" -o /dev/null -w '%{http_code}')" = 404 ] || fail "what one controller deleted another still shows"
done
[ "$(ask "$(($(led_by) % 3 + 1))" GET "/network/v2.0/security-groups?project_id=$admin" | jq '.security_groups | length')" -ge 1 ] || fail "a read that writes is not answered by a follower"
ok "what is written through one is read at once through each"

image=$(ask 2 POST /image/v2/images -d '{"name":"blank","disk_format":"raw","container_format":"bare"}' | jq -r .id)
head -c 1048576 /dev/zero | (inside 4 curl -sS -f -T - -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$(url 3)/image/v2/images/$image/file")
for n in 1 2 3; do
	until_ok 30 test "$(ask $n GET "/image/v2/images/$image/file" | sha256sum)" = "$(head -c 1048576 /dev/zero | sha256sum)" || fail "controller $n does not give the image"
done
until_ok 30 bash -c "ls $work/c1/images/*.blob $work/c2/images/*.blob $work/c3/images/*.blob" || fail "the image's bytes are not on each"
ok "an image sent to one is on all"

# --- a host
agent --token "$(token 3 host)" 2>/dev/null || true
until_ok 30 up 1 || fail "the host is not up"
project=$(ask 1 GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
vm=$(ask 2 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"42","networks":[{"uuid":"'"$project"'"}]}}' | jq -r .server.id)
until_ok 90 state 3 "$vm" ACTIVE || fail "the server is not ACTIVE"
guest_pid=$(qemu "$vm") || fail "there is no QEMU"
ok "a host serves the cloud whichever controller its clients ask"

# --- the end of the one that leads, three times
for round in 1 2 3; do
	leader=$(led_by) || fail "nobody leads"
	load "load$round" 12 4 "$(url 1)" "$(url 2)" "$(url 3)" >"$work/load$round" &
	loading=$!
	sleep 4
	end "$leader" KILL
	wait $loading || fail "the clients failed"
	other=$((leader % 3 + 1))
	counted "$work/load$round" $other
	step "  kill -9 of controller $leader: $(jq -r '"\(.acknowledged | length) acknowledged, tried again \(.tried_again), the longest silence \(.longest_silence_s) s"' "$work/load$round")"
	jq -e '.longest_silence_s < 6' "$work/load$round" >/dev/null || fail "it took too long until another led"
	until_ok 30 up $other || fail "the host does not find the one that leads"
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest was restarted"
	ask $other POST "/compute/v2.1/servers/$vm/action" -d '{"pause":null}'
	until_ok 30 state $other "$vm" PAUSED || fail "the guest cannot be paused"
	ask $other POST "/compute/v2.1/servers/$vm/action" -d '{"unpause":null}'
	until_ok 30 state $other "$vm" ACTIVE || fail "the guest does not go on"
	controller "$leader"
	counted "$work/load$round" "$leader"
done
ok "kill -9 of the one that leads: nothing acknowledged is lost, nothing made twice, the guest does not notice"

# --- without a majority
leader=$(led_by)
left=$((leader % 3 + 1))
gone=$((left % 3 + 1))
end "$leader" KILL
end $gone KILL
until_ok 20 bash -c "$(declare -f ask inside url ns); net=$net auth=$auth; ns() { echo cl-$$-\$1; }; ask $left GET /network/v2.0/networks -D - -o /dev/null | grep -qi '^Unkai-Stale: true'" ||
	fail "a read without a majority does not say that it may be old"
[ "$(ask $left GET '/network/v2.0/networks?name=private' | jq '.networks | length')" -gt 0 ] || fail "reads do not go on without a majority"
code=$(ask $left POST /network/v2.0/networks -d '{"network":{"name":"alone"}}' -o "$work/alone" -w '%{http_code}')
[ "$code" = 503 ] || fail "a write without a majority is answered $code"
grep -q 'No controller leads now' "$work/alone" || { cat "$work/alone" >&2; fail "the refusal does not say why"; }
kill -0 "$guest_pid" || fail "the guest ended with the majority"
controller "$gone"
until_ok 30 bash -c "$(declare -f ask inside url ns); net=$net auth=$auth; ns() { echo cl-$$-\$1; }; ask $left POST /network/v2.0/networks -d '{\"network\":{\"name\":\"again\"}}' -f" ||
	fail "with a majority nothing is written"
controller "$leader"
[ "$(ask "$leader" GET '/network/v2.0/networks?name=alone' | jq '.networks | length')" = 0 ] || fail "a refused write was done"
ok "without a majority reads go on and say so, writes are refused, and both come back"

# --- one is lost for good, and another takes its place
leader=$(led_by)
lost=$((leader % 3 + 1))
end "$lost" KILL
"$unkai" controller dismiss "c$lost" --data "$work/c$leader" >/dev/null || fail "a lost controller cannot be dismissed"
rm -rf "$work/c$lost"
controller "$lost" --join https://$net."$leader":8702 --token "$(token "$leader" controller)"
until_ok 30 bash -c "$unkai status --data $work/c$leader --json | jq -e '.Controllers | length == 3'" || fail "there are not three controllers again"
left=$lost
ok "a controller that is lost for good is dismissed, and replaced"

# --- the end
until_ok 30 up $left || fail "the host is not up"
ask $left DELETE "/compute/v2.1/servers/$vm"
until_ok 60 bash -c "! kill -0 $guest_pid" || fail "QEMU does not end"
for n in 1 2 3; do
	"$unkai" audit --data "$work/c$n" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit of controller $n found contradictions"; }
done
ok "the audit is clean on all three"
step "done"
echo "cluster: $passed passed, 0 failed"
