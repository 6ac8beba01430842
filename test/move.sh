#!/bin/bash
# One controller and two hosts, each in a network namespace of its own, and a client outside: real guests change hosts, live and
# off, while they are pinged and spoken to from outside by a floating address, and from another guest. It prints for how long
# nobody answered. A move is aborted and one is hurried; nothing is left where a guest was. In the end one of the hosts is removed, and shut out by the other. With SHARED=1 the guests' disks are in a
# folder that both hosts reach: they are not copied, and outlive the host that dies in the end. That is a folder of this machine, or
# SHARED_A and SHARED_B name where the two hosts have mounted one (test/gluster.sh makes such a one, and has it hang in the end); it is to be empty.
#   NET=fd13:9: move.sh     over IPv6 alone
[ -z "${SHARED_A:-}${SHARED_B:-}" ] || { SHARED=1; [ -d "${SHARED_A:-}" ] && [ -d "${SHARED_B:-}" ] || { echo "SHARED_A and SHARED_B are two folders, or none" >&2; exit 2; }; }
PREFIX=${PREFIX:-ukm}
POOL=${POOL:-172.31.253.0/24}
. "$(dirname "$0")/lib.sh"

net=${NET:-10.213.9} tag=$prefix dir=$work
. "$root/test/hosts.sh"
declare -A pids=() # of what watches the guests
machines=(a1 a2 ${BRICK:+a3})

api() { ask c1 "$1" "$2" -H 'OpenStack-API-Version: compute 2.90' "${@:3}"; }
sshin() { (inside out ssh -n -i "$work/key" -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=3 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "cirros@$1" "${@:2}"); }
show() { api GET "/compute/v2.1/servers/$1" | jq -r ".server.$2"; }
is() { [ "$(show "$1" "$2")" = "$3" ]; }
settled() { [ "$(show "$1" '"OS-EXT-SRV-ATTR:host"')" = "$2" ] && is "$1" status "$3" && [ "$(show "$1" '"OS-EXT-STS:task_state"')" = null ]; }
act() { api POST "/compute/v2.1/servers/$1/action" -d "$2" -f || fail "refused: $2"; }
qemus() { pgrep -cf "^[^ ]*qemu-system.*$1" || true; }

# agent M [OPTION…] runs a host's agent and waits until it serves.
agent() {
	local m=$1; shift
	launch "$m" ${folder[$m]:+--shared-disks "${folder[$m]}"} "$@"
	ready "$m" || fail "the agent of $m is not ready"
}

ending() {
	[ -z "${BRICK:-}" ] || kill -CONT "$BRICK" # nothing that waits for it ends
	for m in "${pids[@]}"; do kill -TERM "$m"; done
	for m in "${machines[@]}" c1; do halt $m & done
	wait
	for m in "${machines[@]}"; do clear_agent $m; done
	unwire
}

declare -A folder=()
if [ -n "${SHARED_A:-}" ]; then folder=([a1]=$SHARED_A [a2]=$SHARED_B)
elif [ -n "${SHARED:-}" ]; then mkdir "$work/shared"; folder=([a1]=$work/shared [a2]=$work/shared); fi
"$root/guest/build.sh" "$guest" >/dev/null
wire c1 "${machines[@]}" out
launch c1
ready c1 || fail "the controller is not ready"
for m in a1 a2; do agent $m --token "$(token c1 host)"; done
ok "a controller and two hosts"

auth=$(login c1)
[ -n "$auth" ] || fail "no token"
disk=$(quick c1) || fail "no image"

netid=$(api POST /network/v2.0/networks -d '{"network":{"name":"n"}}' | jq -r .network.id)
subnet=$(api POST /network/v2.0/subnets -d '{"subnet":{"network_id":"'"$netid"'","ip_version":4,"cidr":"10.88.0.0/24"}}' | jq -r .subnet.id)
public=$(api GET '/network/v2.0/networks?router:external=true' | jq -r '.networks[0].id')
router=$(api POST /network/v2.0/routers -d '{"router":{"name":"r","external_gateway_info":{"network_id":"'"$public"'"}}}' | jq -r .router.id)
api PUT "/network/v2.0/routers/$router/add_router_interface" -d '{"subnet_id":"'"$subnet"'"}' -f >/dev/null
group=$(api POST /network/v2.0/security-groups -d '{"security_group":{"name":"in"}}' | jq -r .security_group.id)
for rule in '"protocol":"icmp"' '"protocol":"tcp","port_range_min":22,"port_range_max":22' '"protocol":"tcp","port_range_min":9000,"port_range_max":9000'; do
	api POST /network/v2.0/security-group-rules -d '{"security_group_rule":{"security_group_id":"'"$group"'","direction":"ingress",'"$rule"'}}' -f >/dev/null || fail "no rule"
done
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
api POST /compute/v2.1/os-keypairs -d '{"keypair":{"name":"k","type":"ssh","public_key":"'"$(cat "$work/key.pub")"'"}}' -f >/dev/null || fail "no key pair"
declare -A vm floating
for name in one two; do
	vm[$name]=$(api POST /compute/v2.1/servers -d '{"server":{"name":"'$name'","imageRef":"'"$disk"'","flavorRef":"42","key_name":"k","config_drive":true,"networks":[{"uuid":"'"$netid"'"}],
		"security_groups":[{"name":"in"}],"host":"'$([ $name = one ] && echo a1 || echo a2)'"}}' | jq -r .server.id)
	[ "${vm[$name]}" != null ] || fail "no server $name"
	port=$(api GET "/network/v2.0/ports?device_id=${vm[$name]}" | jq -r '.ports[0].id')
	floating[$name]=$(api POST /network/v2.0/floatingips -d '{"floatingip":{"floating_network_id":"'"$public"'","port_id":"'"$port"'"}}' | jq -r .floatingip.floating_ip_address)
done
inner=$(api GET "/network/v2.0/ports?device_id=${vm[one]}" | jq -r '.ports[0].fixed_ips[0].ip_address')
for name in one two; do until_ok 150 sshin "${floating[$name]}" true || fail "$name does not answer at ${floating[$name]}"; done
settled "${vm[one]}" a1 ACTIVE && settled "${vm[two]}" a2 ACTIVE || fail "the guests are elsewhere"
ok "two guests, on a host each, answer at their floating addresses"

# --- what goes on meanwhile
sshin "${floating[one]}" "sudo sh -c 'setsid busybox nc -ll -p 9000 -e cat </dev/null >/dev/null 2>&1 &'"
until_ok 20 nsenter --net="/run/netns/$(ns out)" timeout 5 bash -c "</dev/tcp/${floating[one]}/9000" || fail "no echo service"
sshin "${floating[two]}" "echo '(while :; do cat /proc/uptime; sleep 0.1; done) | nc $inner 9000 | while read x; do read now idle </proc/uptime; echo \$now; done >/tmp/ticks' >/tmp/talk
	setsid sh /tmp/talk >/dev/null 2>&1 </dev/null &"
until_ok 20 sshin "${floating[two]}" 'test -s /tmp/ticks' || fail "the guests do not speak"
inside out ping -D -n -i 0.1 "${floating[one]}" >"$work/pings" 2>&1 &
pids[ping]=$!
inside out python3 -B "$root/test/move_stream.py" "${floating[one]}" 9000 >"$work/stream" 2>"$work/stream.log" &
pids[stream]=$!
boot=$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)
seed=$(sshin "${floating[one]}" 'sudo cat /dev/vdb | md5sum')
sleep 1

# gap FROM FILE: the longest time, in ms, without an answer since then.
gap() { sed -n 's/^\[*\([0-9]*\.[0-9]*\).*/\1/p' "$2" | awk -v from="$1" '$1 >= from { if (last && $1 - last > most) most = $1 - last; last = $1 } END { printf "%d", 1000 * most }'; }
ticks() { sshin "${floating[two]}" "cat /tmp/ticks" | awk -v from="$1" '$1 >= from { if (last && $1 - last > most) most = $1 - last; last = $1 } END { printf "%d", 1000 * most }'; }
left() { # NAME: nothing of the first guest is on that host
	! ls -d "$dir/$1"/qemu/guests/"${vm[one]}" >/dev/null 2>&1 && ! ls -d /sys/fs/cgroup/*/"$prefix${1#a}"/"${vm[one]}" >/dev/null 2>&1 && [ "$(qemus "${vm[one]}")" -le 1 ] &&
		! ip netns exec "$prefix${1#a}-s-$netid" ip -o link 2>/dev/null | grep "$(api GET "/network/v2.0/ports?device_id=${vm[one]}" | jq -r '.ports[0].id' | tr -d - | cut -c19-32)" >/dev/null
}

fresh() { [ "$(($(date +%s) - $(tail -n 1 "$1" | sed 's/^\[*\([0-9]*\).*/\1/')))" -le 1 ]; }
talking() { sshin "${floating[two]}" 'tail -n 1 /tmp/ticks; cut -d" " -f1 /proc/uptime' | awk 'NR == 1 { last = $1 } END { exit $1 - last > 2 }'; }

lost=()
# moved SINCE WHAT FROM TO [MOST [PATIENCE]]: waits for a live move, and says what was lost.
moved() {
	local since=$1 what=$2 from=$3 to=$4
	until_ok 60 settled "${vm[one]}" "$to" ACTIVE || { api GET "/compute/v2.1/servers/${vm[one]}/os-instance-actions" >&2; fail "$what: it is not on $to"; }
	local took
	took=$(awk -v from="$since" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }')
	until_ok "${6:-5}" fresh "$work/pings" && until_ok "${6:-5}" fresh "$work/stream"
	until_ok "${6:-5}" talking || fail "$what: the connection from the other guest broke"
	sleep 0.5
	kill -0 "${pids[stream]}" 2>/dev/null || { cat "$work/stream.log" >&2; fail "$what: the connection from outside broke"; }
	local ping stream guest
	ping=$(gap "$since" "$work/pings") stream=$(gap "$since" "$work/stream") guest=$(ticks "$uptime")
	step "  $what, after $took s: nobody answered for $ping ms (ping), $stream ms (TCP from outside), $guest ms (TCP from another guest)"
	lost+=("$ping")
	[ "$ping" -lt "${5:-3000}" ] && [ "$stream" -lt "${5:-3000}" ] || fail "$what: too much was lost"
	[ "$guest" -lt $((${5:-3000} + 500)) ] || fail "$what: the connection from the other guest lost too much ($guest ms)"
	[ "$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)" = "$boot" ] || fail "$what: the guest was restarted"
	[ "$(sshin "${floating[one]}" 'sudo cat /dev/vdb | md5sum')" = "$seed" ] || fail "$what: its config drive is another"
	until_ok 20 left "$from" || fail "$what: something is left on $from"
}
# forecast: says what a live move of the first guest would take; seen TO: what it took.
forecast() {
	"$unkai" move "${vm[one]}" --data "$work/c1" --plan --json >"$work/forecast" || fail "no forecast"
	step "  forecast: $(jq -r 'def r: "\(.Expected*10|round/10) (\(.Least*10|round/10) to \(if .Most == 0 then "no end" else .Most*10|round/10 end))"; "\(.Seconds|r) s, pause \(.PauseMs|r) ms, hurried \(.HurriedMs|r) ms; ends by itself: \(.Outcome), slowed \(.Slowed) %; " +
		"memory \(.Burden.Used/1048576|round) of \(.Burden.Memory/1048576|round) MiB, \(.Burden.Dirty/1048576|round) MiB/s written in \(.Burden.Pages) pages; disks \(.Burden.Disk/1048576|round) MiB, \(.Burden.DiskWrites/1024|round) KiB/s; " +
		"wire \(.Wire.Expected/1e6|round) (\(.Wire.Least/1e6|round) to \(.Wire.Most/1e6|round)) MB/s, \(.Wire.Basis)"' "$work/forecast")"
	[ "$(jq -r .Burden.Seen "$work/forecast")" = true ] || fail "the guest was not looked at: $(cat "$work/forecast")"
	jq -e '(.Kept and .Burden.Disk == 0) == '"$([ -n "${SHARED:-}" ] && echo true || echo false)" "$work/forecast" >/dev/null || fail "it says of the disks: $(cat "$work/forecast")"
}
seen() {
	step "  seen:     $(api GET "/v1/migrations?server_id=${vm[one]}&sort=-number&limit=1" | jq -r '.items[0] | "\((.updated_at|.[0:19]+"Z"|fromdate) - (.created_at|.[0:19]+"Z"|fromdate)) s, sent \(.passage.bytes/1048576|round) MiB in \(.passage.ms) ms, processors stopped for \(.passage.stopped_ms) ms"'); nobody answered for ${lost[-1]} ms"
}
mark() { since=$(date +%s.%N); uptime=$(sshin "${floating[two]}" 'cut -d" " -f1 /proc/uptime'); }

forecast
mark
act "${vm[one]}" '{"os-migrateLive":{"host":"a2","block_migration":"auto"}}'
moved "$since" "live, to a2" a1 a2
seen
sshin "${floating[one]}" 'echo written >proof; dd if=/dev/urandom of=ballast bs=1M count=48 2>/dev/null; sync'
forecast
mark
act "${vm[one]}" '{"os-migrateLive":{"host":null,"block_migration":"auto"}}'
moved "$since" "live, and back" a2 a1
seen
[ "$(sshin "${floating[one]}" cat proof)" = written ] || fail "what it wrote is lost"
# A machine that is busy with something else may stand still once.
[ "${lost[0]}" -lt 1000 ] || [ "${lost[1]}" -lt 1000 ] || fail "neither way took less than a second"
ok "a guest goes live there and back: the same boot, the same connections, nothing left where it was"

# --- one that writes in its memory, as much as it can while it goes; what is told of that is the same wherever the disks are
loads() { sshin "${floating[one]}" "touch /tmp/busy; sudo sh -c 'setsid sh -c \"while [ -e /tmp/busy ]; do dd if=/dev/urandom of=/dev/shm/load bs=1M count=$1; $2; done\" </dev/null >/dev/null 2>&1 &'"; sleep 3; }
rests() { sshin "${floating[one]}" 'rm -f /tmp/busy'; sleep 2; }
if [ -z "${SHARED:-}" ]; then
	loads 8 "sleep 0.5"
	forecast
	mark
	act "${vm[one]}" '{"os-migrateLive":{"host":"a2","block_migration":"auto"}}'
	moved "$since" "writing, to a2" a1 a2 6000 20
	seen
	forecast
	mark
	act "${vm[one]}" '{"os-migrateLive":{"host":"a1","block_migration":"auto"}}'
	moved "$since" "writing, and back" a2 a1 6000 20
	seen
	rests
	ok "what a move takes was told before: of a guest that is idle, and of one that writes"
fi

# --- one that is given up, and one that is hurried, over a wire that is slower than the guest writes
slow() { for m in a1 a2; do (inside $m tc qdisc replace dev up0 root tbf rate "$1" burst 128k latency 100ms); done; }
migration() { api GET "/compute/v2.1/servers/${vm[one]}/migrations" | jq -r ".migrations[0].$1"; }
under_way() { migration memory_processed_bytes | grep '^[1-9]' >/dev/null; }
slow 150mbit
loads 16 :
forecast
mark
act "${vm[one]}" '{"os-migrateLive":{"host":"a2","block_migration":"auto"}}'
until_ok 60 under_way || fail "the memory is not sent: $(api GET "/compute/v2.1/servers/${vm[one]}/migrations")"
for _ in 1 2 3; do
	progress=$(api GET "/compute/v2.1/servers/${vm[one]}/migrations" | jq -c '.migrations[0] | [.status, .memory_total_bytes, .memory_processed_bytes, .memory_remaining_bytes, .disk_total_bytes, .disk_processed_bytes, .disk_remaining_bytes]')
	step "  under way: [status, memory total, processed, remaining, disk total, processed, remaining] = $progress"
	jq -e '.[0] == "running" and .[1] > 0 and .[2] > 0 and .[3] >= 0 and .[3] <= .[1] and .[4] == .[5] + .[6] and .[4] >= 0 and (.[5] > 0) == ('"${SHARED:-0}"' == 0)' >/dev/null <<<"$progress" || fail "the progress cannot be"
	sleep 1
done
api DELETE "/compute/v2.1/servers/${vm[one]}/migrations/$(migration id)" -f || fail "the move cannot be aborted"
moved "$since" "aborted" a2 a1
[ "$(qemus "${vm[one]}")" = 1 ] || fail "a QEMU is left on a2"
ok "an aborted move leaves the guest where it was, and nothing where it went"

mark
act "${vm[one]}" '{"os-migrateLive":{"host":"a2","block_migration":"auto"}}'
until_ok 60 under_way || fail "the memory is not sent"
halt a1 KILL
agent a1
moved "$since" "the agent of its host killed" a2 a1
ok "kill -9 of an agent in the middle of a move: the guest goes on where it is, and nothing is left where it went"

mark
act "${vm[one]}" '{"os-migrateLive":{"host":"a2","block_migration":"auto"}}'
until_ok 60 under_way || fail "the memory is not sent"
api POST "/compute/v2.1/servers/${vm[one]}/migrations/$(migration id)/action" -d '{"force_complete":null}' -f || fail "the move cannot be hurried"
moved "$since" "hurried" a1 a2 30000 40
slow 10gbit
ok "a hurried move ends soon, at the cost of a pause"

# --- off
kill "${pids[stream]}"; unset "pids[stream]"
mark
act "${vm[one]}" '{"migrate":null}'
until_ok 60 is "${vm[one]}" status VERIFY_RESIZE || fail "it was not taken to the other host: $(show "${vm[one]}" status)"
act "${vm[one]}" '{"confirmResize":null}'
until_ok 60 sshin "${floating[one]}" true || fail "it does not answer on the other host"
settled "${vm[one]}" a1 ACTIVE || fail "it is not on a1"
[ "$(sshin "${floating[one]}" cat proof)" = written ] || fail "what it wrote is lost"
[ "$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)" != "$boot" ] || fail "it was not restarted"
step "  off, to a1: nobody answered for $(gap "$since" "$work/pings") ms (ping)"
until_ok 20 left a2 || fail "something is left on a2"
ok "a guest goes with its disks, and starts there"

[ -z "${SHARED:-}" ] || . "$root/test/move_shared.sh"
[ -z "${BRICK:-}" ] || . "$root/test/move_hangs.sh"
"$unkai" audit --data "$work/c1" >"$work/audit" || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
for name in one two; do api DELETE "/compute/v2.1/servers/${vm[$name]}"; done
until_ok 60 bash -c "! pgrep -f '^[^ ]*qemu-system.*(${vm[one]}|${vm[two]})'" || fail "a QEMU is left"
[ -z "${SHARED:-}" ] || until_ok 20 bash -c "! ls '${folder[a1]}/guests' '${folder[a2]}/guests' | grep -v :$ | grep ." || fail "disks are left in the shared folder"
ok "the audit is clean, and nothing is left"

# --- a host is removed: its certificate is good for months, and opens nothing on the other
if [ -z "${SHARED:-}" ]; then
	cat >"$work/knock.py" <<'END'
# knock.py IDENTITY ADDRESS asks another host for a trial of the wire, with a host's certificate, and goes on until it is cut.
import json, socket, ssl, sys, textwrap, time
identity = json.load(open(sys.argv[1]))
pem = lambda what, body: "-----BEGIN %s-----\n%s\n-----END %s-----\n" % (what, "\n".join(textwrap.wrap(body, 64)), what)
with open(sys.argv[0] + ".pem", "w") as f:
    f.write(pem("CERTIFICATE", identity["Certificate"]) + pem("PRIVATE KEY", identity["Key"]))
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
tls.load_cert_chain(sys.argv[0] + ".pem")
hail = json.dumps({"Guest": "00000000-0000-7000-8000-000000000000", "Move": 0, "Purpose": "trial"}).encode()
try:
    conn = tls.wrap_socket(socket.create_connection((sys.argv[2], 8704), 5))
    conn.sendall(len(hail).to_bytes(4, "big") + hail)
    if not conn.recv(4):
        raise EOFError
    print("heard", flush=True)
    for _ in range(40):
        conn.sendall(bytes(1000))
        time.sleep(0.05)
    print("to the end")
except (OSError, EOFError):
    print("cut")
END
	knock() { (inside a2 python3 -B "$work/knock.py" "$work/a2/identity.json" "$(at a1)"); }
	until_ok 20 eval '[ "$(api GET /compute/v2.1/servers | jq ".servers | length")" = 0 ]' || fail "servers are left"
	knock >"$work/knocked" &
	knocking=$!
	until_ok 10 grep -q heard "$work/knocked" || fail "a host is not heard by another"
	"$unkai" controller remove a2 --data "$work/c1" >/dev/null || fail "it cannot be removed"
	wait $knocking
	[ "$(tr '\n' ' ' <"$work/knocked")" = "heard cut " ] || fail "what stood between two hosts when one was removed: $(cat "$work/knocked")"
	[ "$(knock)" = cut ] || fail "a removed host is heard by another"
	ok "a removed host is shut out by the other, at once"
fi
step "done"
echo "move: $passed passed, 0 failed"
