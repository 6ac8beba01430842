#!/bin/bash
# Upgrades under load: the previous release and this one, a controller and a host with a guest, in both mixtures, there and back
# and there again; then three controllers and a host of this release and the next. No idempotent request is lost, the guest does not notice, and
# what must not go on together refuses to. The previous release is built from the commit in test/previous-release.
#   test/upgrade.sh [short]     short: the first part, with the binary that is built already
PREFIX=${PREFIX:-ukg}
. "$(dirname "$0")/lib.sh"

net=10.213.9
ns() { echo "up-$$-$1"; }
declare -A pids
only=${ONLY:-1 2}
short=${1:-}
[ "$short" != short ] || only=1

inside() { local in=$1; shift; exec nsenter --net="/run/netns/$(ns "$in")" "$@"; }
url() { echo "http://$net.$1:8700"; }
# built NAME FROM [LDFLAGS] builds a release.
built() { (cd "$2" && CGO_ENABLED=0 go build -ldflags "-s -w -X main.version=$1 ${3:-}" -o "$work/unkai-$1" ./cmd/unkai); }

# run NAME COMMAND… starts a process from a binary of its own, which is what is replaced: bin-NAME.
run() {
	local name=$1 in=$2; shift 2
	: >"$work/$name.out"
	inside "$in" "$work/bin-$name/unkai" "$@" </dev/null >>"$work/$name.out" 2>>"$work/$name.log" &
	pids[$name]=$!
	until_ok 60 grep -q ^ready "$work/$name.out" || { grep -v etcd: "$work/$name.log" | tail >&2; fail "$name is not ready"; }
}
install() { mkdir -p "$work/bin-$1"; cp "$work/unkai-$2" "$work/bin-$1/unkai.new"; mv "$work/bin-$1/unkai.new" "$work/bin-$1/unkai"; }
end() { kill -TERM "${pids[$1]}"; wait "${pids[$1]}" 2>/dev/null || true; unset "pids[$1]"; }
controller() { # NAME NODE [OPTION…]
	local name=$1 n=$2; shift 2
	run "$name" "$n" controller --data "$work/$name" --listen "$net.$n:8700" --insecure-plain-http --hosts "$net.$n:8702" --pool "$pool" "$@"
}
agent() { run agent 4 agent --data "$work/agent" --join "https://$net.1:8702" --prefix "$prefix" --pool "$pool" --name host-a "$@"; }
upgrade() { "$work/unkai-this" upgrade --data "$work/$1" --to "$work/unkai-$2" >>"$work/upgrades" 2>&1 || { tail -n 3 "$work/upgrades" >&2; fail "$1 does not become $2"; }; }
refused() { local why=$1; shift; if "$@" >"$work/refused" 2>&1; then fail "not refused: $*"; fi; grep -q "$why" "$work/refused" || { cat "$work/refused" >&2; fail "it does not say: $why"; }; }

ask() { local n=$1 method=$2 path=$3; shift 3; (inside 4 curl -sS --max-time 30 -X "$method" -H "X-Auth-Token: $auth" -H 'Content-Type: application/json' "$(url "$n")$path" "$@"); }
status() { "$work/unkai-this" status --data "$work/$1" --json; }
up() { status "$1" | jq -e '.Hosts | length == 1 and .[0].Up'; }
state() { [ "$(ask "$1" GET /compute/v2.1/servers/"$2" | jq -r .server.status)" = "$3" ]; }
login() {
	auth=$(admin_token "$work/$2/secrets.json" "$(url "$1")" inside 4 curl)
	[ -n "$auth" ] || fail "no token"
	admin=$(ask "$1" GET '/identity/v3/projects?name=admin' | jq -r '.projects[0].id')
	ask "$1" PUT "/network/v2.0/quotas/$admin" -d '{"quota":{"network":-1,"port":-1}}' -f >/dev/null || fail "the quota cannot be lifted"
}
# load NAME SECONDS CLIENTS NODE… runs clients in the background.
load() {
	local name=$1 seconds=$2 clients=$3; shift 3
	local urls=()
	for n in "$@"; do urls+=("$(url "$n")"); done
	(LOAD_READS=${reads:-} LOAD_KINDS=networks,keypairs,ports,servers LOAD_NETWORK=$network LOAD_IMAGE=$blank inside 4 python3 -B "$root/test/cluster_load.py" "$auth" "$name" "$seconds" "$clients" "${urls[@]}") \
		>"$work/$name" 2>"$work/$name.err" &
	loading=$!
}
# loaded NAME NODE ends the load, and holds what is there against what was acknowledged.
loaded() {
	wait "$loading" || { cat "$work/$1.err" >&2; fail "the clients failed"; }
	jq -e '.gave_up == []' "$work/$1" >/dev/null || fail "never answered: $(jq -c .gave_up "$work/$1")"
	accounted "$work/$1" < <(ask "$2" GET '/network/v2.0/networks?fields=name' | jq -r '.networks[].name' | grep "^$1-")
	[ "$(ask "$2" GET "/network/v2.0/ports?fields=name" | jq -r '.ports[].name' | grep -c "^$1-")" = 0 ] || fail "a port was made twice, or its deletion lost"
	[ "$(ask "$2" GET "/compute/v2.1/os-keypairs" | jq -r '.keypairs[].keypair.name' | grep -c "^$1-")" = 0 ] || fail "a key pair was made twice, or its deletion lost"
	until_ok 60 bash -c "$(declare -f ask inside url ns); net=$net auth=$auth; ns() { echo up-$$-\$1; }; [ \"\$(ask $2 GET /compute/v2.1/servers | jq -r '.servers[].name' | grep -c '^$1-')\" = 0 ]" ||
		fail "a server was made twice, or its deletion lost"
	step "  $(jq -r '"made \(.made | tostring), tried again \(.tried_again | tostring), the longest silence \(.longest_silence_s) s, the slowest answer \(.slowest_s) s (\(.slowest))"' "$work/$1")"
}

ending() {
	kill "${loading:-}"
	# Whoever works on a directory says so in its lock; it may be another process than the one that was started.
	for d in c p1 p2 p3 agent; do
		[ ! -s "$work/$d/lock" ] || kill -TERM "$(cat "$work/$d/lock")"
	done
	wait
	(inside 4 "$work/unkai-this" down --data "$work/agent" --prefix "$prefix" --pool "$pool" --purge)
	for n in 1 2 3 4 0; do ip netns del "$(ns $n)"; done
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
skipped=0
if [ -n "$short" ]; then cp "$unkai" "$work/unkai-this"; else
	built this "$root"
	built next "$root" "-X github.com/unkai-cloud/unkai/base/release.stamp=3"
fi

blank() {
	blank=$(ask 1 POST /image/v2/images -d '{"name":"blank","disk_format":"raw","container_format":"bare"}' | jq -r .id)
	head -c 1048576 /dev/zero | (inside 4 curl -sS -f -T - -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$(url 1)/image/v2/images/$blank/file")
	network=$(ask 1 GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
}

# --- the previous release and this one
previous=$(cat "$root/test/previous-release")
if [[ $only != *1* ]]; then
	:
elif ! git -C "$root" cat-file -e "$previous^{commit}" 2>/dev/null; then
	step "SKIP: the history here does not have the previous release ($previous): fetch it whole"
	skipped=1
else
	kept=$root/bin/unkai-$previous
	if [ ! -x "$kept" ]; then
		mkdir "$work/source"
		git -C "$root" archive "$previous" | tar -x -C "$work/source"
		built previous "$work/source"
		rm -rf "$work/source"
		mkdir -p "$root/bin"
		mv "$work/unkai-previous" "$kept"
	fi
	cp "$kept" "$work/unkai-previous"
	ok "built: $("$work/unkai-previous" version) and $("$work/unkai-this" version)"

	install c previous
	install agent previous
	controller c 1
	agent --token "$("$work/unkai-previous" controller token --data "$work/c" | tail -n 1)"
	until_ok 30 up c || fail "the host is not up"
	login 1 c
	blank
	"$root/guest/build.sh" "$guest" >/dev/null
	image=$(ask 1 POST /image/v2/images -d '{"name":"guest","disk_format":"qcow2","container_format":"bare"}' | jq -r .id)
	(inside 4 curl -sS -f -T "$guest/disk.qcow2" -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$(url 1)/image/v2/images/$image/file")
	# The guest tells its boot and its clock once a second: nothing that disturbs it stays hidden.
	ticks='#!/bin/sh
(while :; do echo "tick $(cat /proc/sys/kernel/random/boot_id) $(cut -d. -f1 /proc/uptime)" >/dev/console; sleep 1; done) &'
	vm=$(ask 1 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"'"$(ask 1 GET /compute/v2.1/flavors | jq -r '.flavors[]|select(.name=="u1.micro").id')"'",
		"networks":[{"uuid":"'"$network"'"}],"user_data":"'"$(base64 -w0 <<<"$ticks")"'"}}' | jq -r .server.id)
	until_ok 90 state 1 "$vm" ACTIVE || fail "the server is not ACTIVE"
	guest_pid=$(qemu "$vm") || fail "there is no QEMU"
	console() { ask 1 POST "/compute/v2.1/servers/$vm/action" -d '{"os-getConsoleOutput":{"length":5000}}' | jq -r .output | tr -d '\r' | grep -o 'tick [0-9a-f-]* [0-9]*'; }
	until_ok 120 console || fail "the guest does not tell its clock"
	boot=$(console | tail -n 1 | cut -d' ' -f2)
	ok "a controller, a host and a guest of the previous release"

	works() { # each mixture does all of its work
		until_ok 30 up c || fail "$1: the host is not up"
		ask 1 POST "/compute/v2.1/servers/$vm/action" -d '{"lock":null}' -f
		local id
		id=$(ask 1 POST /compute/v2.1/servers -d '{"server":{"name":"mix","imageRef":"'"$blank"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
		until_ok 60 state 1 "$id" ACTIVE || fail "$1: a server does not become ACTIVE"
		ask 1 DELETE "/compute/v2.1/servers/$id"
		until_ok 60 bash -c "$(declare -f ask inside url ns); net=$net auth=$auth; ns() { echo up-$$-\$1; }; ask 1 GET /compute/v2.1/servers/$id | grep -q 'could not be found'" || fail "$1: a server does not go"
		[ "$(qemu "$vm")" = "$guest_pid" ] || fail "$1: the guest has another process"
		"$work/unkai-this" audit --data "$work/c" >"$work/audit" || { cat "$work/audit" >&2; fail "$1: contradictions"; }
		step "  works: $1"
	}
	load there 75 4 1
	works "the previous release alone"
	end c; install c this; controller c 1
	works "this release's controller, the previous one's agent"
	refused "upgrade to be finalised first" ask 1 PUT /placement/traits/CUSTOM_X -H 'OpenStack-API-Version: placement 1.6' --fail-with-body
	end agent; install agent this; agent
	works "this release"
	upgrade c previous
	works "the previous release's controller, this one's agent"
	upgrade agent previous
	works "the previous release again"
	end c; install c this; controller c 1
	end agent; install agent this; agent
	works "this release again"
	loaded there 1
	console >"$work/ticks"
	[ "$(cut -d' ' -f2 "$work/ticks" | sort -u)" = "$boot" ] || fail "the guest was booted again"
	gap=$(awk 'NR>1 && $3-last>most {most=$3-last} {last=$3} END {print most+0}' "$work/ticks")
	step "  the guest told its clock $(wc -l <"$work/ticks") times, never more than $gap s apart"
	[ "$gap" -le 4 ] || fail "the guest stood still"
	ok "there, back and there again under load: nothing is lost or done twice, the guest does not notice"

	"$work/unkai-this" upgrade finalise --data "$work/c" >/dev/null || fail "the upgrade cannot be finalised"
	refused "finalised at level 2" "$work/unkai-this" upgrade --data "$work/c" --to "$work/unkai-previous"
	works "finalised"
	end c
	refused "of a newer release" "$work/unkai-previous" controller --data "$work/c" --listen 127.0.0.1:0 --hosts 127.0.0.1:0
	controller c 1
	until_ok 30 up c || fail "the host is not up"
	ask 1 DELETE "/compute/v2.1/servers/$vm"
	until_ok 60 bash -c "! kill -0 $guest_pid" || fail "QEMU does not end"
	end agent
	end c
	(inside 4 "$work/unkai-this" down --data "$work/agent" --prefix "$prefix" --pool "$pool" --purge) >>"$work/log" 2>&1
	ok "finalised, and the previous release refuses what it could not read"
fi

# --- three controllers, this release and the next
if [[ $only = *2* ]]; then
	for n in 1 2 3 agent; do install "${n/#[123]/p$n}" this; done
	cluster() { local n=$1; shift; controller "p$n" "$n" --name "p$n" --address $net."$n" --peers $net."$n":8703 "$@"; }
	cluster 1 --cluster
	for n in 2 3; do cluster $n --join https://$net.1:8702 --token "$("$work/unkai-this" controller token --data "$work/p1" --for controller | tail -n 1)"; done
	agent --token "$("$work/unkai-this" controller token --data "$work/p1" --for host | tail -n 1)"
	until_ok 30 up p1 || fail "the host is not up"
	login 1 p1
	blank
	vm=$(ask 2 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$blank"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
	until_ok 90 state 3 "$vm" ACTIVE || fail "the server is not ACTIVE"
	guest_pid=$(qemu "$vm") || fail "there is no QEMU"
	until_ok 30 bash -c "$work/unkai-this status --data $work/p1 --json | jq -e '.Controllers | length == 3'" || fail "there are not three controllers"
	leader() { for n in 1 2 3; do status p$n | jq -e .Leads >/dev/null && { echo $n; return; }; done; return 1; }
	# all RELEASE upgrades what follows, then what leads, then the host.
	all() {
		local last
		last=$(leader)
		for n in 1 2 3; do [ "$n" = "$last" ] || upgrade "p$n" "$1"; done
		upgrade "p$last" "$1"
		[ "$(leader)" != "$last" ] || fail "the lead was not handed over"
		upgrade agent "$1"
		[ "$(status p1 | jq -r '[.Controllers[].Version, .Hosts[].Version] | unique | join(" ")')" = "$1" ] || fail "not all are of the release $1"
		step "  all are of the release $1"
	}
	reads=1 load three 75 4 1 2 3
	all next
	all this
	all next
	loaded three 1
	jq -e '.tried_again == {}' "$work/three" >/dev/null || fail "a client was not answered at once"
	jq -e '.stale == []' "$work/three" >/dev/null || fail "answered with what may be old: $(jq -c .stale "$work/three")"
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest has another process"
	for n in 1 2 3; do "$work/unkai-this" audit --data "$work/p$n" >"$work/audit" || { cat "$work/audit" >&2; fail "contradictions"; }; done
	ok "three controllers and a host, one after the other, there, back and there again: every request was answered"

	"$work/unkai-this" upgrade --data "$work/p2" --to "$work/unkai-this" >/dev/null || fail "p2 does not go back"
	refused "are still: controller p2" "$work/unkai-this" upgrade finalise --data "$work/p1"
	"$work/unkai-this" upgrade --data "$work/p2" --to "$work/unkai-next" >>"$work/upgrades" 2>&1 &
	trying=$!
	until_ok 30 bash -c "$work/unkai-this status --data $work/p2 --json | jq -e '.Version == \"next\"'" || fail "p2 does not become the next release"
	refused "are still: controller p2" "$work/unkai-next" upgrade finalise --data "$work/p1" # it may yet go back
	wait $trying || { tail -n 3 "$work/upgrades" >&2; fail "p2 does not become the next release"; }
	upgrade agent this
	"$work/unkai-this" upgrade --data "$work/agent" --to "$work/unkai-next" >>"$work/upgrades" 2>&1 &
	trying=$!
	until_ok 30 bash -c "$work/unkai-this status --data $work/p1 --json | jq -e '.Hosts[0].Version == \"next\"'" || fail "the host does not become the next release"
	refused "are still: host host-a" "$work/unkai-next" upgrade finalise --data "$work/p1" # it may yet go back
	wait $trying || { tail -n 3 "$work/upgrades" >&2; fail "the host does not become the next release"; }
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest has another process"
	"$work/unkai-next" upgrade finalise --data "$work/p3" >/dev/null || fail "the upgrade cannot be finalised"
	refused "finalised at level 3" "$work/unkai-next" upgrade --data "$work/p1" --to "$work/unkai-this"
	ok "finalised when all are of the new release, and not before"

	# What dies or hangs does not stay.
	cat >"$work/unkai-dies" <<-EOF
	#!/bin/sh
	case "\$1" in version|upgrade) exec "$work/unkai-next" "\$@";; esac
	exit 3
	EOF
	chmod +x "$work/unkai-dies"
	before=$(cat "$work/p3/lock")
	refused "goes on again: the process ended" "$work/unkai-next" upgrade --data "$work/p3" --to "$work/unkai-dies"
	until_ok 30 up p3 || fail "the old one does not go on"
	[ "$(cat "$work/p3/lock")" != "$before" ] || fail "the process did not end"
	ok "a release that does not start is taken back by itself"
fi
step "done"
echo "upgrade: $passed passed, 0 failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
