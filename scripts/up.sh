#!/bin/bash
# make up: builds, starts a cloud on this machine and boots a first server in it. The cloud goes
# on in the background; `make down` ends it.
set -eu
data=$1 guest=$2
began=$SECONDS
say() { printf '%6ds  %s\n' $((SECONDS - began)) "$*"; }

if [ "$(id -u)" != 0 ]; then echo "make up needs root: it makes namespaces, bridges and guests" >&2; exit 1; fi
say "building bin/unkai"
make --no-print-directory build
bin/unkai doctor || true
if [ ! -e "$guest/manifest.json" ]; then say "building the demo guest from Debian's packages (once)"; fi
guest/build.sh "$guest"

mkdir -p "$data"
if bin/unkai status --data "$data" --json >/dev/null 2>&1; then
	say "a cloud runs already in $data"
	bin/unkai status --data "$data" || true # whatever needs somebody, it runs
	exit 0
fi
say "starting the cloud"
log=$data/unkai.log
setsid bin/unkai up --data "$data" --guest "$guest" --demo </dev/null >"$data/up.out" 2>>"$log" &
pid=$!
echo $pid >"$data/unkai.pid"

# Show what it says until the table's last line, or until it ends.
shown=0
while :; do
	lines=$(wc -l <"$data/up.out")
	if [ "$lines" -gt "$shown" ]; then
		sed -n "$((shown + 1)),${lines}p" "$data/up.out"
		shown=$lines
	fi
	if grep -q '^  operator ' "$data/up.out"; then break; fi
	if ! kill -0 $pid 2>/dev/null; then
		sed -n "$((shown + 1)),\$p" "$data/up.out"
		echo "the cloud ended; the end of $log:" >&2
		tail -n 15 "$log" >&2
		exit 1
	fi
	sleep 0.2
done
say "done; the log is $log, make down ends it"
