#!/bin/bash
# A whole cloud on this machine, real QEMU guests, and stock clients: Debian's python3-openstackclient and awscli,
# unmodified. It ends with nothing left and the audit clean.
. "$(dirname "$0")/lib.sh"

"$root/guest/build.sh" "$guest"
start
ok "the cloud is ready at $url"

# --- image, network, router, key, server, floating address, console log, stop/start, delete with `openstack`
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
os unkai image create --disk-format qcow2 --container-format bare --public --file "$guest/disk.qcow2" guest >/dev/null
[ "$(os demo image show guest -f value -c status)" = active ] || fail "the image is not active"
os demo image save --file "$work/back" guest
cmp -s "$work/back" "$guest/disk.qcow2" || fail "the image came back different"
rm "$work/back"
ok "image up and down"

os demo network create net1 >/dev/null
os demo subnet create --network net1 --subnet-range 10.77.0.0/24 --dns-nameserver 192.0.2.53 sub1 >/dev/null
os demo router create r1 >/dev/null
os demo router set --external-gateway public r1
os demo router add subnet r1 sub1
os demo security group create in1 >/dev/null
os demo security group rule create --protocol tcp --dst-port 22 in1 >/dev/null
os demo security group rule create --protocol icmp in1 >/dev/null
os demo keypair create --public-key "$work/key.pub" key1 >/dev/null
ok "network, router, group, key"

printf '#!/bin/sh\necho from-user-data >/tmp/proof\n' >"$work/userdata"
os demo server create --image guest --flavor u1.micro --network net1 --security-group in1 --key-name key1 \
	--user-data "$work/userdata" --wait vm1 >/dev/null
[ "$(os demo server show vm1 -f value -c status)" = ACTIVE ] || fail "vm1 is not ACTIVE"
address=$(os demo floating ip create public -f value -c floating_ip_address)
os demo server add floating ip vm1 "$address"
until_ok 300 sshto "$address" true || { os demo console log show vm1 >&2; fail "vm1 does not answer ssh at $address"; }
ok "vm1 answers ssh at its floating address $address"
[ "$(sshto "$address" hostname)" = vm1 ] || fail "the guest does not know its name"
until_ok 30 sshto "$address" grep -q from-user-data /tmp/proof || fail "the user data was not run"
sshto "$address" 'curl -s http://169.254.169.254/openstack/latest/meta_data.json' | jq -e '.name == "vm1"' >/dev/null || fail "no metadata"
os demo console log show vm1 | grep unkai-guest >/dev/null || fail "the console log is empty"
ok "hostname, user data, metadata, console log"

# What the group does not let in stays out; from inside, the way out works.
if timeout 3 bash -c "</dev/tcp/$address/80" 2>/dev/null; then fail "port 80 is open"; fi
gateway=${pool%.*}.1
sshto "$address" "ping -c 1 -W 5 $gateway" >/dev/null || fail "the guest does not reach the outside"
ok "the security group filters, the way out works"

# --- one cloud, two languages
image=$(ec2 describe-images --filters Name=name,Values=guest --query 'Images[0].ImageId')
instance=$(ec2 run-instances --image-id "$image" --instance-type u1.micro --key-name key1 --client-token once-1 \
	--tag-specifications 'ResourceType=instance,Tags=[{Key=Name,Value=vm2}]' \
	--subnet-id "$(ec2 describe-subnets --filters Name=cidr-block,Values=10.77.0.0/24 --query 'Subnets[0].SubnetId')" --query 'Instances[0].InstanceId')
ec2 wait instance-running --instance-ids "$instance"
os demo server list -f value -c Name | sort | tr '\n' ' ' | grep 'vm1 vm2' >/dev/null || fail "openstack does not list the instance made with aws"
ec2 describe-instances --query 'Reservations[].Instances[].Tags[?Key==`Name`].Value' | sort | tr '\n' ' ' | grep 'vm1 vm2' >/dev/null ||
	fail "aws does not list the server made with openstack"
ok "each client lists what the other made"

# --- kill -9 with guests running
boot=$(sshto "$address" 'cat /proc/sys/kernel/random/boot_id')
crash
sshto "$address" true || fail "the guest died with the control plane"
ping -c 2 -W 5 -q "$address" >/dev/null || fail "the guest does not answer ping without a control plane"
start
until_ok 30 test "$(os demo server show vm1 -f value -c status)" = ACTIVE || fail "vm1 was not adopted again"
[ "$(sshto "$address" 'cat /proc/sys/kernel/random/boot_id')" = "$boot" ] || fail "the guest was restarted"
# The lease is renewed by the agent that is back.
sshto "$address" 'sudo kill -USR1 $(cat /var/run/udhcpc.eth0.pid)' || fail "the guest cannot ask for its lease again"
sleep 2
sshto "$address" 'ip -4 addr show eth0 | grep 10.77.0. >/dev/null' || fail "the guest lost its address"
audit
ok "kill -9 with guests running: they go on, and are adopted again"

# --- stop, start, delete
os demo server stop vm1
until_ok 200 bash -c '[ "$(OS_CLIENT_CONFIG_FILE='"$data"'/clouds.yaml OS_CLOUD=demo openstack server show vm1 -f value -c status)" = SHUTOFF ]' || fail "vm1 does not stop"
os demo server start vm1
until_ok 300 sshto "$address" true || fail "vm1 does not answer ssh after it was started again"
ok "stop and start"

# --- shelve, and back: the host has nothing of it, its disk is in an image, and it comes back with all that it had
vm1=$(os demo server show vm1 -f value -c id)
sshto "$address" 'echo kept on the shelf >/home/cirros/shelf && sync' || fail "the guest cannot write a file"
os demo server shelve vm1
until_ok 150 bash -c '[ "$(OS_CLIENT_CONFIG_FILE='"$data"'/clouds.yaml OS_CLOUD=demo openstack server show vm1 -f value -c status)" = SHELVED_OFFLOADED ]' || fail "vm1 is not shelved"
until_ok 20 test ! -e "$data/host/qemu/guests/$vm1" || { ls -la "$data/host/qemu/guests/$vm1" >&2; fail "the host has something of the shelved vm1"; }
[ "$(os demo image show vm1-shelved -f value -c status)" = active ] || fail "the shelved vm1 has no image"
audit
os demo server unshelve vm1
until_ok 200 sshto "$address" grep -q 'kept on the shelf' /home/cirros/shelf || { os demo console log show vm1 >&2; fail "vm1 did not come back from the shelf with its file"; }
until_ok 20 bash -c '! OS_CLIENT_CONFIG_FILE='"$data"'/clouds.yaml OS_CLOUD=demo openstack image show vm1-shelved' || fail "the image of the shelved vm1 is left"
audit
ok "shelve and unshelve: the file is there, at the same floating address"

# --- backups of a guest that runs: the newest of a kind stay
for n in 1 2 3; do
	os demo server backup create --name daily$n --type daily --rotate 2 --wait vm1 >/dev/null || fail "vm1 is not backed up"
done
[ "$(os demo image list --private -f value -c Name -c Status | sort | paste -sd,)" = 'daily2 active,daily3 active' ] || fail "the backups are $(os demo image list --private -f value)"
os demo image delete daily2 daily3
ok "three backups, two of which are kept"

# --- kill -9 in the middle of create, delete, reboot and image upload: each is accepted, and the very next
# thing is the end of the process.
network=$(os demo network show net1 -f value -c id)
image=$(os demo image show guest -f value -c id)
token=$(os demo token issue -f value -c id)
api() { curl -sS -f -H "X-Auth-Token: $token" -H 'Content-Type: application/json' "$@"; }

vm3=$(api "$url/compute/v2.1/servers" -d '{"server":{"name":"vm3","imageRef":"'"$image"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' |
	jq -r .server.id)
crash
start
until_ok 300 bash -c 'curl -sf -H "X-Auth-Token: '"$token"'" '"$url/compute/v2.1/servers/$vm3"' | jq -e ".server.status == \"ACTIVE\""' ||
	fail "the accepted server vm3 is not ACTIVE"
ok "kill -9 during create"

api "$url/compute/v2.1/servers/$vm1/action" -d '{"reboot":{"type":"HARD"}}'
crash
start
until_ok 300 sshto "$address" true || fail "vm1 does not come back from the reboot that was cut off"
[ "$(sshto "$address" 'cat /proc/sys/kernel/random/boot_id')" != "$boot" ] || fail "the accepted reboot was forgotten"
ok "kill -9 during reboot"

cut=$(api "$url/image/v2/images" -d '{"name":"cut","disk_format":"raw","container_format":"bare"}' | jq -r .id)
head -c 200000000 /dev/zero | curl -sS --limit-rate 20M -T - -H "X-Auth-Token: $token" -H 'Content-Type: application/octet-stream' \
	"$url/image/v2/images/$cut/file" >/dev/null 2>&1 &
upload=$!
until_ok 20 bash -c '[ "$(curl -sf -H "X-Auth-Token: '"$token"'" '"$url/image/v2/images/$cut"' | jq -r .status)" = saving ]' || fail "the upload did not begin"
sleep 1
crash
wait $upload 2>/dev/null || true
start
until_ok 60 bash -c '[ "$(curl -sf -H "X-Auth-Token: '"$token"'" '"$url/image/v2/images/$cut"' | jq -r .status)" = queued ]' || fail "the image whose upload was cut off is stuck"
ok "kill -9 during an image upload"

for id in $(os demo server list -f value -c ID); do api -X DELETE "$url/compute/v2.1/servers/$id"; done
crash
start
until_ok 300 bash -c '[ "$(curl -sf -H "X-Auth-Token: '"$token"'" '"$url/compute/v2.1/servers"' | jq ".servers | length")" = 0 ]' || fail "the servers are not gone"
audit
ok "kill -9 during delete: everything settled, and the audit is clean"

# --- nothing is left
for i in $(os unkai image list -f value -c ID); do os unkai image delete "$i"; done
os demo floating ip delete "$address"
os demo router remove subnet r1 sub1
os demo router delete r1
os demo network delete net1
os demo security group delete in1
os demo keypair delete key1
audit
[ -z "$(os demo port list --network private --device-owner compute:nova -f value)" ] || fail "ports are left"
sleep 2
[ -z "$(ls -A "$data/images" 2>/dev/null | grep -v '^\.' || true)" ] || { ls -la "$data/images" >&2; fail "image bytes are left"; }
ls "$data/host/qemu/guests" 2>/dev/null | grep . >/dev/null && fail "guests are left on disk"
ok "nothing is left, and the audit is clean"

stop
"$unkai" down --data "$data" --prefix "$prefix" --pool "$pool" >/dev/null
! ip netns list | grep "^$prefix-" >/dev/null || fail "network namespaces are left"
! ip link show 2>/dev/null | grep " $prefix-" >/dev/null || fail "links are left"
ok "down leaves nothing in the kernel"
step "done"
echo "cloud: $passed passed, 0 failed"
