#!/bin/bash
# A controller and two hosts, each in a network namespace of its own, with real QEMU: a guest that crashes comes back, one whose host is cut
# off is started on the other once a fence program has switched the first off, and a host in maintenance is emptied as far as it can be. A third
# host's disk is filled for real, and its clock is wrong: both are alerts while that is so.
#   NET=fd13:8: alive.sh     over IPv6 alone
PREFIX=${PREFIX:-ukl}
. "$(dirname "$0")/lib.sh"

net=${NET:-10.213.8} tag=$prefix dir=$work
. "$root/test/hosts.sh"

# agent M [OPTION…] runs a host's agent and waits until it serves.
agent() { launch "$@"; ready "$1" || fail "agent $1 is not ready"; }
api() { ask c1 "$1" "$2" -f "${@:3}"; }
# pids HOST ID prints the guest's process there, if it is one.
pids() {
	local p
	for p in $(jq -r '.Launch.PID // empty' "$work/$1/qemu/guests/"$2"/record.json" 2>/dev/null); do
		! tr '\0' ' ' 2>/dev/null <"/proc/$p/cmdline" | grep "qemu-system.*$2" >/dev/null || echo "$p"
	done
}
# is HOST FIELD VALUE: what the controller knows of it.
is() { [ "$("$unkai" host list --data "$work/c1" --json | jq -r '.[] | select(.Name == "'"$1"'") | .'"$2")" = "$3" ]; }
runs() { [ -n "$(pids "$1" "$2")" ]; }
active() { api GET "/compute/v2.1/servers/$1" | jq -e '.server.status == "ACTIVE" and ."server"."OS-EXT-SRV-ATTR:host" == "'"$2"'" and .server."OS-EXT-STS:task_state" == null'; }

ending() {
	for m in a1 a2 a3 c1; do halt $m & done
	wait
	for m in a1 a2 a3; do clear_agent $m; done
	! mountpoint -q "$work/a3" || umount -l "$work/a3"
	unwire
}

wire c1 a1 a2 a3 out
launch c1
ready c1 || fail "the controller is not ready"
for m in a1 a2; do agent $m --token "$(token c1 host)"; done
for m in a1 a2; do until_ok 30 is $m Up true || fail "$m is not up"; done

# A third has a small disk and a wrong clock, and takes no servers.
mkdir -m 700 "$work/a3"
mount -t tmpfs -o size=64m,mode=700 none "$work/a3"
UNKAI_CLOCK_SKEW=-40s agent a3 --token "$(token c1 host)"
until_ok 30 is a3 Up true || fail "a3 is not up"
"$unkai" host disable a3 --data "$work/c1" >/dev/null

auth=$(login c1)
[ -n "$auth" ] || fail "no token"
head -c 1048576 /dev/zero >"$work/blank"
image=$(image c1 blank "$work/blank" raw) || fail "no image"
network=$(api GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
server() { # NAME HOST ELSEWHERE
	api POST /compute/v2.1/servers -d '{"server":{"name":"'"$1"'","imageRef":"'"$image"'","flavorRef":"42","availability_zone":"nova:'"$2"'",
		"networks":[{"uuid":"'"$network"'"}]},"os:scheduler_hints":{"unkai_restart_elsewhere":"'"$3"'"}}' | jq -r .server.id
}
vm=$(server kept a1 true)
plain=$(server plain a1 false)
for id in "$vm" "$plain"; do until_ok 60 active "$id" a1 || fail "server $id is not ACTIVE"; done
ok "two servers run on one of two hosts, and one of them under its lease"

# --- a crash
first=$(pids a1 "$vm")
kill -9 "$first"
again() { runs a1 "$vm" && [ "$(pids a1 "$vm")" != "$first" ] && active "$vm" a1; }
until_ok 40 again || fail "the crashed guest does not come back"
api GET "/compute/v2.1/servers/$vm/os-instance-actions" | jq -e '[.instanceActions[].action] | index("crash") != null' >/dev/null || fail "the crash is not told"
ok "a crashed guest is started again, and the crash is among the server's actions"

# --- a host that is cut off
mkdir -m 700 -p "$work/c1/fence"
cat >"$work/c1/fence/lab" <<END
#!/bin/sh
# Switches a host of this test off: its agent and its guests.
n=\$2
all="\$(cat $work/\$n.pid) \$(jq -r '.Launch.PID // empty' $work/\$n/qemu/guests/*/record.json)"
kill -9 \$all 2>/dev/null
sleep 0.5
for p in \$all; do ! grep -q '^State:[[:space:]]*[^ZX]' /proc/\$p/status 2>/dev/null || exit 1; done
END
chmod 700 "$work/c1/fence/lab"
"$unkai" host fencing a1 --exec lab --data "$work/c1" >/dev/null
cut=$SECONDS
ip -n "$(ns sw)" link set a1 down
until_ok 30 is a1 Up false || fail "the host that is cut off does not count as lost"
runs a1 "$vm" || fail "the guest was ended for a loss alone"
lost=$((SECONDS - cut))
until_ok 60 is a1 Dead true || fail "the lost host is not fenced"
! runs a1 "$vm" || fail "it is known to be dead and runs the guest"
until_ok 60 active "$vm" a2 || fail "the server is not started elsewhere"
runs a2 "$vm" || fail "there is no QEMU elsewhere"
ok "its link cut, a host is lost after $lost s, fenced, and its guest runs elsewhere after $((SECONDS - cut)) s"
api GET "/compute/v2.1/servers/$plain" | jq -e '."server"."OS-EXT-SRV-ATTR:host" == "a1"' >/dev/null || fail "a server left whose owner did not ask for it"

# --- is on again, and still cut off
booted() { # as if the machine had booted since: what was kept on it is of another boot
	local other=00000000-0000-4000-8000-000000000000 r
	echo '{"Boot":"'$other'","Given":true}' >"$work/a1/told-in-boot"
	for r in "$work"/a1/qemu/guests/*/record.json; do jq -c 'if .Launch then .Launch.Boot = "'$other'" else . end' "$r" >"$work/record" && cat "$work/record" >"$r"; done
}
halt a1 KILL # which the fence did
booted
agent a1
said() { grep -q 'the machine has booted: guests wait' "$work/a1.log"; }
until_ok 20 said || fail "the host that has booted does not say that its guests wait"
sleep 5
! runs a1 "$vm" && ! runs a1 "$plain" || fail "a host that has booted starts guests, and does not know whether they are its own"
ok "a host that has booted starts nothing before a controller has told it what is its own"

# --- and comes back
ip -n "$(ns sw)" link set a1 up
until_ok 40 is a1 Up true || fail "the host does not come back"
until_ok 60 runs a1 "$plain" && until_ok 60 active "$plain" a1 || fail "what stayed its own does not run again"
gone() { ! ls "$work/a1/qemu/guests" | grep "$vm" >/dev/null; }
until_ok 40 gone || fail "the host that is back keeps what is not its own any more"
! runs a1 "$vm" || fail "the guest runs twice"
ok "back again it starts its own, and takes away what was given to another"

# --- a boot while no controller can be heard
ip -n "$(ns sw)" link set a1 down
until_ok 30 is a1 Up false || fail "the host that is cut off does not count as lost"
kill -9 "$(alive a1)" "$(pids a1 "$plain")" # the agent first, which would see the guest end
halt a1 KILL
booted
agent a1 --alone 4s
until_ok 30 runs a1 "$plain" || fail "a host that has booted does not work without a controller"
ip -n "$(ns sw)" link set a1 up
until_ok 40 is a1 Up true || fail "the host does not come back"
until_ok 60 active "$plain" a1 || fail "what ran while its host was cut off does not"
ok "where that is wanted, a host that has booted starts its guests without a controller after a while"

# --- maintenance
"$unkai" host maintenance a2 --plan --data "$work/c1" >"$work/plan" 2>&1 && grep -q "$vm.*stay\|$vm.*live" "$work/plan" || { cat "$work/plan" >&2; fail "the plan does not name the server"; }
"$unkai" host maintenance a2 --stop --wait --reason fans --data "$work/c1" >"$work/drained" || { cat "$work/drained" >&2; fail "the host is not drained"; }
! runs a2 "$vm" || fail "a guest runs on a drained host"
is a2 Disabled true || fail "a drained host takes new servers"
"$unkai" host enable a2 --data "$work/c1" >/dev/null
is a2 Maintenance null && is a2 Disabled false || fail "the host is still in maintenance"
ok "a host in maintenance is drained, and enabled again"

# --- a disk that fills, and a clock that is off
holds() { "$unkai" alert list --data "$work/c1" --json | jq -e --arg rule "$1" --arg about "$2" '[.Open[] | select(.Rule == $rule and .Subject == $about)] | length == 1' >/dev/null; }
over() { ! holds "$@"; }
fill() { rm -f "$work/a3/filler"; [ "$1" = 0 ] || fallocate -l "$1" "$work/a3/filler"; } # to so many bytes
over disk-filling "host a3" && over disk-full "host a3" || fail "a disk with room is told of"
until_ok 20 is a3 Clock.By -30000000000 || fail "that the clock of a3 is off is not known"
filling=$SECONDS
fill $((59 << 20))
until_ok 40 holds disk-filling "host a3" || fail "a disk that fills is not told of"
filled=$((SECONDS - filling))
"$unkai" status --data "$work/c1" >"$work/status" || { cat "$work/status" >&2; fail "a warning is an error"; }
grep -q "\ba3 .*one of its disks has little room left" "$work/status" || { cat "$work/status" >&2; fail "status does not say that the disk fills"; }
fill $((63 << 20))
until_ok 40 holds disk-full "host a3" || fail "a disk that is full is not told of"
until_ok 5 over disk-filling "host a3" || fail "a disk that is full is filling, too"
! "$unkai" status --data "$work/c1" >"$work/status" 2>&1 || fail "status is content with a full disk"
"$unkai" host show a3 --data "$work/c1" | grep "one of its disks is nearly full" >/dev/null || fail "host show does not say that the disk is full"
fill 0
until_ok 40 over disk-full "host a3" || fail "that the disk has room again is not told"
until_ok 60 holds clock-off "host a3" || fail "that a clock is off is not told"
"$unkai" host show a3 --data "$work/c1" | grep "its clock is off: 30 s or more behind" >/dev/null || fail "host show does not say that the clock is off"
halt a3 && grep -q 'the work has ended' "$work/a3.log" || fail "the agent of a3 does not end in order"
agent a3
until_ok 60 over clock-off "host a3" || fail "that the clock is right again is not told"
! holds clock-off "host a1" && ! holds clock-off "host a2" && ! holds host-lost a3 || fail "more is told than there is"
ok "a host's disk that fills is told of after $filled s, and when it is full, and when it is emptied, and so is its clock that is off"

"$unkai" audit --data "$work/c1" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
step "done"
echo "alive: $passed passed, 0 failed"
