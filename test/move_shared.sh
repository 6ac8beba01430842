# For move.sh, when the two hosts share a folder: the host that has the guest dies, the other takes up its disks, and the first
# comes back. Then the guest is shelved, and comes back.
[ -e "${folder[a2]}/guests/${vm[one]}/disk-root.qcow2" ] || fail "the disk is not in the shared folder"
! ls "$work/a1"/qemu/guests/*/disk-* "$work/a2"/qemu/guests/*/disk-* >/dev/null 2>&1 || fail "a disk is not in the shared folder"
here=$(sed -n 's/.*"PID":\([0-9]*\).*/\1/p' "$work/a1/qemu/guests/${vm[one]}/record.json")
boot=$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)
sshin "${floating[one]}" 'echo late >late; sync'
halt a1 KILL
lost() { api GET /compute/v2.1/os-services | jq -e '.services[] | select(.host == "a1" and .binary == "nova-compute" and .state == "down")' >/dev/null; }
until_ok 60 lost || fail "nobody notices that a1 is gone"

# Whoever says that it is dead is wrong: its guest runs on. The other host must not start it.
evacuate() { api POST "/compute/v2.1/servers/${vm[one]}/action" -d '{"evacuate":{}}' -f; }
evacuate || fail "it cannot be evacuated"
sleep 6
kill -0 "$here" || fail "the guest's first QEMU is gone already"
[ "$(qemus "${vm[one]}")" = 1 ] || fail "the guest runs twice"
ok "a host that is said to be dead, and is not, keeps the other from its disks"

kill -KILL "$here"
since=$(date +%s.%N)
until_ok 100 settled "${vm[one]}" a2 ACTIVE || fail "it is not taken up on a2: $(show "${vm[one]}" fault)"
until_ok 100 sshin "${floating[one]}" true || fail "it does not answer on a2"
[ "$(sshin "${floating[one]}" cat proof late | tr '\n' ' ')" = "written late " ] || fail "what it wrote is lost"
[ "$(sshin "${floating[one]}" cat /proc/sys/kernel/random/boot_id)" != "$boot" ] || fail "it was not restarted"
step "  evacuated with its disks: it answers $(awk -v from="$since" -v to="$(date +%s.%N)" 'BEGIN { printf "%.1f", to - from }') s after its first QEMU's end"
ok "a guest outlives its host, with what it had written"

agent a1
until_ok 20 left a1 || fail "something is left on a1"
[ "$(sshin "${floating[one]}" cat late)" = late ] || fail "the host that came back harmed the guest"
ok "the host that comes back leaves the disks alone"

# The shelf: nothing of it is in the folder meanwhile, and what it had written comes back.
act "${vm[one]}" '{"shelve":null}'
until_ok 90 is "${vm[one]}" status SHELVED_OFFLOADED || fail "it is not shelved: $(show "${vm[one]}" status)"
until_ok 20 test ! -e "${folder[a2]}/guests/${vm[one]}" || fail "its disks are in the shared folder still"
act "${vm[one]}" '{"unshelve":null}'
until_ok 60 is "${vm[one]}" status ACTIVE || fail "it does not come back: $(show "${vm[one]}" status)"
until_ok 60 sshin "${floating[one]}" true || fail "it does not answer when it is back"
[ "$(sshin "${floating[one]}" cat proof late | tr '\n' ' ')" = "written late " ] || fail "what it wrote is lost on the shelf"
[ -e "${folder[a2]}/guests/${vm[one]}/disk-root.qcow2" ] || fail "the disk is not in the shared folder again"
ok "on the shelf it takes nothing of the shared folder, and it comes back to it"
