#!/bin/bash
# Shared storage on a real network file system: a GlusterFS volume of one brick, served in a network namespace by processes of this
# script's own, and mounted by FUSE once for each of two hosts.
#
#   gluster.sh              what two clients see of each other's claims, and what move.sh does with shared disks
#   gluster.sh COMMAND…     a command with SHARED_A and SHARED_B, where it is mounted, the process IDs BRICK, CLIENT_A and
#                           CLIENT_B, and its command line, GLUSTER
#
# It needs the packages glusterfs-server and glusterfs-client (scripts/packages.sh gluster), and none of their services.
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin LC_ALL=C.UTF-8
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
for program in glusterd glusterfs gluster; do
	command -v $program >/dev/null || { echo "there is no $program: scripts/packages.sh gluster" >&2; exit 1; }
done
[ -c /dev/fuse ] || { echo "there is no /dev/fuse" >&2; exit 1; }

prefix=${PREFIX:-ukf}
net=${GLUSTER_NET:-10.213.78}
ns=gl-$$ link=gl$$
work=$(mktemp -d /tmp/unkai-gluster-XXXXXX)
daemon=
cli() { ip netns exec "$ns" gluster --mode=script --glusterd-sock="$work/glusterd.sock" "$@"; }
brick() { cat "$work"/run/vols/v/*.pid; }
finish() {
	local code=$?
	trap - EXIT
	set +e
	kill -CONT "$(brick)" # a command may have stopped it
	for at in a b; do umount "$work/$at" || umount -l "$work/$at"; done
	cli volume stop v force >/dev/null || kill -KILL "$(brick)"
	[ -z "$daemon" ] || { kill "$daemon"; wait "$daemon"; }
	ip netns del "$ns"
	if [ $code = 0 ]; then rm -rf "$work"; else echo "kept: $work" >&2; fi
	exit $code
}
trap finish EXIT
trap 'exit 143' TERM INT

mkdir "$work"/{var,log,brick,run,a,b}
ip netns add "$ns"
ip link add "$link" type veth peer name eth0 netns "$ns"
ip addr add "$net.1/24" dev "$link"
ip link set "$link" up
ip -n "$ns" link set lo up
ip -n "$ns" addr add "$net.2/24" dev eth0
ip -n "$ns" link set eth0 up
cat >"$work/glusterd.vol" <<END
volume management
    type mgmt/glusterd
    option working-directory $work/var
    option run-directory $work/run
    option glusterd-sockfile $work/glusterd.sock
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address $net.2
    option transport.socket.listen-port 24007
    option max-port 60999
end-volume
END
ip netns exec "$ns" glusterd -N -f "$work/glusterd.vol" -p "$work/glusterd.pid" -l "$work/log/glusterd.log" </dev/null >"$work/log/out" 2>&1 &
daemon=$!
for _ in $(seq 100); do cli volume list >/dev/null 2>&1 && break; sleep 0.1; done
cli volume create v "$net.2:$work/brick" force >/dev/null
cli volume set v client.strict-locks on >/dev/null
cli volume start v >/dev/null
for at in a b; do
	glusterfs --volfile-server="$net.2" --volfile-id=v -l "$work/log/$at.log" -p "$work/$at.pid" "$work/$at"
	mountpoint -q "$work/$at" || { tail -n 5 "$work/log/$at.log" >&2; exit 1; }
done
BRICK=$(brick) CLIENT_A=$(cat "$work/a.pid") CLIENT_B=$(cat "$work/b.pid")
GLUSTER="ip netns exec $ns gluster --mode=script --glusterd-sock=$work/glusterd.sock"
export GLUSTER BRICK CLIENT_A CLIENT_B SHARED_A=$work/a SHARED_B=$work/b PREFIX=$prefix

if [ $# -gt 0 ]; then "$@"; exit; fi
(cd "$root" && go test ./driver/qemu -run '^TestClients' -count 1)
"$root/test/move.sh"
