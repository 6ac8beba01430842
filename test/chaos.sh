#!/bin/bash
# Chaos: a lab of three controllers and three hosts, faults and clients drawn from a seed, and a reckoning at the end.
#
#   chaos.sh [MINUTES|short [SEED…]]
#
# It prints the seed; the same seed has the same faults at the same moments and the same clients, though not the same races.
# Of several seeds each takes so many minutes, in one lab; guests are watched with the first. "short" is half a minute in which each
# kind of fault comes once, or it fails.
PREFIX=${PREFIX:-ukx}
. "$(dirname "$0")/lib.sh"
minutes=${1:-${MINUTES:-15}}
seeds=("${@:2}")
[ ${#seeds[@]} -gt 0 ] || seeds=("${SEED:-$RANDOM}")
length=short lasts="each kind of fault once"
[ "$minutes" = short ] || length=$(awk "BEGIN { print $minutes * 60 }") lasts="$minutes minutes"
net=${NET:-10.213.10}
hosts=3

export LAB=$work/lab NET=$net PREFIX=$prefix HOSTS=$hosts UNKAI=$unkai SMALL="c3=600m a3=600m"
dir=$LAB tag=$prefix
. "$root/test/hosts.sh"

finish() {
	local code=$?
	trap '' TERM INT # nothing is to be left behind
	[ -z "${driver:-}" ] || { kill -TERM "$driver" 2>/dev/null && wait "$driver"; } || true
	if [ $code != 0 ]; then
		mkdir -p "$work/logs"
		cp "$dir"/*.log "$work/logs/" 2>/dev/null || true
		"$root/test/lab.sh" table >&2 || true
	fi
	"$root/test/lab.sh" down >>"$work/log" 2>&1 || { cat "$work/log" >&2; code=1; }
	if [ $code = 0 ]; then rm -rf "$work"; else echo "the logs are in $work/logs; again: test/chaos.sh $minutes ${seeds[*]}" >&2; fi
	exit $code
}

"$root/test/lab.sh" up >"$work/up" || fail "there is no lab"
step "$(tail -n 1 "$work/up") Seed ${seeds[*]}, $lasts."
auth=$(login c1)
admin=$(ask c2 GET '/identity/v3/projects?name=admin' | jq -r '.projects[0].id')
ask c2 PUT "/network/v2.0/quotas/$admin" -d '{"quota":{"network":-1,"port":-1}}' -f >/dev/null
ask c2 PUT "/compute/v2.1/os-quota-sets/$admin" -d '{"quota_set":{"instances":-1,"cores":-1,"ram":-1,"key_pairs":-1}}' -f >/dev/null
head -c 1048576 /dev/zero >"$work/blank"
BLANK=$(image c3 blank "$work/blank" raw)
GUEST_IMAGE=$(ask c1 GET '/image/v2/images?name=guest' | jq -r '.images[0].id // ""')
NETWORK=$(ask c1 GET '/network/v2.0/networks?name=private' | jq -r --arg p "$admin" '[.networks[] | select(.project_id == $p)][0].id // empty')
[ -n "$NETWORK" ] || {
	NETWORK=$(ask c1 POST /network/v2.0/networks -d '{"network":{"name":"chaos"}}' | jq -r .network.id)
	ask c1 POST /network/v2.0/subnets -d '{"subnet":{"network_id":"'"$NETWORK"'","ip_version":4,"cidr":"10.99.0.0/22"}}' -f >/dev/null
}
export TOKEN=$auth BLANK GUEST_IMAGE NETWORK
for seed in "${seeds[@]}"; do
	inside out python3 -B "$root/test/chaos" "$LAB" "$length" "$seed" "$net" "$prefix" 3 $hosts c3 a3 &
	driver=$!
	wait $driver
	driver=
	GUEST_IMAGE=
done
step "done"
