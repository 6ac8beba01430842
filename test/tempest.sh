#!/bin/bash
# OpenStack's own integration suite, Debian's tempest, unmodified, against a cloud of simulated hosts.
#   test/tempest.sh smoke|all [--update] [--follower] [identity|image|compute|network …]
# All four services unless some are named. smoke: the tests that tempest tags so; none may fail. all: everything tempest
# has for them; the failing ones must be those of test/tempest/failing.txt, and --update takes out what no longer fails.
# --follower: there are three controllers, and every request goes to one that does not lead. It needs root, for network namespaces.
simulated=yes
. "$(dirname "$0")/lib.sh"

usage() { sed -n '3s/^# *//p' "$0" >&2; exit 2; }
which=${1:-}
shift || usage
update= follower=
while :; do
	case ${1:-} in
	--update) update=--update ;;
	--follower) follower=yes ;;
	*) break ;;
	esac
	shift
done
[ $# -gt 0 ] || set -- identity image compute network
for service in "$@"; do
	case $service in identity | image | compute | network) ;; *) usage ;; esac
done
tests="^tempest\.api\.($(IFS='|'; echo "$*"))\."
case $which in
smoke) tests+='.*\[.*\bsmoke\b'; known=() ;;
all) known=("$root/test/tempest/failing.txt" $update) ;;
*) usage ;;
esac

run() { "$@"; }
if [ -n "$follower" ]; then
	tag=tf-$$ net=10.213.9 dir=$work
	. "$root/test/hosts.sh"
	finish() { # as in lib.sh, of three
		local code=$?
		for m in c1 c2 c3; do halt $m || true; done
		unwire
		if [ $code = 0 ]; then rm -rf "$work"; else echo "kept: $work" >&2; fi
		exit $code
	}
	wire c1 c2 c3 out
	launch c1 --cluster --sim 3
	ready c1 || fail "the first controller is not ready"
	for m in c2 c3; do
		launch $m --join "https://$(at c1):8702" --token "$(token c1 controller)"
		ready $m || fail "controller $m is not ready"
	done
	follows() { [ "$(led_by c1 c2 c3)" = c1 ] || fail "c1 does not lead any more"; }
	follows
	data=$dir/c2 url=$(url c2)
	run() { (inside out "$@"); }
	os() { local who=$1; shift; run env OS_CLIENT_CONFIG_FILE="$data/clouds.yaml" OS_CLOUD="$who" openstack "$@"; }
	stop() { follows; }
else
	start --sim 2
fi
ok "the cloud is ready at $url"

(cd "$work" && tempest init --workspace-path "$work/workspaces" "$work/tempest") >"$work/init" 2>&1 || fail "tempest init: $(cat "$work/init")"
password=$(. "$data/openrc" && echo "$OS_PASSWORD")
extensions=$(os unkai extension list --network -f value -c Alias | paste -sd,)
sed -e "s|@WORK@|$work|;s|@AUTH_URL@|$url/identity/v3|;s|@PASSWORD@|$password|;s|@EXTENSIONS@|$extensions|" \
	-e "s|@IMAGE@|$(os unkai image show tiny -f value -c id)|;s|@IMAGE_ALT@|$(os unkai image show tiny-alt -f value -c id)|" \
	-e "s|@EXTERNAL@|$(os unkai network show public -f value -c id)|" "$root/test/tempest/tempest.conf" >"$work/tempest/etc/tempest.conf"

cd "$work/tempest"
run tempest run --list-tests --regex "$tests" >"$work/tests"
# Most of the time tempest sleeps, before each delete of a subnet and between two looks at a server, so more workers
# than processors are of use.
code=0
run tempest run --concurrency "${WORKERS:-8}" --regex "$tests" >"$work/run" 2>&1 || code=$?
stestr last --subunit | subunit2csv --no-passthrough >"$work/results" || true
cd "$root"
[ "$(wc -l <"$work/results")" -gt 1 ] || { tail -n 40 "$work/run" >&2; fail "tempest ended with $code and without results"; }
ok "tempest came to its end"
audit
ok "the audit is clean"
stop

if ! python3 -B test/tempest/judge.py "$work/tests" "$work/results" "${known[@]}"; then
	echo "what each test said: $work/run; every request it made: $work/tempest/tempest.log" >&2
	exit 1
fi
