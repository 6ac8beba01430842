#!/bin/bash
# make down: ends the cloud that make up left running in the background, then takes away what it left on this machine.
set -eu
data=$1
pid=$(cat "$data/unkai.pid" 2>/dev/null || true)
if [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -F "up --data $data " >/dev/null; then
	kill -TERM "$pid"
	for _ in $(seq 300); do
		[ -e "/proc/$pid" ] || break
		sleep 0.1
	done
fi
exec bin/unkai down --data "$data"
