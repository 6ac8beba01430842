#!/bin/bash
# Upgrades under load: the previous release and this one, a controller and a host with a guest, in both mixtures, there and back
# and there again; then three controllers and a host of this release and the next. No idempotent request is lost, the guest does not notice, and
# what must not go on together refuses to. The previous release is built from the commit in test/previous-release.
#   test/upgrade.sh [short]     short: the first part, with the binary that is built already
#   NET=fd13:9: upgrade.sh     over IPv6 alone
PREFIX=${PREFIX:-ukg}
. "$(dirname "$0")/lib.sh"

net=${NET:-10.213.9} tag=$prefix dir=$work/one
. "$root/test/hosts.sh"
only=${ONLY:-1 2}
short=${1:-}
[ "$short" != short ] || only=1

# built NAME FROM [LDFLAGS] builds a release.
built() { (cd "$2" && CGO_ENABLED=0 go build -ldflags "-s -w -X main.version=$1 ${3:-}" -o "$work/unkai-$1" ./cmd/unkai); }

# runs M [OPTION…] starts a controller or an agent from a binary of its own, which is what is replaced: $dir/bin-M.
runs() { unkai=$dir/bin-$1/unkai launch "$@"; ready "$1" || { grep -v etcd: "$dir/$1.log" | tail >&2; fail "$1 is not ready"; }; }
install() { mkdir -p "$dir/bin-$1"; cp "$work/unkai-$2" "$dir/bin-$1/unkai.new"; mv "$dir/bin-$1/unkai.new" "$dir/bin-$1/unkai"; }
end() { halt "$1" || fail "$1 does not end"; }
upgrade() { "$work/unkai-this" upgrade --data "$dir/$1" --to "$work/unkai-$2" >>"$work/upgrades" 2>&1 || { tail -n 3 "$work/upgrades" >&2; fail "$1 does not become $2"; }; }
refused() { local why=$1; shift; if "$@" >"$work/refused" 2>&1; then fail "not refused: $*"; fi; grep -q "$why" "$work/refused" || { cat "$work/refused" >&2; fail "it does not say: $why"; }; }

up() { status "$1" | jq -e '.Hosts | length == 1 and .[0].Up'; }
state() { [ "$(ask "$1" GET /compute/v2.1/servers/"$2" | jq -r .server.status)" = "$3" ]; }
# enters M logs in at a controller, and lifts quotas.
enters() {
	auth=$(login "$1")
	[ -n "$auth" ] || fail "no token"
	admin=$(ask "$1" GET '/identity/v3/projects?name=admin' | jq -r '.projects[0].id')
	ask "$1" PUT "/network/v2.0/quotas/$admin" -d '{"quota":{"network":-1,"port":-1}}' -f >/dev/null || fail "the quota cannot be lifted"
}
# load NAME SECONDS CLIENTS CONTROLLER… runs clients in the background.
load() {
	local name=$1 seconds=$2 clients=$3; shift 3
	local urls=()
	for n in "$@"; do urls+=("$(url "$n")"); done
	(LOAD_READS=${reads:-} LOAD_KINDS=networks,keypairs,ports,servers LOAD_NETWORK=$network LOAD_IMAGE=$blank inside out python3 -B "$root/test/cluster_load.py" "$auth" "$name" "$seconds" "$clients" "${urls[@]}") \
		>"$work/$name" 2>"$work/$name.err" &
	loading=$!
}
# loaded NAME CONTROLLER ends the load, and holds what is there against what was acknowledged.
loaded() {
	wait "$loading" || { cat "$work/$1.err" >&2; fail "the clients failed"; }
	jq -e '.gave_up == []' "$work/$1" >/dev/null || fail "never answered: $(jq -c .gave_up "$work/$1")"
	accounted "$work/$1" < <(ask "$2" GET '/network/v2.0/networks?fields=name' | jq -r '.networks[].name' | grep "^$1-")
	[ "$(ask "$2" GET "/network/v2.0/ports?fields=name" | jq -r '.ports[].name' | grep -c "^$1-")" = 0 ] || fail "a port was made twice, or its deletion lost"
	[ "$(ask "$2" GET "/compute/v2.1/os-keypairs" | jq -r '.keypairs[].keypair.name' | grep -c "^$1-")" = 0 ] || fail "a key pair was made twice, or its deletion lost"
	none() { [ "$(ask "$2" GET /compute/v2.1/servers | jq -r '.servers[].name' | grep -c "^$1-")" = 0 ]; }
	until_ok 60 none "$1" "$2" ||
		fail "a server was made twice, or its deletion lost"
	step "  $(jq -r '"made \(.made | tostring), tried again \(.tried_again | tostring), the longest silence \(.longest_silence_s) s, the slowest answer \(.slowest_s) s (\(.slowest))"' "$work/$1")"
}

ending() {
	kill "${loading:-}"
	# Whoever works on a directory says so in its lock; it may be another process than the one that was started.
	for lock in "$work"/*/*/lock; do
		[ ! -s "$lock" ] || kill -TERM "$(cat "$lock")"
	done
	for m in c1 c2 c3 a1; do halt $m & done
	wait
	clear_agent a1
	cp "$dir"/*.log "$work/"
	unwire
}

wire c1 c2 c3 a1 out
skipped=0
if [ -n "$short" ]; then cp "$unkai" "$work/unkai-this"; else
	built this "$root"
	built next "$root" "-X github.com/unkai-cloud/unkai/base/release.stamp=3"
fi
unkai=$work/unkai-this

blank() {
	head -c 1048576 /dev/zero >"$work/blank"
	blank=$(image c1 blank "$work/blank" raw) || fail "no image"
	network=$(ask c1 GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
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

	alone=yes
	install c1 previous
	install a1 previous
	runs c1
	runs a1 --token "$("$work/unkai-previous" controller token --data "$dir/c1" | tail -n 1)"
	until_ok 30 up c1 || fail "the host is not up"
	enters c1
	blank
	"$root/guest/build.sh" "$guest" >/dev/null
	image=$(image c1 guest "$guest/disk.qcow2" qcow2) || fail "no image"
	# The guest tells its boot and its clock once a second: nothing that disturbs it stays hidden.
	ticks='#!/bin/sh
(while :; do echo "tick $(cat /proc/sys/kernel/random/boot_id) $(cut -d. -f1 /proc/uptime)" >/dev/console; sleep 1; done) &'
	vm=$(ask c1 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"'"$(ask c1 GET /compute/v2.1/flavors | jq -r '.flavors[]|select(.name=="u1.micro").id')"'",
		"networks":[{"uuid":"'"$network"'"}],"user_data":"'"$(base64 -w0 <<<"$ticks")"'"}}' | jq -r .server.id)
	until_ok 90 state c1 "$vm" ACTIVE || fail "the server is not ACTIVE"
	guest_pid=$(qemu "$vm") || fail "there is no QEMU"
	console() { ask c1 POST "/compute/v2.1/servers/$vm/action" -d '{"os-getConsoleOutput":{"length":5000}}' | jq -r .output | tr -d '\r' | grep -o 'tick [0-9a-f-]* [0-9]*'; }
	until_ok 120 console || fail "the guest does not tell its clock"
	boot=$(console | tail -n 1 | cut -d' ' -f2)
	ok "a controller, a host and a guest of the previous release"

	works() { # each mixture does all of its work
		until_ok 30 up c1 || fail "$1: the host is not up"
		ask c1 POST "/compute/v2.1/servers/$vm/action" -d '{"lock":null}' -f
		local id
		id=$(ask c1 POST /compute/v2.1/servers -d '{"server":{"name":"mix","imageRef":"'"$blank"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
		until_ok 60 state c1 "$id" ACTIVE || fail "$1: a server does not become ACTIVE"
		ask c1 DELETE "/compute/v2.1/servers/$id"
		gone() { ask c1 GET "/compute/v2.1/servers/$id" | grep 'could not be found' >/dev/null; }
		until_ok 60 gone || fail "$1: a server does not go"
		[ "$(qemu "$vm")" = "$guest_pid" ] || fail "$1: the guest has another process"
		"$work/unkai-this" audit --data "$dir/c1" >"$work/audit" || { cat "$work/audit" >&2; fail "$1: contradictions"; }
		step "  works: $1"
	}
	load there 75 4 c1
	works "the previous release alone"
	end c1; install c1 this; runs c1
	works "this release's controller, the previous one's agent"
	refused "upgrade to be finalised first" ask c1 PUT /placement/traits/CUSTOM_X -H 'OpenStack-API-Version: placement 1.6' --fail-with-body
	end a1; install a1 this; runs a1
	works "this release"
	upgrade c1 previous
	works "the previous release's controller, this one's agent"
	upgrade a1 previous
	works "the previous release again"
	end c1; install c1 this; runs c1
	end a1; install a1 this; runs a1
	works "this release again"
	loaded there c1
	console >"$work/ticks"
	[ "$(cut -d' ' -f2 "$work/ticks" | sort -u)" = "$boot" ] || fail "the guest was booted again"
	gap=$(awk 'NR>1 && $3-last>most {most=$3-last} {last=$3} END {print most+0}' "$work/ticks")
	step "  the guest told its clock $(wc -l <"$work/ticks") times, never more than $gap s apart"
	[ "$gap" -le 4 ] || fail "the guest stood still"
	ok "there, back and there again under load: nothing is lost or done twice, the guest does not notice"

	"$work/unkai-this" upgrade finalise --data "$dir/c1" >/dev/null || fail "the upgrade cannot be finalised"
	refused "finalised at level 2" "$work/unkai-this" upgrade --data "$dir/c1" --to "$work/unkai-previous"
	works "finalised"
	end c1
	refused "of a newer release" "$work/unkai-previous" controller --data "$dir/c1" --listen 127.0.0.1:0 --hosts 127.0.0.1:0
	runs c1
	until_ok 30 up c1 || fail "the host is not up"
	ask c1 DELETE "/compute/v2.1/servers/$vm"
	until_ok 60 bash -c "! kill -0 $guest_pid" || fail "QEMU does not end"
	end a1
	end c1
	clear_agent a1 >>"$work/log" 2>&1
	ok "finalised, and the previous release refuses what it could not read"
fi

# --- three controllers, this release and the next
if [[ $only = *2* ]]; then
	dir=$work/two alone=
	for m in c1 c2 c3 a1; do install $m this; done
	runs c1 --cluster
	for m in c2 c3; do runs $m --join "https://$(on c1 8702)" --token "$(token c1 controller)"; done
	runs a1 --token "$(token c1 host)"
	until_ok 30 up c1 || fail "the host is not up"
	enters c1
	blank
	vm=$(ask c2 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$blank"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
	until_ok 90 state c3 "$vm" ACTIVE || fail "the server is not ACTIVE"
	guest_pid=$(qemu "$vm") || fail "there is no QEMU"
	until_ok 30 bash -c "$work/unkai-this status --data $dir/c1 --json | jq -e '.Controllers | length == 3'" || fail "there are not three controllers"
	leader() { led_by c1 c2 c3; }
	# all RELEASE upgrades what follows, then what leads, then the host.
	all() {
		local last
		last=$(leader)
		for m in c1 c2 c3; do [ "$m" = "$last" ] || upgrade $m "$1"; done
		upgrade "$last" "$1"
		[ "$(leader)" != "$last" ] || fail "the lead was not handed over"
		upgrade a1 "$1"
		[ "$(status c1 | jq -r '[.Controllers[].Version, .Hosts[].Version] | unique | join(" ")')" = "$1" ] || fail "not all are of the release $1"
		step "  all are of the release $1"
	}
	reads=1 load three 75 4 c1 c2 c3
	all next
	all this
	all next
	loaded three c1
	jq -e '.tried_again == {}' "$work/three" >/dev/null || fail "a client was not answered at once"
	jq -e '.stale == []' "$work/three" >/dev/null || fail "answered with what may be old: $(jq -c .stale "$work/three")"
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest has another process"
	for m in c1 c2 c3; do "$work/unkai-this" audit --data "$dir/$m" >"$work/audit" || { cat "$work/audit" >&2; fail "contradictions"; }; done
	ok "three controllers and a host, one after the other, there, back and there again: every request was answered"

	"$work/unkai-this" upgrade --data "$dir/c2" --to "$work/unkai-this" >/dev/null || fail "c2 does not go back"
	refused "are still: controller c2" "$work/unkai-this" upgrade finalise --data "$dir/c1"
	"$work/unkai-this" upgrade --data "$dir/c2" --to "$work/unkai-next" >>"$work/upgrades" 2>&1 &
	trying=$!
	until_ok 30 bash -c "$work/unkai-this status --data $dir/c2 --json | jq -e '.Version == \"next\"'" || fail "c2 does not become the next release"
	refused "are still: controller c2" "$work/unkai-next" upgrade finalise --data "$dir/c1" # it may yet go back
	wait $trying || { tail -n 3 "$work/upgrades" >&2; fail "c2 does not become the next release"; }
	upgrade a1 this
	"$work/unkai-this" upgrade --data "$dir/a1" --to "$work/unkai-next" >>"$work/upgrades" 2>&1 &
	trying=$!
	until_ok 30 bash -c "$work/unkai-this status --data $dir/c1 --json | jq -e '.Hosts[0].Version == \"next\"'" || fail "the host does not become the next release"
	refused "are still: host a1" "$work/unkai-next" upgrade finalise --data "$dir/c1" # it may yet go back
	wait $trying || { tail -n 3 "$work/upgrades" >&2; fail "the host does not become the next release"; }
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest has another process"
	"$work/unkai-next" upgrade finalise --data "$dir/c3" >/dev/null || fail "the upgrade cannot be finalised"
	refused "finalised at level 3" "$work/unkai-next" upgrade --data "$dir/c1" --to "$work/unkai-this"
	ok "finalised when all are of the new release, and not before"

	# What dies or hangs does not stay.
	cat >"$work/unkai-dies" <<-EOF
	#!/bin/sh
	case "\$1" in version|upgrade) exec "$work/unkai-next" "\$@";; esac
	exit 3
	EOF
	chmod +x "$work/unkai-dies"
	before=$(cat "$dir/c3/lock")
	refused "goes on again: the process ended" "$work/unkai-next" upgrade --data "$dir/c3" --to "$work/unkai-dies"
	until_ok 30 up c3 || fail "the old one does not go on"
	[ "$(cat "$dir/c3/lock")" != "$before" ] || fail "the process did not end"
	ok "a release that does not start is taken back by itself"
fi
step "done"
echo "upgrade: $passed passed, 0 failed$([ $skipped = 0 ] || echo ", $skipped skipped")"
