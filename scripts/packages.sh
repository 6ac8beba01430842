#!/bin/bash
# Installs the Debian or Ubuntu packages that are missing, and says which.
#   scripts/packages.sh run    what a host and the demo guest need
#   scripts/packages.sh test   that, and the stock clients and suites that judge us
#   scripts/packages.sh gluster   what test/gluster.sh needs beside that
set -eu

run="qemu-system-x86 qemu-utils seabios nftables iproute2 iputils-ping procps openssh-client e2fsprogs
     busybox-static cpio xz-utils curl ca-certificates git make"
test="$run python3-openstackclient awscli tempest jq genisoimage tmux tcpdump arping socat iperf3"

case "${1:-run}" in
run)  want=$run ;;
test) want=$test ;;
gluster) want="glusterfs-server glusterfs-client" ;;
*)    echo "usage: $0 run|test|gluster" >&2; exit 2 ;;
esac

missing=
for p in $want; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep '^install ok installed' >/dev/null || missing="$missing $p"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "These packages are missing; install them as root: apt-get install$missing" >&2
		exit 1
	fi
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Go: Debian 12's own is too old to build this. One of at least 1.21 fetches what it needs by itself; where there is
# none, the toolchain comes from the module proxy, as it would then, and is checked before it is unpacked.
export PATH=/usr/local/go/bin:$PATH
case "$(go env GOVERSION 2>/dev/null || true)" in
go1.2[1-9]* | go1.[3-9][0-9]*) exit 0 ;;
esac
version=1.26.8
case "$(uname -m)" in
x86_64)  arch=amd64 sum=30c2b1bf7dcc88d3eb0a1364e47ddd9128edb3110a30e8a0ef61cd5856b31de7 ;;
aarch64) arch=arm64 sum=02b36b6787b3ac767668f630e2998df45a3b1f9ffee08d1bf3ef6487cd658d99 ;;
*) echo "Install Go $version or newer to /usr/local/go: there is no known toolchain for $(uname -m)" >&2; exit 1 ;;
esac
if [ -e /usr/local/go ]; then
	echo "/usr/local/go is older than Go 1.21; put a newer one in its place: https://go.dev/dl/" >&2
	exit 1
fi
if [ "$(id -u)" != 0 ]; then
	echo "Go is missing; install Go $version or newer, or run this as root" >&2
	exit 1
fi
echo "installing: go $version"
proxy=${GOPROXY:-https://proxy.golang.org}
proxy=${proxy%%[,|]*}
work=$(mktemp -d /usr/local/go-XXXXXX)
trap 'rm -rf "$work"' EXIT
curl -fsSL --retry 3 -o "$work/go.zip" "${proxy%/}/golang.org/toolchain/@v/v0.0.1-go$version.linux-$arch.zip"
echo "$sum  $work/go.zip" | sha256sum -c --quiet
(cd "$work" && busybox unzip -q go.zip)
go=$work/golang.org/toolchain@v0.0.1-go$version.linux-$arch
# A module's zip keeps neither the permissions nor the go.mod files of what is inside.
chmod -R u+rwX,go+rX "$go"
chmod +x "$go"/bin/* "$go"/pkg/tool/*/*
find "$go" -name _go.mod -execdir mv {} go.mod \;
mv "$go" /usr/local/go
go version
