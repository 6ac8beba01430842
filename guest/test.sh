#!/bin/bash
# Boots the demo guest in QEMU without KVM, every way that it is meant to be booted, and asks it by ssh
# whether it became what its metadata says. Needs qemu-system-x86, genisoimage, socat, python3, ssh.
# usage: test.sh [DIR [CASE...]]
# DIR is what build.sh made; it is built in a scratch directory otherwise. CASE is one of: direct disk openstack
# ec2 static; all of them otherwise.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
tmp=$(mktemp -d "${TMPDIR:-/tmp}/unkai-guest.XXXXXX")
started=()
finish() {
	local pid
	for pid in "${started[@]}"; do kill "$pid" 2>/dev/null; done
	wait
	rm -rf "$tmp"
}
trap finish EXIT
for tool in qemu-system-x86_64 qemu-img genisoimage socat python3 ssh ssh-keygen; do
	command -v $tool >/dev/null || { echo "$tool is missing" >&2; exit 2; }
done
out=${1:-$tmp/out}
if [ $# = 0 ]; then "$here/build.sh" "$out" || exit 1; fi
cmdline=$(sed -n 's/^  "cmdline": "\(.*\)",$/\1/p' "$out/manifest.json")
tempest=$(grep -c '"tempest": true' "$out/manifest.json")

failures=0 case=
ok() { echo "ok    $case: $*"; }
bad() { echo "FAIL  $case: $*"; failures=$((failures + 1)); }
# is NAME GOT WANTED
is() { if [ "$2" = "$3" ]; then ok "$1"; else bad "$1: got \"$2\", wanted \"$3\""; fi; }
now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN {printf "%.1f", b - a}'; }

# boot starts a guest with more QEMU arguments, and sets qemu, port and t0. The machine is as the cloud makes it:
# q35, with root ports for what is plugged in later.
machine=(-machine q35 -device VGA -device pcie-root-port,id=late1,slot=1,chassis=1 -device pcie-root-port,id=late2,slot=2,chassis=2)
boot() {
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	rm -f "$tmp/qmp" "$tmp/serial"
	t0=$(now)
	qemu-system-x86_64 -accel tcg,tb-size=64 -cpu max -smp 1 -m 128 -nodefaults -display none -no-user-config "${machine[@]}" \
		-device virtio-rng-pci -serial "file:$tmp/serial" -qmp "unix:$tmp/qmp,server=on,wait=off" \
		-netdev "user,id=n0,net=169.254.169.0/24,dhcpstart=169.254.169.15,hostfwd=tcp:127.0.0.1:$port-:22${forward:-}" \
		-device virtio-net-pci,netdev=n0,mac=52:54:00:aa:00:01 "$@" &
	qemu=$!
	started+=("$qemu")
}
to_guest=(-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectTimeout=20)
on() { timeout 60 ssh -i "$tmp/id" -p "$port" "${to_guest[@]}" -o LogLevel=ERROR -o BatchMode=yes cirros@127.0.0.1 "$@"; }
as_root() { timeout 60 ssh -i "$tmp/id" -p "$port" "${to_guest[@]}" -o LogLevel=QUIET -o BatchMode=yes root@127.0.0.1 "$@"; }
with_password() {
	printf '#!/bin/sh\necho "%s"\n' "${password:-gocubsgo}" >"$tmp/askpass"
	chmod +x "$tmp/askpass"
	SSH_ASKPASS=$tmp/askpass SSH_ASKPASS_REQUIRE=force timeout 60 ssh -p "$port" "${to_guest[@]}" -o LogLevel=ERROR \
		-o PubkeyAuthentication=no cirros@127.0.0.1 "$@"
}
# login waits until ssh lets us in, and says how long that took.
login() {
	local deadline=$((SECONDS + 300))
	# QEMU accepts a connection long before the guest does, so ask only when the guest says that it may be asked.
	until [ "$(grep -c 'unkai-guest: ssh is up' "$tmp/serial" 2>/dev/null)" = "${1:-1}" ] && on true; do
		if ! kill -0 "$qemu" 2>/dev/null || [ $SECONDS -gt $deadline ]; then
			bad "no login; the console says:"
			tr -d '\r' <"$tmp/serial" | tail -20
			return 1
		fi
		sleep 0.1
	done
	ok "ssh login after $(since "$t0") s"
}
# said waits for a line on the console.
said() {
	local deadline=$((SECONDS + ${2:-60}))
	until grep -q "unkai-guest: $1" "$tmp/serial"; do
		[ $SECONDS -lt $deadline ] || { bad "the console never said: $1"; tr -d '\r' <"$tmp/serial" | tail -20; return 1; }
		sleep 0.2
	done
	ok "console: $(tr -d '\r' <"$tmp/serial" | grep -o "unkai-guest: $1.*" | head -1)"
}
qmp() { (echo '{"execute":"qmp_capabilities"}'; for command; do echo "$command"; sleep 0.2; done) | socat -t 2 - "unix-connect:$tmp/qmp" | grep '"error"' && bad "QEMU refused: $*"; }
gone() {
	local deadline=$((SECONDS + 60)) from
	from=$(now)
	while kill -0 "$qemu" 2>/dev/null; do
		if [ $SECONDS -gt $deadline ]; then bad "$1: still running"; kill "$qemu"; return; fi
		sleep 0.1
	done
	wait "$qemu" 2>/dev/null
	ok "$1: off after $(since "$from") s"
}
power_button() { qmp '{"execute":"system_powerdown"}'; gone 'power button'; }

ssh-keygen -q -t ed25519 -N '' -C test -f "$tmp/id"
key=$(cat "$tmp/id.pub")
direct=(-kernel "$out/vmlinuz" -initrd "$out/initramfs.cpio.gz" -append "$cmdline")

# drive makes a config drive from the user data on stdin.
drive() {
	local top=$tmp/drive
	rm -rf "$top"
	mkdir -p "$top/openstack/latest" "$top/openstack/content"
	cat >"$top/openstack/latest/user_data"
	cat >"$top/openstack/latest/meta_data.json" <<-EOF
		{"uuid": "$1", "name": "$2", "hostname": "$2.novalocal", "launch_index": 0, "public_keys": {"a \"key\"": "$key\n"},
		 "files": [{"path": "/etc/injected", "content_path": "/content/0000"}], "meta": {"k": "v"}}
	EOF
	[ -z "${3:-}" ] || echo "$3" >"$top/openstack/latest/network_data.json"
	echo 'a file of the request' >"$top/openstack/content/0000"
	genisoimage -quiet -J -R -V config-2 -o "$tmp/drive.iso" "$top"
}
cdrom=(-drive "file=$tmp/drive.iso,if=none,id=cd,format=raw,readonly=on" -device virtio-blk-pci,drive=cd)

# serve starts a metadata service for guests, which reach it at 169.254.169.254.
serve() {
	rm -f "$tmp/served.port"
	python3 "$here/metadata_server.py" "$tmp/served" "$1" >"$tmp/served.port" &
	started+=("$!")
	until [ -s "$tmp/served.port" ] 2>/dev/null; do sleep 0.05; done
	forward=",guestfwd=tcp:169.254.169.254:80-cmd:socat STDIO TCP:127.0.0.1:$(cat "$tmp/served.port")"
}

try_direct() {
	case='initramfs, config drive'
	drive 11111111-0000-4000-8000-000000000001 web-1 <<'EOF'
#!/bin/bash
echo "ran as $(id -un)" >/tmp/ran
EOF
	boot "${direct[@]}" "${cdrom[@]}"
	if login; then
		said ready
		is hostname "$(on hostname)" web-1
		is 'user data ran' "$(on cat /tmp/ran)" 'ran as root'
		is 'injected file' "$(on cat /etc/injected)" 'a file of the request'
		is 'sudo without password' "$(on sudo -n id -u)" 0
		is 'strict shell' "$(on 'set -eu -o pipefail; PATH=$PATH:/sbin; id -un')" cirros
		is 'no root login' "$(as_root id; echo $?)" 255
		is 'config drive found by its label' "$(on 'd=$(blkid -L config-2 -o device) && sudo mount $d /mnt && sudo cat /mnt/openstack/latest/user_data | head -n 1; sudo umount /mnt')" '#!/bin/bash'
		is 'disks by lsblk' "$(on "lsblk -lb --nodeps | grep -c disk; sudo lsblk --fs --ascii | grep -c ^vda")" $'1\n1'
		is 'ping' "$(on 'ping -c1 -w2 -s56 127.0.0.1 >/dev/null && ping6 -c1 -w2 -s56 ::1 >/dev/null && echo yes')" yes
		is 'nc answers again and again' "$(on 'nc -p 7777 -lk -e echo foolish >/dev/null 2>&1 & sleep 1; for i in 1 2 3; do echo bar | nc -w 1 127.0.0.1 7777; done; kill $!')" $'foolish\nfoolish\nfoolish'
		is 'nc answers datagrams' "$(on 'nc -u -p 7778 -lk -e echo foolish >/dev/null 2>&1 & sleep 1; for i in 1 2; do echo bar | nc -w 1 -u 127.0.0.1 7778; sleep 1; done; kill $!')" $'foolish\nfoolish'
		is 'curl' "$(on 'curl -V | cut -d" " -f1 | head -n 1')" curl
		echo 'a file copied' >"$tmp/copied"
		timeout 60 scp -q -i "$tmp/id" -P "$port" "${to_guest[@]}" "$tmp/copied" cirros@127.0.0.1:
		is 'scp' "$(on cat copied)" 'a file copied'
		is 'dhcp client' "$(on 'sudo /bin/kill -USR1 $(cat /var/run/udhcpc.eth0.pid) && sleep 1; ip -o addr show eth0 | grep -c 169.254.169.15')" 1
		is 'IPv6 by itself' "$(on 'ip -o -6 addr show eth0 | grep -c "fec0::5054:ff:feaa:1/64"')" 1
		is 'console can be written' "$(on 'sudo sh -c "echo from inside >/dev/console"'; sleep 0.5; grep -c 'from inside' "$tmp/serial")" 1
		# A disk and an interface that come and go while the guest runs.
		qemu-img create -q -f qcow2 "$tmp/extra.qcow2" 64M
		qmp '{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"extra","file":{"driver":"file","filename":"'"$tmp"'/extra.qcow2"}}}' \
			'{"execute":"device_add","arguments":{"driver":"virtio-blk-pci","drive":"extra","id":"extra","bus":"late1"}}' \
			'{"execute":"netdev_add","arguments":{"type":"user","id":"n1","net":"10.77.0.0/24"}}' \
			'{"execute":"device_add","arguments":{"driver":"virtio-net-pci","netdev":"n1","id":"nic1","bus":"late2"}}'
		said 'dhcp 10.77.0.15/24 on eth1'
		is 'a disk that came late' "$(on 'sudo mke2fs -q -t ext4 /dev/vdb && sudo mount /dev/vdb /mnt && sudo sh -c "date > /mnt/timestamp; sync" && sudo test -s /mnt/timestamp && sudo umount /mnt && echo yes')" yes
		qmp '{"execute":"device_del","arguments":{"id":"nic1"}}'
		said 'eth1 is gone'
		local offered='publickey'
		if [ "$tempest" = 1 ]; then
			offered='publickey,password'
			is 'login by password' "$(with_password 'id -un; sudo id -un')" $'cirros\nroot'
		fi
		is 'ways to log in' "$(timeout 60 ssh -v -p "$port" "${to_guest[@]}" -o PreferredAuthentications=none cirros@127.0.0.1 true 2>&1 | sed -n 's/.*Authentications that can continue: //p' | tr -d '\r')" "$offered"
		power_button
	fi
}

try_disk() {
	local machine=(-machine pc)
	case='disk on the older machine, config drive'
	drive 11111111-0000-4000-8000-000000000002 db-1 <<'EOF'
#!/bin/sh
echo once >>/home/cirros/ran
EOF
	qemu-img create -q -f qcow2 -b "$(realpath "$out/disk.qcow2")" -F qcow2 "$tmp/root.qcow2" 1G
	root=(-drive "file=$tmp/root.qcow2,if=none,id=root,format=qcow2" -device virtio-blk-pci,drive=root,bootindex=1)
	boot "${root[@]}" "${cdrom[@]}"
	if login; then
		said ready
		is hostname "$(on hostname)" db-1
		is 'root fills the disk' "$(on 'df -m / | awk "END {print (\$2 > 900)}"')" 1
		host_key=$(on 'sudo cat /etc/dropbear/dropbear_ed25519_host_key | sha256sum')
		on 'echo mine >kept; sync; sudo reboot' 2>/dev/null
		t0=$(now)
		if login 2; then
			is 'files survive' "$(on cat kept)" mine
			is 'user data ran once' "$(on cat ran)" once
			is 'the host key stays' "$(on 'sudo cat /etc/dropbear/dropbear_ed25519_host_key | sha256sum')" "$host_key"
		fi
		power_button
	fi
	# The same disk under another instance's name is a copy: it must not keep the first one's identity.
	drive 11111111-0000-4000-8000-000000000003 db-2 </dev/null
	boot "${direct[@]}" "${root[@]}" "${cdrom[@]}"
	case='a copy of the disk, kernel and initramfs from outside'
	if login; then
		is hostname "$(on hostname)" db-2
		is 'another host key' "$([ "$(on 'sudo cat /etc/dropbear/dropbear_ed25519_host_key | sha256sum')" != "$host_key" ] && echo yes)" yes
		is 'the disk is the root' "$(on 'cat kept; df / | tail -n 1 | cut -d" " -f1')" $'mine\n/dev/vda2'
		power_button
	fi
}

try_openstack() {
	local password
	case='initramfs and a blank disk, OpenStack metadata'
	mkdir -p "$tmp/served"
	cat >"$tmp/served/user_data" <<'EOF'
#cloud-config
hostname: named-by-user-data
packages: [nginx]
password: 'it''s $ecret'
ssh_pwauth: true
write_files:
  - path: /opt/greeting
    permissions: '0640'
    content: |
      hello "you"
        \ and you
runcmd:
  - echo "first: $HOME" >/tmp/first
  - [sh, -c, "echo 'two words' >/tmp/second"]
EOF
	printf '{"uuid": "22222222-0000-4000-8000-000000000001", "hostname": "os-1.novalocal", "public_keys": {"k": "%s\\n"}}' "$key" >"$tmp/served/meta_data.json"
	serve openstack
	qemu-img create -q -f qcow2 "$tmp/blank.qcow2" 512M
	blank=(-drive "file=$tmp/blank.qcow2,if=none,id=root,format=qcow2" -device virtio-blk-pci,drive=root)
	boot "${direct[@]}" "${blank[@]}"
	if login; then
		said ready
		is hostname "$(on hostname)" named-by-user-data
		is write_files "$(on 'sudo cat /opt/greeting; sudo stat -c %a /opt/greeting')" $'hello "you"\n  \\ and you\n640'
		is runcmd "$(on cat /tmp/first /tmp/second)" $'first: /root\ntwo words'
		password="it's \\\$ecret"
		is 'login by the password asked for' "$(with_password id -un)" cirros
		said 'cloud-config: packages is not understood'
		on 'echo mine >kept; sync'
		power_button
		boot "${direct[@]}" "${blank[@]}"
		if login; then
			is 'files survive' "$(on 'cat kept; hostname')" $'mine\nnamed-by-user-data'
			power_button
		fi
	fi
	forward=
}

try_ec2() {
	case='initramfs, EC2 metadata with a session token'
	rm -rf "$tmp/served"
	mkdir -p "$tmp/served"
	printf '#!/bin/sh\necho ec2 >/tmp/ran\n' >"$tmp/served/user-data"
	echo "$key" >"$tmp/served/openssh-key"
	serve ec2
	boot "${direct[@]}"
	if login; then
		said ready
		is hostname "$(on hostname)" ip-10-0-0-9
		is 'user data ran' "$(on cat /tmp/ran)" ec2
		power_button
	fi
	forward=
}

try_static() {
	case='no DHCP: addresses from the config drive'
	drive 11111111-0000-4000-8000-000000000004 static-1 '{"links": [{"id": "l", "type": "bridge", "ethernet_mac_address": "52:54:00:AA:00:01", "mtu": 1442}],
 "networks": [{"id": "n", "type": "ipv4", "link": "l", "ip_address": "169.254.169.15", "netmask": "255.255.255.0", "network_id": "x",
   "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "169.254.169.2"}]},
  {"id": "n6", "type": "ipv6", "link": "l", "ip_address": "fd00::15", "netmask": "ffff:ffff:ffff:ffff::", "routes": []}],
 "services": [{"type": "dns", "address": "192.0.2.53"}]}' </dev/null
	boot "${direct[@]}" "${cdrom[@]}"
	if login; then
		is 'no client' "$(on 'pidof udhcpc')" ''
		is addresses "$(on "ip -o addr show eth0 | awk '{print \$4}' | grep -v -e ^fe80 -e ^fec0 | sort")" $'169.254.169.15/24\nfd00::15/64'
		is 'mtu, route, resolver' "$(on 'cat /sys/class/net/eth0/mtu; ip route | grep -c "^default via 169.254.169.2 "; cat /etc/resolv.conf')" $'1442\n1\nnameserver 192.0.2.53'
		power_button
	fi
}

cases=("${@:2}")
[ ${#cases[@]} -gt 0 ] || cases=(direct disk openstack ec2 static)
for name in "${cases[@]}"; do "try_$name"; done
if [ $failures = 0 ]; then echo 'all is well'; else echo "$failures failed"; exit 1; fi
