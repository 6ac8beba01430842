# For the whole-cloud scripts beside this file: a cloud of its own in the kernel and on disk, stock
# clients, and an end that leaves nothing. Source it; with simulated=yes before that, the cloud's hosts are simulated, and
# nothing in the kernel is touched.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin LC_ALL=C.UTF-8
unset AWS_CA_BUNDLE http_proxy https_proxy PYTHONDONTWRITEBYTECODE || true

unkai=${UNKAI:-$root/bin/unkai}
guest=${GUEST:-/var/cache/unkai/guest}
work=$(mktemp -d /tmp/unkai-test-XXXXXX)
data=$work/data
prefix=${PREFIX:-ukt}
pool=${POOL:-172.31.255.0/24}
pid=
passed=0
began=$SECONDS

step() { printf '%5ds  %s\n' $((SECONDS - began)) "$*"; }
fail() {
	echo "FAILED: $*" >&2
	echo "--- the end of the log:" >&2
	tail -n 40 "$work/log" >&2 2>/dev/null || true
	exit 1
}
ok() { passed=$((passed + 1)); step "ok: $*"; }

# start [OPTION…] runs the cloud and waits until it is ready.
start() {
	: >"$work/out"
	"$unkai" up --data "$data" --listen 127.0.0.1:0 --prefix "$prefix" --pool "$pool" "$@" </dev/null >"$work/out" 2>>"$work/log" &
	pid=$!
	for _ in $(seq 300); do
		if url=$(sed -n 's/^ready //p' "$work/out") && [ -n "$url" ]; then return; fi
		kill -0 $pid 2>/dev/null || fail "the cloud ended before it was ready"
		sleep 0.1
	done
	fail "the cloud was not ready after 30 s"
}

# crash kills the cloud's process as nothing else would.
crash() { kill -9 $pid; wait $pid 2>/dev/null || true; pid=; }

stop() {
	[ -n "$pid" ] || return 0
	kill -TERM $pid 2>/dev/null || true
	wait $pid 2>/dev/null || true
	pid=
}

# ending takes away what the script made. A script that makes more than start does has one of its own.
ending() {
	stop
	[ -n "${simulated:-}" ] || "$unkai" down --data "$data" --prefix "$prefix" --pool "$pool" --purge
}
finish() {
	local code=$? log
	trap - EXIT
	set +e
	ending >>"$work/log" 2>&1
	if [ $code = 0 ]; then rm -rf "$work"; else
		for log in "$work"/*.log; do [ ! -e "$log" ] || { echo "--- $log"; grep -v etcd: "$log" | tail -n 12 | cut -c1-500; } >&2; done
		echo "kept: $work" >&2
	fi
	exit $code
}
trap finish EXIT
trap 'exit 143' TERM INT

# os NAME ARGUMENT… is the openstack client as the user NAME of clouds.yaml.
os() { local who=$1; shift; OS_CLIENT_CONFIG_FILE=$data/clouds.yaml OS_CLOUD=$who openstack "$@"; }
ec2() { (. "$data/aws.env"; aws --endpoint-url "$url/ec2" --output text ec2 "$@"); }

audit() {
	"$unkai" audit --data "$data" >"$work/audit" 2>&1 || { cat "$work/audit" >&2; fail "the audit found contradictions"; }
}

# until SECONDS COMMAND… repeats a command until it succeeds.
until_ok() {
	local end=$((SECONDS + $1)); shift
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.5
	done
}

sshto() {
	local address=$1; shift
	# A guest that is power-cycled under a connection never says so.
	ssh -n -i "$work/key" -o BatchMode=yes -o ConnectTimeout=5 -o ServerAliveInterval=3 -o ServerAliveCountMax=3 -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
		-o LogLevel=ERROR "cirros@$address" "$@"
}

# accounted FILE holds the names on its input against those that clients say were acknowledged (of this run; what an earlier one
# made stays): each is there, and once.
accounted() {
	local wrong
	sort >"$work/have"
	jq -r '.acknowledged[]' "$1" | sort >"$work/want"
	[ -s "$work/want" ] || fail "nothing was acknowledged"
	wrong=$(comm -23 "$work/want" "$work/have")
	[ -z "$wrong" ] || fail "acknowledged and lost: $(wc -l <<<"$wrong"), such as $(head -n 1 <<<"$wrong")"
	wrong=$(uniq -d "$work/have")
	[ -z "$wrong" ] || fail "made twice: $(wc -l <<<"$wrong"), such as $(head -n 1 <<<"$wrong")"
}

# admin_token SECRETS URL CURL… prints a token of the administrator whose password is in a file, asked for by a command that is curl.
admin_token() {
	local password=$1 url=$2 body
	shift 2
	body='{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"'"$(jq -r .Admin "$password")"'"}}},
	"scope":{"project":{"name":"admin","domain":{"id":"default"}}}}}'
	("$@" -sS -D - -o /dev/null -H 'Content-Type: application/json' "$url/identity/v3/auth/tokens" -d "$body") | tr -d '\r' | sed -n 's/^[Xx]-[Ss]ubject-[Tt]oken: //p'
}
# qemu TEXT prints the process of a guest whose command line has the text.
qemu() { pgrep -f "^[^ ]*qemu-system.*$1" | head -n 1; }
