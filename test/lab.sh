#!/bin/bash
# A region on one machine: controllers and hosts, each a machine of its own (a network namespace), with real guests.
#
#   lab.sh up                   make it, or bring it to life again; prints how to use it
#   lab.sh down                 take all of it away
#   lab.sh enter [COMMAND…]     a shell, or a command, where its clients are: openstack, aws, curl
#   lab.sh on MACHINE COMMAND…  a command on one of its machines
#   lab.sh start|kill|stop M    one machine's process: run it, kill -9 it, end it
#   lab.sh table                what there is
#
# LAB is where it is kept, CONTROLLERS and HOSTS are how many, GUEST is where guest/build.sh puts its image; SMALL="c3=600m" gives
# machines a disk of their own (in memory) that is no larger.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
unset http_proxy https_proxy || true

dir=$(realpath -m "${LAB:-/var/lib/unkai-lab}")
unkai=${UNKAI:-$root/bin/unkai}
guest=${GUEST:-/var/cache/unkai/guest}
prefix=${PREFIX:-ulab}
net=${NET:-10.213.9}
pool=${POOL:-172.31.254.0/24}
controllers=${CONTROLLERS:-3}
hosts=${HOSTS:-4}
# What it was made with counts.
[ ! -e "$dir/lab.env" ] || . "$dir/lab.env"
tag=$prefix
. "$root/test/hosts.sh"

mapfile -t cs < <(seq -f 'c%g' "$controllers")
mapfile -t as < <(seq -f 'a%g' "$hosts")

fail() { echo "lab: $*" >&2; exit 1; }

up() {
	local began=$SECONDS m
	[ -x "$unkai" ] || fail "$unkai is not there: make build"
	if [ ! -e "$dir/lab.env" ]; then
		[ ! -e "$dir" ] || [ -z "$(ls -A "$dir")" ] || fail "$dir is no lab"
		mkdir -p "$dir"
		chmod 711 "$dir"
		printf '%s=%q\n' unkai "$unkai" prefix "$prefix" net "$net" pool "$pool" controllers "$controllers" hosts "$hosts" >"$dir/lab.env"
	fi
	for m in ${SMALL:-}; do
		mkdir -p "$dir/${m%=*}"
		mountpoint -q "$dir/${m%=*}" || mount -t tmpfs -o "size=${m#*=},mode=711" unkai-lab "$dir/${m%=*}"
	done
	if [ ! -e "/run/netns/$(ns sw)" ]; then
		wire "${cs[@]}" "${as[@]}" out
	fi
	for m in "${cs[@]}"; do
		alive "$m" >/dev/null && continue
		if [ -e "$dir/$m/member.json" ]; then
			launch "$m"
		elif [ "$m" = c1 ]; then
			launch c1 --cluster
			ready c1 || fail "c1 is not ready"
		else
			launch "$m" --join "https://$(on c1 8702)" --token "$(token c1 controller)"
			ready "$m" || fail "$m is not ready"
		fi
	done
	for m in "${cs[@]}"; do ready "$m" || fail "$m is not ready"; done
	for m in "${as[@]}"; do
		alive "$m" >/dev/null && continue
		if [ -e "$dir/$m/identity.json" ]; then launch "$m"; else launch "$m" --token "$(token c1 host)"; fi
	done
	for m in "${as[@]}"; do ready "$m" || fail "$m is not ready"; done
	for _ in $(seq 300); do
		[ "$(status c1 | jq '[.Hosts[]? | select(.Up)] | length')" -ge "$hosts" ] && break
		sleep 0.1
	done
	cp "$dir/c1/clouds.yaml" "$dir/c1/aws.env" "$dir/"
	if [ -e "$guest/disk.qcow2" ]; then
		auth=$(login c1)
		[ -n "$(ask c1 GET '/image/v2/images?name=guest' | jq '.images[]')" ] || image c1 guest "$guest/disk.qcow2" qcow2 >/dev/null
	else
		echo "There is no guest's image in $guest; make guest makes one." >&2
	fi
	table
	echo "Ready after $((SECONDS - began)) s."
}

table() {
	local m s
	[ -e "$dir/lab.env" ] || fail "there is no lab in $dir"
	s=$(status c1 2>/dev/null || status c2 2>/dev/null || echo '{}')
	printf '%-5s %-14s %s\n' NAME ADDRESS WHAT
	for m in "${cs[@]}"; do
		printf '%-5s %-14s %s\n' "$m" "$(at "$m")" "controller, $(url "$m"), $(alive "$m" >/dev/null && jq -r --arg m "$m" '[.Controllers[]? | select(.Name == $m) | if .Leads then "leads" else "follows" end][0] // "runs"' <<<"$s" || echo 'does not run')"
	done
	for m in "${as[@]}"; do
		printf '%-5s %-14s %s\n' "$m" "$(at "$m")" "host, $(alive "$m" >/dev/null && jq -r --arg m "$m" '[.Hosts[]? | select(.Name == $m) | if .Up then "up" else "lost" end][0] // "runs"' <<<"$s" || echo 'does not run')"
	done
	cat <<END
$0 enter openstack server list
$0 enter                      a shell with clients' settings: openstack, aws --endpoint-url \$UNKAI_URL/ec2, curl
$0 enter ssh cirros@ADDRESS   a guest's floating address
$0 kill c1; $0 start c1       a machine's end and its return
$0 down                       takes all of it away
Each machine's directory and log are in $dir.
END
}

enter() {
	local first
	for first in "${cs[@]}"; do alive "$first" >/dev/null && break; done
	export OS_CLIENT_CONFIG_FILE="$dir/clouds.yaml" OS_CLOUD="${OS_CLOUD:-unkai}" UNKAI_URL
	UNKAI_URL=$(url "$first")
	if [ "$first" != c1 ]; then
		sed "s/$(at c1)/$(at "$first")/g" "$dir/clouds.yaml" >"$dir/clouds-$first.yaml"
		OS_CLIENT_CONFIG_FILE=$dir/clouds-$first.yaml
	fi
	set -a
	. "$dir/aws.env"
	set +a
	[ $# -gt 0 ] || set -- bash
	inside out "$@"
}

down() {
	local m
	[ -e "$dir/lab.env" ] || { unwire; return 0; }
	for m in "${as[@]}"; do halt "$m" & done
	wait
	for m in "${cs[@]}"; do halt "$m" & done
	wait
	for m in "${as[@]}"; do clear_agent "$m" >/dev/null; done
	for m in "$dir"/*; do ! mountpoint -q "$m" || umount "$m"; done
	unwire
	rm -rf "$dir"
}

case "${1:-}" in
up | down | table) "$1" ;;
enter) shift; enter "$@" ;;
on) shift; inside "$@" ;;
start) shift; alive "$1" >/dev/null || launch "$@" ;;
stop) halt "$2" ;;
kill) halt "$2" KILL ;;
*) sed -n '2,/^set/p' "$0" | sed 's/^# \{0,1\}//;$d' >&2; exit 2 ;;
esac
