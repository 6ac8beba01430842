# For move.sh, when the shared folder is a network file system whose server is the process BRICK (test/gluster.sh): it stands still, so that both
# hosts' mounts hang. Operators are told, of these two hosts; nothing else stalls; and it ends with its cause.
$GLUSTER volume set v network.ping-timeout 600 >/dev/null # so that it hangs, and does not fail after 42 s
agent a3 --token "$(token c1 host)"
vm[own]=$(api POST /compute/v2.1/servers -d '{"server":{"name":"own","imageRef":"'"$disk"'","flavorRef":"42","config_drive":true,"networks":[{"uuid":"'"$netid"'"}],"host":"a3"}}' | jq -r .server.id)
until_ok 90 settled "${vm[own]}" a3 ACTIVE || fail "no guest on a3: $(show "${vm[own]}" fault)"
booted() { api POST "/compute/v2.1/servers/${vm[own]}/action" -d '{"os-getConsoleOutput":{"length":20}}' | grep 'unkai-guest: ready' >/dev/null; }
until_ok 90 booted || fail "it does not come up" # and so ends when it is asked to
[ -e "$work/a3/qemu/guests/${vm[own]}" ] || fail "its disk is not on a3's own"

hanging() { status c1 | jq -r '[.Alerts[]? | select(.Rule == "storage-hangs") | .Subject] | sort | join(" ")'; }
told() { [ "$(hanging)" = "$1" ]; }
home=$(show "${vm[one]}" '"OS-EXT-SRV-ATTR:host"')
boot=$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)
told "" || fail "it is told before it is so: $(hanging)"

kill -STOP "$BRICK"
since=$SECONDS slowest=0
for verb in stop start; do
	act "${vm[own]}" '{"os-'$verb'":null}'
	until_ok 40 settled "${vm[own]}" a3 "$([ $verb = stop ] && echo SHUTOFF || echo ACTIVE)" || fail "a guest whose disk is another host's own does not $verb"
done
step "  a guest with its disk on another host was stopped and started within $((SECONDS - since)) s"
until told "a1 a2"; do
	[ $((SECONDS - since)) -lt 120 ] || fail "nobody is told that the storage hangs: $(hanging)"
	from=$(date +%s%N)
	api GET /compute/v2.1/servers/detail -f >/dev/null || fail "the API does not answer"
	api PUT "/compute/v2.1/servers/${vm[own]}" -d '{"server":{"description":"'"$from"'"}}' -f >/dev/null || fail "nothing can be changed"
	ms=$((($(date +%s%N) - from) / 1000000))
	[ $ms -le $slowest ] || slowest=$ms
	sleep 1
done
step "  the storage stands still: told after $((SECONDS - since)) s; meanwhile a list and a change took $slowest ms at most"
[ $slowest -lt 5000 ] || fail "the API was held up"
for m in a1 a2 a3; do alive $m >/dev/null || fail "an agent ended"; done
status c1 | jq -e '[.Hosts[] | select(.Up)] | length == 3' >/dev/null || fail "a host counts as lost"
! ("$unkai" status --data "$work/c1" >"$work/status") || fail "the status says that all is well"
grep -q 'a1 .*cannot reach its shared storage since' "$work/status" || { cat "$work/status" >&2; fail "the status does not say it"; }
! grep -q 'a3 .*shared storage' "$work/status" || fail "a host that shares none is said to be without it"
ok "a shared storage that hangs is told of its hosts, and holds up nothing else"

kill -CONT "$BRICK"
since=$SECONDS
until_ok 90 told "" || fail "the storage is back, and nobody is told: $(hanging)"
step "  it goes on: over after $((SECONDS - since)) s"
until_ok 60 sshin "${floating[one]}" true || fail "the guest does not answer"
[ "$(sshin "${floating[one]}" 'cat proof; cat /proc/sys/kernel/random/boot_id')" = "written
$boot" ] || fail "the guest was restarted, or has lost something"
settled "${vm[one]}" "$home" ACTIVE || fail "the guest is elsewhere"
sshin "${floating[one]}" 'echo after >after; sync' || fail "the guest cannot write"
ok "when it goes on so do the guests, the same boot, and it is told"

api DELETE "/compute/v2.1/servers/${vm[own]}"
until_ok 60 bash -c "! pgrep -f '^[^ ]*qemu-system.*${vm[own]}'" || fail "a QEMU is left on a3"
