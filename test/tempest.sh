#!/bin/bash
# OpenStack's own integration suite, Debian's tempest, unmodified.
#   test/tempest.sh smoke|all [--update] [--follower] [--only REGEX] [identity|image|compute|network …]
#   test/tempest.sh lab [--update] [REGEX]
# smoke and all: against a cloud of simulated hosts, all four services unless some are named. smoke: the tests that tempest tags so;
# none may fail. all: everything tempest has for them; the failing ones must be those of test/tempest/failing.txt, and --update takes
# out what no longer fails. --only: of these, those whose names match. --follower: there are three controllers, and every request goes to one that does not lead. It needs root,
# for network namespaces.
# lab: against three controllers and two hosts with real guests (test/lab.sh), which it speaks to by ssh: moving them, resizing them,
# and the scenarios that need neither volumes nor objects. The failing ones must be those of test/tempest/failing-lab.txt.
simulated=yes
which=${1:-}
[ "$which" != lab ] || PREFIX=${PREFIX:-ukb}
. "$(dirname "$0")/lib.sh"

usage() { sed -n '3,4s/^# *//p' "$0" >&2; exit 2; }
shift || usage
update= follower= only=
while :; do
	case ${1:-} in
	--update) update=--update ;;
	--follower) follower=yes ;;
	--only) only=${2:?}; shift ;;
	*) break ;;
	esac
	shift
done
more=/dev/null
case $which in
smoke | all)
	[ $# -gt 0 ] || set -- identity image compute network
	for service in "$@"; do
		case $service in identity | image | compute | network) ;; *) usage ;; esac
	done
	tests="^tempest\.api\.($(IFS='|'; echo "$*"))\."
	if [ "$which" = smoke ]; then tests+='.*\[.*\bsmoke\b'; known=(); else known=("$root/test/tempest/failing.txt" $update); fi
	[ -z "$only" ] || tests="(?=$tests)(?=.*(?:$only))"
	workers=${WORKERS:-8}
	;;
lab)
	tests=${1:-'^tempest\.(api\.compute\.admin\.test_(live_migration|live_migration_negative|migrations)\.|scenario\.test_(minimum_basic|network_advanced_server_ops|server_advanced_ops|server_basic_ops|server_multinode)\.)'}
	known=("$root/test/tempest/failing-lab.txt" $update)
	more=$root/test/tempest/lab.conf
	workers=${WORKERS:-2} # guests are emulated
	;;
*) usage ;;
esac

# run runs a command where the clients are.
run() { "$@"; }
if [ "$which" = lab ]; then
	run() { "$root/test/lab.sh" enter "$@"; }
	export LAB=$work/lab PREFIX=$prefix HOSTS=2 UNKAI=$unkai GUEST=$guest POOL=${POOL:-172.31.252.0/24} NET=${NET:-10.213.12}
	ending() { cp "$LAB"/*.log "$work/"; "$root/test/lab.sh" down; }
	"$root/guest/build.sh" "$guest" >/dev/null 2>&1 || fail "there is no guest's image"
	"$root/test/lab.sh" up >>"$work/log" 2>&1 || fail "the lab is not ready"
	data=$work/lab/c1 url=$(run sh -c 'echo $UNKAI_URL')
	# Two ways for a guest to boot, as there are two images.
	dir=$LAB tag=$prefix net=$NET pool=$POOL
	. "$root/test/hosts.sh"
	auth=$(login c1)
	image=$(quick c1) || fail "no image"
	other=$(ask c1 GET '/image/v2/images?name=guest' | jq -r '.images[0].id')
	external=$(ask c1 GET '/network/v2.0/networks?router:external=true' | jq -r '.networks[0].id')
	extensions=$(ask c1 GET /network/v2.0/extensions | jq -r '[.extensions[].alias] | join(",")')
else
	if [ -n "$follower" ]; then
		tag=tf-$$ net=10.213.9 dir=$work
		. "$root/test/hosts.sh"
		ending() {
			for m in c1 c2 c3; do halt $m; done
			unwire
		}
		wire c1 c2 c3 out
		launch c1 --cluster --sim 3
		ready c1 || fail "the first controller is not ready"
		for m in c2 c3; do
			launch $m --join "https://$(on c1 8702)" --token "$(token c1 controller)"
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
	image=$(os unkai image show tiny -f value -c id)
	other=$(os unkai image show tiny-alt -f value -c id)
	external=$(os unkai network show public -f value -c id)
	extensions=$(os unkai extension list --network -f value -c Alias | paste -sd,)
fi
ok "the cloud is ready at $url"

(cd "$work" && tempest init --workspace-path "$work/workspaces" "$work/tempest") >"$work/init" 2>&1 || fail "tempest init: $(cat "$work/init")"
password=$(. "$data/openrc" && echo "$OS_PASSWORD")
# What stands in two files holds as the second says.
cat "$root/test/tempest/tempest.conf" "$more" |
	sed -e "s|@WORK@|$work|;s|@AUTH_URL@|$url/identity/v3|;s|@PASSWORD@|$password|;s|@EXTENSIONS@|$extensions|" \
		-e "s|@IMAGE@|$image|;s|@IMAGE_ALT@|$other|;s|@EXTERNAL@|$external|" >"$work/tempest/etc/tempest.conf"

cd "$work/tempest"
run tempest run --list-tests --regex "$tests" >"$work/tests"
code=0
# Tests that put hosts into zones need hosts without servers. Later releases of the suite run them alone for that reason:
# https://docs.openstack.org/tempest/latest/serial_tests.html
alone='AggregatesAdminTestJSON\.'
combine=
: >"$work/run"
if grep -q "$alone" "$work/tests"; then
	run tempest run --serial --regex "(?=$tests)(?=.*$alone)" >>"$work/run" 2>&1 || code=$?
	combine=--combine
fi
# Most of the time tempest sleeps, before each delete of a subnet and between two looks at a server, so more workers
# than processors are of use.
if grep "^tempest\." "$work/tests" | grep -v "$alone" >/dev/null; then
	run tempest run $combine --concurrency "$workers" --regex "(?=$tests)(?!.*$alone)" >>"$work/run" 2>&1 || code=$?
fi
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
