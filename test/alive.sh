#!/bin/bash
# A controller and two hosts, each in a network namespace of its own, with real QEMU: a guest that crashes comes back, one whose host is cut
# off is started on the other once a fence program has switched the first off, and a host in maintenance is emptied as far as it can be. A third
# host's disk is filled for real, and its clock is wrong: both are alerts while that is so.
PREFIX=${PREFIX:-ukl}
. "$(dirname "$0")/lib.sh"

net=alive-$$ # namespaces: the switch, and -c, -a, -b, -d on it
cdata=$work/controller
hosts=https://10.213.8.1:8702
cpid=
declare -A apid

inside() { local ns=$1; shift; exec nsenter --net="/run/netns/$net-$ns" "$@"; }

agent() { # a|b [OPTION…]
	local n=$1; shift
	: >"$work/$n.out"
	inside "$n" "$unkai" agent --data "$work/$n" --join $hosts --prefix "$prefix$n" --pool "$pool" --name "host-$n" "$@" \
		</dev/null >"$work/$n.out" 2>>"$work/log" &
	apid[$n]=$!
	echo ${apid[$n]} >"$work/$n.pid"
	until_ok 30 grep -q ^ready "$work/$n.out" || fail "agent $n is not ready"
}

api() { (inside c curl -sS -f -H "X-Auth-Token: $auth" -H 'Content-Type: application/json' "$@"); }
# pids HOST ID prints the guest's process there, if it is one.
pids() {
	local p
	for p in $(jq -r '.Launch.PID // empty' "$work/$1/qemu/guests/"$2"/record.json" 2>/dev/null); do
		! tr '\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -q "qemu-system.*$2" || echo "$p"
	done
}
on() { [ "$("$unkai" host list --data "$cdata" --json | jq -r '.[] | select(.Name == "host-'"$1"'") | .'"$2")" = "$3" ]; }
runs() { [ -n "$(pids "$1" "$2")" ]; }
active() { api "$url/compute/v2.1/servers/$1" | jq -e '.server.status == "ACTIVE" and ."server"."OS-EXT-SRV-ATTR:host" == "host-'"$2"'" and .server."OS-EXT-STS:task_state" == null'; }

ending() {
	for n in a b d; do
		[ -z "${apid[$n]:-}" ] || { kill "${apid[$n]}" && wait "${apid[$n]}"; }
		[ ! -d "$work/$n" ] || (inside $n "$unkai" down --data "$work/$n" --prefix "$prefix$n" --pool "$pool" --purge)
	done
	[ -z "$cpid" ] || { kill "$cpid" && wait "$cpid"; }
	! mountpoint -q "$work/d" || umount -l "$work/d"
	for ns in "$net" "$net-c" "$net-a" "$net-b" "$net-d"; do ip netns del "$ns"; done
}

ip netns add "$net"
ip -n "$net" link add switch type bridge
ip -n "$net" link set switch up
address=1
for n in c a b d; do
	ip netns add "$net-$n"
	ip -n "$net" link add "to-$n" type veth peer name up0 netns "$net-$n"
	ip -n "$net" link set "to-$n" master switch up
	ip -n "$net-$n" link set lo up
	ip -n "$net-$n" addr add 10.213.8.$address/24 dev up0
	ip -n "$net-$n" link set up0 up
	address=$((address + 1))
done

: >"$work/c.out"
inside c "$unkai" controller --data "$cdata" --listen 127.0.0.1:8700 --hosts 10.213.8.1:8702 --pool "$pool" </dev/null >"$work/c.out" 2>>"$work/log" &
cpid=$!
until_ok 30 grep -q ^ready "$work/c.out" || fail "the controller is not ready"
url=$(sed -n 's/^ready //p' "$work/c.out")
for n in a b; do agent $n --token "$("$unkai" controller token --data "$cdata")"; done
for n in a b; do until_ok 30 on $n Up true || fail "host-$n is not up"; done

# A third has a small disk and a wrong clock, and takes no servers.
mkdir -m 700 "$work/d"
mount -t tmpfs -o size=64m,mode=700 none "$work/d"
token=$("$unkai" controller token --data "$cdata")
UNKAI_CLOCK_SKEW=-40s agent d --token "$token"
until_ok 30 on d Up true || fail "host-d is not up"
"$unkai" host disable host-d --data "$cdata" >/dev/null

auth=$(admin_token "$cdata/secrets.json" "$url" inside c curl)
image=$(api "$url/image/v2/images" -d '{"name":"blank","disk_format":"raw","container_format":"bare"}' | jq -r .id)
head -c 1048576 /dev/zero | (inside c curl -sS -f -T - -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$url/image/v2/images/$image/file")
network=$(api "$url/network/v2.0/networks?name=private" | jq -r '.networks[0].id')
launch() { # NAME HOST ELSEWHERE
	api "$url/compute/v2.1/servers" -d '{"server":{"name":"'"$1"'","imageRef":"'"$image"'","flavorRef":"42","availability_zone":"nova:host-'"$2"'",
		"networks":[{"uuid":"'"$network"'"}]},"os:scheduler_hints":{"unkai_restart_elsewhere":"'"$3"'"}}' | jq -r .server.id
}
vm=$(launch kept a true)
plain=$(launch plain a false)
for id in "$vm" "$plain"; do until_ok 60 active "$id" a || fail "server $id is not ACTIVE"; done
ok "two servers run on one of two hosts, and one of them under its lease"

# --- a crash
first=$(pids a "$vm")
kill -9 "$first"
again() { runs a "$vm" && [ "$(pids a "$vm")" != "$first" ] && active "$vm" a; }
until_ok 40 again || fail "the crashed guest does not come back"
api "$url/compute/v2.1/servers/$vm/os-instance-actions" | jq -e '[.instanceActions[].action] | index("crash") != null' >/dev/null || fail "the crash is not told"
ok "a crashed guest is started again, and the crash is among the server's actions"

# --- a host that is cut off
mkdir -m 700 -p "$cdata/fence"
cat >"$cdata/fence/lab" <<END
#!/bin/sh
# Switches a host of this test off: its agent and its guests.
n=\${2#host-}
all="\$(cat $work/\$n.pid) \$(jq -r '.Launch.PID // empty' $work/\$n/qemu/guests/*/record.json)"
kill -9 \$all 2>/dev/null
sleep 0.5
for p in \$all; do ! grep -q '^State:[[:space:]]*[^ZX]' /proc/\$p/status 2>/dev/null || exit 1; done
END
chmod 700 "$cdata/fence/lab"
"$unkai" host fencing host-a --exec lab --data "$cdata" >/dev/null
cut=$SECONDS
ip -n "$net" link set to-a down
until_ok 30 on a Up false || fail "the host that is cut off does not count as lost"
runs a "$vm" || fail "the guest was ended for a loss alone"
lost=$((SECONDS - cut))
until_ok 60 on a Dead true || fail "the lost host is not fenced"
! runs a "$vm" || fail "it is known to be dead and runs the guest"
until_ok 60 active "$vm" b || fail "the server is not started elsewhere"
runs b "$vm" || fail "there is no QEMU elsewhere"
ok "its link cut, a host is lost after $lost s, fenced, and its guest runs elsewhere after $((SECONDS - cut)) s"
api "$url/compute/v2.1/servers/$plain" | jq -e '."server"."OS-EXT-SRV-ATTR:host" == "host-a"' >/dev/null || fail "a server left whose owner did not ask for it"

# --- is on again, and still cut off
booted() { # as if the machine had booted since: what was kept on it is of another boot
	local other=00000000-0000-4000-8000-000000000000 r
	echo '{"Boot":"'$other'","Given":true}' >"$work/a/told-in-boot"
	for r in "$work"/a/qemu/guests/*/record.json; do jq -c 'if .Launch then .Launch.Boot = "'$other'" else . end' "$r" >"$work/record" && cat "$work/record" >"$r"; done
}
wait "${apid[a]}" 2>/dev/null || true
booted
agent a
said() { grep -q 'the machine has booted: guests wait' "$work/log"; }
until_ok 20 said || fail "the host that has booted does not say that its guests wait"
sleep 5
! runs a "$vm" && ! runs a "$plain" || fail "a host that has booted starts guests, and does not know whether they are its own"
ok "a host that has booted starts nothing before a controller has told it what is its own"

# --- and comes back
ip -n "$net" link set to-a up
until_ok 40 on a Up true || fail "the host does not come back"
until_ok 60 runs a "$plain" && until_ok 60 active "$plain" a || fail "what stayed its own does not run again"
gone() { ! ls "$work/a/qemu/guests" | grep -q "$vm"; }
until_ok 40 gone || fail "the host that is back keeps what is not its own any more"
! runs a "$vm" || fail "the guest runs twice"
ok "back again it starts its own, and takes away what was given to another"

# --- a boot while no controller can be heard
ip -n "$net" link set to-a down
until_ok 30 on a Up false || fail "the host that is cut off does not count as lost"
kill -9 "${apid[a]}" "$(pids a "$plain")"
wait "${apid[a]}" 2>/dev/null || true
booted
agent a --alone 4s
until_ok 30 runs a "$plain" || fail "a host that has booted does not work without a controller"
ip -n "$net" link set to-a up
until_ok 40 on a Up true || fail "the host does not come back"
until_ok 60 active "$plain" a || fail "what ran while its host was cut off does not"
ok "where that is wanted, a host that has booted starts its guests without a controller after a while"

# --- maintenance
"$unkai" host maintenance host-b --plan --data "$cdata" >"$work/plan" 2>&1 && grep -q "$vm.*stay\|$vm.*live" "$work/plan" || { cat "$work/plan" >&2; fail "the plan does not name the server"; }
"$unkai" host maintenance host-b --stop --wait --reason fans --data "$cdata" >"$work/drained" || { cat "$work/drained" >&2; fail "the host is not drained"; }
! runs b "$vm" || fail "a guest runs on a drained host"
on b Disabled true || fail "a drained host takes new servers"
"$unkai" host enable host-b --data "$cdata" >/dev/null
on b Maintenance null && on b Disabled false || fail "the host is still in maintenance"
ok "a host in maintenance is drained, and enabled again"

# --- a disk that fills, and a clock that is off
holds() { "$unkai" alert list --data "$cdata" --json | jq -e --arg rule "$1" --arg about "$2" '[.Open[] | select(.Rule == $rule and .Subject == $about)] | length == 1' >/dev/null; }
over() { ! holds "$@"; }
fill() { rm -f "$work/d/filler"; [ "$1" = 0 ] || fallocate -l "$1" "$work/d/filler"; } # to so many bytes
over disk-filling "host host-d" && over disk-full "host host-d" || fail "a disk with room is told of"
until_ok 20 on d Clock.By -30000000000 || fail "that the clock of host-d is off is not known"
filling=$SECONDS
fill $((59 << 20))
until_ok 40 holds disk-filling "host host-d" || fail "a disk that fills is not told of"
filled=$((SECONDS - filling))
"$unkai" status --data "$cdata" >"$work/status" || { cat "$work/status" >&2; fail "a warning is an error"; }
grep -q "host-d.*one of its disks has little room left" "$work/status" || { cat "$work/status" >&2; fail "status does not say that the disk fills"; }
fill $((63 << 20))
until_ok 40 holds disk-full "host host-d" || fail "a disk that is full is not told of"
until_ok 5 over disk-filling "host host-d" || fail "a disk that is full is filling, too"
! "$unkai" status --data "$cdata" >"$work/status" 2>&1 || fail "status is content with a full disk"
"$unkai" host show host-d --data "$cdata" | grep -q "one of its disks is nearly full" || fail "host show does not say that the disk is full"
fill 0
until_ok 40 over disk-full "host host-d" || fail "that the disk has room again is not told"
until_ok 60 holds clock-off "host host-d" || fail "that a clock is off is not told"
"$unkai" host show host-d --data "$cdata" | grep -q "its clock is off: 30 s or more behind" || fail "host show does not say that the clock is off"
kill "${apid[d]}" && wait "${apid[d]}"
agent d
until_ok 60 over clock-off "host host-d" || fail "that the clock is right again is not told"
! holds clock-off "host host-a" && ! holds clock-off "host host-b" && ! holds host-lost host-d || fail "more is told than there is"
ok "a host's disk that fills is told of after $filled s, and when it is full, and when it is emptied, and so is its clock that is off"

"$unkai" audit --data "$cdata" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
step "done"
echo "alive: $passed passed, 0 failed"
