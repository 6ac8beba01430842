#!/bin/bash
# OpenStack's own integration suite, Debian's tempest, unmodified, against a cloud of simulated hosts.
#   test/tempest.sh smoke|all [--update] [identity|image|compute|network …]
# All four services unless some are named. smoke: the tests that tempest tags so; none may fail. all: everything tempest
# has for them; the failing ones must be those of test/tempest/failing.txt, and --update takes out what no longer fails.
simulated=yes
. "$(dirname "$0")/lib.sh"

usage() { sed -n '3s/^# *//p' "$0" >&2; exit 2; }
which=${1:-}
shift || usage
update=
[ "${1:-}" != --update ] || { update=--update; shift; }
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

start --sim 2
ok "the cloud is ready at $url"

(cd "$work" && tempest init --workspace-path "$work/workspaces" "$work/tempest") >"$work/init" 2>&1 || fail "tempest init: $(cat "$work/init")"
password=$(. "$data/openrc" && echo "$OS_PASSWORD")
extensions=$(os unkai extension list --network -f value -c Alias | paste -sd,)
sed -e "s|@WORK@|$work|;s|@AUTH_URL@|$url/identity/v3|;s|@PASSWORD@|$password|;s|@EXTENSIONS@|$extensions|" \
	-e "s|@IMAGE@|$(os unkai image show tiny -f value -c id)|;s|@IMAGE_ALT@|$(os unkai image show tiny-alt -f value -c id)|" \
	-e "s|@EXTERNAL@|$(os unkai network show public -f value -c id)|" "$root/test/tempest/tempest.conf" >"$work/tempest/etc/tempest.conf"

cd "$work/tempest"
tempest run --list-tests --regex "$tests" >"$work/tests"
# Most of the time tempest sleeps, before each delete of a subnet and between two looks at a server, so more workers
# than processors are of use.
code=0
tempest run --concurrency "${WORKERS:-8}" --regex "$tests" >"$work/run" 2>&1 || code=$?
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
