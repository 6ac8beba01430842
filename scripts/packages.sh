#!/bin/bash
# Installs the Debian or Ubuntu packages that are missing, and says which.
#   scripts/packages.sh run    what a host and the demo guest need
#   scripts/packages.sh test   that, and the stock clients and suites that judge us
set -eu

run="qemu-system-x86 qemu-utils seabios nftables iproute2 iputils-ping procps openssh-client e2fsprogs
     busybox-static cpio xz-utils curl ca-certificates git make"
test="$run python3-openstackclient awscli tempest jq genisoimage tmux tcpdump arping socat iperf3"

case "${1:-run}" in
run)  want=$run ;;
test) want=$test ;;
*)    echo "usage: $0 run|test" >&2; exit 2 ;;
esac

missing=
for p in $want; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $p"
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

# Go: Debian's own is too old. A newer one that is there is used; one of at least 1.21 fetches the right one by itself.
if ! command -v go >/dev/null && [ -x /usr/local/go/bin/go ]; then
	export PATH=$PATH:/usr/local/go/bin
fi
if ! command -v go >/dev/null; then
	echo "Go is missing: install Go 1.26 or newer from https://go.dev/dl/ to /usr/local/go" >&2
	exit 1
fi
