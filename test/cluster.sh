#!/bin/bash
# Three controllers and two hosts, each in a network namespace of its own: whoever is asked speaks for all, the sudden end of the
# one that leads costs seconds and nothing else, and without a majority nothing is written and reads say that they may be old.
PREFIX=${PREFIX:-ukc}
. "$(dirname "$0")/lib.sh"

net=${NET:-10.213.8} tag=$prefix dir=$work
. "$root/test/hosts.sh"
machines=(c1 c2 c3)

# controller M [OPTION…] runs one controller and waits until it serves.
controller() { launch "$@"; ready "$1" || fail "$1 is not ready"; }
kill9() { halt "$1" KILL || fail "$1 does not end"; }
load() { (inside out python3 -B "$root/test/cluster_load.py" "$auth" "$@"); }
leading() { led_by "${machines[@]}"; }
# next M is the controller after M, and so on around.
next() { echo "c$((${1#c} % 3 + 1))"; }
up() { status "$1" | jq -e '.Hosts | length == 2 and all(.Up)'; }
state() { [ "$(ask "$1" GET /compute/v2.1/servers/"$2" | jq -r .server.status)" = "$3" ]; }
sessions() { status "$1" | jq -c '[.Controllers[] | {(.Name): .Hosts}] | add'; }

# counted FILE ON wants each acknowledged network to be there once, on one controller.
counted() { accounted "$1" < <(ask "$2" GET '/network/v2.0/networks?fields=name' | jq -r '.networks[].name' | grep ^load); }

# hears writes down, in a line each, which alerts it is told of: event, rule, subject.
hears() {
	inside out python3 -B -c 'import http.server, json, socket, sys
class Ear(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(sys.argv[2], "a") as file: print(told["event"], told["rule"], told.get("subject", ""), file=file)
        self.send_response(204)
        self.end_headers()
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
Server((sys.argv[1], 9999), Ear).serve_forever()' "$(at out)" "$work/heard" &
	ear=$!
}

ending() {
	kill "${ear:-}" || true
	for m in a1 a2 c1 c2 c3; do halt $m & done
	wait
	for m in a1 a2; do clear_agent $m || true; done
	unwire
}

wire c1 c2 c3 a1 a2 out

# --- three become one
controller c1 --cluster
if (inside c2 timeout 20 "$unkai" controller --name x --address "$(at c2)" --data "$work/x" --listen "$(on c2 8700)" --insecure-plain-http --hosts "$(on c2 8702)" \
	--peers "$(on c2 8703)" --join "https://$(on c1 8702)" --token "$(token c1 host)") >"$work/refused" 2>&1; then
	fail "a host's token made a controller"
fi
grep -q 'does not make a controller' "$work/refused" || { cat "$work/refused" >&2; fail "it does not say why"; }
controller c2 --join "https://$(on c1 8702)" --token "$(token c1 controller)"
# The third is killed as soon as it was let in, and again and again until it has a vote.
launch c3 --join "https://$(on c1 8702)" --token "$(token c1 controller)"
until_ok 30 [ -e "$work/c3/member.json" ] || fail "c3 is not let in"
for wait in 0 0.05 0.1 0.2 0.4; do
	sleep $wait
	kill9 c3
	launch c3
done
ready c3 || fail "a controller that was killed as it joined does not come back"
until_ok 30 bash -c "'$unkai' status --data '$work/c3' --json | jq -e '[.Controllers[] | select(.Answers and (.Joining | not))] | length == 3'" || fail "the three do not find each other"
ok "three controllers, joined with one-time tokens, one of them killed as it did; a host's token is refused"

password=$(jq -r .Admin "$work/c2/secrets.json")
[ "$password" = "$(jq -r .Admin "$work/c1/secrets.json")" ] || fail "controllers have different first accounts"
auth=$(login c3)
[ -n "$auth" ] || fail "no token"
hears
"$unkai" alert add webhook ops "http://$(on out 9999)/" --data "$work/c1" >/dev/null || fail "nobody can be told"
admin=$(ask c2 GET '/identity/v3/projects?name=admin' | jq -r '.projects[0].id')
ask c2 PUT "/network/v2.0/quotas/$admin" -d '{"quota":{"network":-1}}' -f >/dev/null || fail "the quota cannot be lifted"
for i in $(seq 30); do
	m=c$((i % 3 + 1))
	id=$(ask $m POST /network/v2.0/networks -d '{"network":{"name":"seen-'"$i"'"}}' | jq -r .network.id)
	[ "$(ask "$(next $m)" GET "/network/v2.0/networks/$id" | jq -r .network.name)" = "seen-$i" ] || fail "what one controller acknowledged the next does not show"
	ask "$(next "$(next $m)")" DELETE "/network/v2.0/networks/$id"
	[ "$(ask $m GET "/network/v2.0/networks/$id" -o /dev/null -w '%{http_code}')" = 404 ] || fail "what one controller deleted another still shows"
done
[ "$(ask "$(next "$(leading)")" GET "/network/v2.0/security-groups?project_id=$admin" | jq '.security_groups | length')" -ge 1 ] || fail "a read that writes is not answered by a follower"
ok "what is written through one is read at once through each"

head -c 1048576 /dev/zero >"$work/blank"
image=$(image c3 blank "$work/blank" raw) || fail "no image"
for m in "${machines[@]}"; do
	until_ok 30 test "$(ask $m GET "/image/v2/images/$image/file" | sha256sum)" = "$(sha256sum <"$work/blank")" || fail "$m does not give the image"
done
until_ok 30 bash -c "ls $work/c1/images/*.blob $work/c2/images/*.blob $work/c3/images/*.blob" || fail "the image's bytes are not on each"
ok "an image sent to one is on all"

# --- hosts
for a in a1 a2; do launch $a --token "$(token c3 host)"; done
for a in a1 a2; do ready $a || fail "$a is not ready"; done
until_ok 30 up c1 || fail "the hosts are not up"
network=$(ask c1 GET '/network/v2.0/networks?name=private' | jq -r '.networks[0].id')
vm=$(ask c2 POST /compute/v2.1/servers -d '{"server":{"name":"vm","imageRef":"'"$image"'","flavorRef":"42","networks":[{"uuid":"'"$network"'"}]}}' | jq -r .server.id)
until_ok 90 state c3 "$vm" ACTIVE || fail "the server is not ACTIVE"
guest_pid=$(qemu "$vm") || fail "there is no QEMU"
for m in "${machines[@]}"; do
	until_ok 10 bash -c "$(declare -f ask inside url on at host ns); net=$net tag=$tag auth=$auth; ask $m POST /compute/v2.1/servers/$vm/action -f -d '{\"os-getConsoleOutput\":{\"length\":10}}'" ||
		fail "the console's log cannot be read through $m"
done
ok "hosts serve the cloud whichever controller they, and its clients, are with: sessions $(sessions c1)"

# --- the end of the one that leads: killed three times, and told to end
for signal in KILL KILL KILL TERM; do
	round=$((${round:-0} + 1))
	leader=$(leading) || fail "nobody leads"
	other=$(next "$leader")
	spared=$(status "$leader" | jq --arg l "$leader" '[.Controllers[] | select(.Name != $l) | .Hosts] | add')
	ended=$(cat "$work"/a?.log | grep -c 'no session with a controller' || true)
	load "load$round" 12 4 "$(url c1)" "$(url c2)" "$(url c3)" >"$work/load$round" &
	loading=$!
	sleep 4
	killed=$(date +%s%N)
	if [ $signal = KILL ]; then kill9 "$leader"; else halt "$leader" || fail "$leader does not end"; fi
	until_ok 30 bash -c "'$unkai' status --data '$work/$other' --json | jq -e '[.Controllers[] | select(.Name != \"$leader\") | .Hosts] | add == 2'" || fail "the hosts do not find another controller"
	back=$((($(date +%s%N) - killed) / 1000000))
	wait $loading || fail "the clients failed"
	gone=$(($(cat "$work"/a?.log | grep -c 'no session with a controller' || true) - ended))
	counted "$work/load$round" "$other"
	step "  SIG$signal of $leader: $(jq -r '"\(.acknowledged | length) acknowledged, tried again \(.tried_again), the longest silence \(.longest_silence_s) s"' "$work/load$round"); $spared of 2 hosts were with others, all were after $back ms"
	most=$([ $signal = KILL ] && echo 3 || echo 1)
	jq -e ".longest_silence_s < $most" "$work/load$round" >/dev/null || fail "it took too long until another led"
	[ "$spared" = 0 ] || [ "$gone" -lt 4 ] || fail "hosts of other controllers lost their sessions"
	until_ok 30 up "$other" || fail "the hosts are lost"
	[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest was restarted"
	ask "$other" POST "/compute/v2.1/servers/$vm/action" -d '{"pause":null}'
	until_ok 30 state "$other" "$vm" PAUSED || fail "the guest cannot be paused"
	ask "$other" POST "/compute/v2.1/servers/$vm/action" -d '{"unpause":null}'
	until_ok 30 state "$other" "$vm" ACTIVE || fail "the guest does not go on"
	controller "$leader"
	counted "$work/load$round" "$leader"
done
ok "the one that leads is killed, or ends: nothing acknowledged is lost, nothing made twice, the guest does not notice"

has=$(status c1 | jq -r '[.Controllers[] | select(.Hosts > 0)][0].Name')
other=$(next "$has")
killed=$(date +%s%N)
kill9 "$has"
until_ok 30 bash -c "'$unkai' status --data '$work/$other' --json | jq -e '[.Controllers[] | select(.Name != \"$has\") | .Hosts] | add == 2'" || fail "the hosts do not find another controller"
step "  kill -9 of $has, which had hosts: they were with others after $((($(date +%s%N) - killed) / 1000000)) ms"
up "$other" >/dev/null || fail "a host counted as lost"
[ "$(qemu "$vm")" = "$guest_pid" ] || fail "the guest was restarted"
controller "$has"
ok "a controller's end costs its hosts a moment, and other hosts nothing"

# --- in the middle of an upload, through one that follows
head -c 8000000 /dev/urandom >"$work/bytes"
for round in 1 2; do
	leader=$(leading)
	other=$(next "$leader")
	id=$(ask "$other" POST /image/v2/images -d '{"name":"half","disk_format":"raw","container_format":"bare"}' | jq -r .id)
	(inside out curl -sS --max-time 60 --limit-rate 2M -o "$work/answer" -w '%{http_code}' -T "$work/bytes" -H "X-Auth-Token: $auth" \
		-H 'Content-Type: application/octet-stream' "$(url "$other")/image/v2/images/$id/file") >"$work/code" 2>"$work/curl" &
	uploading=$!
	sleep 2
	kill9 "$leader"
	wait $uploading || true
	case "$(cat "$work/code")" in
	204) [ "$(ask "$other" GET "/image/v2/images/$id/file" | sha256sum)" = "$(sha256sum <"$work/bytes")" ] || fail "an upload that succeeded left other bytes" ;;
	503)
		grep -q 'may have been done, or not\|No controller leads' "$work/answer" || { cat "$work/answer" >&2; fail "a failed upload does not say what happened"; }
		until_ok 60 bash -c "$(declare -f ask inside url on at host ns); net=$net tag=$tag auth=$auth; [ \"\$(ask $other GET /image/v2/images/$id | jq -r .status)\" = queued ]" ||
			fail "an image whose upload failed is $(ask "$other" GET "/image/v2/images/$id" | jq -r .status)"
		(inside out curl -sS -f --max-time 60 -T "$work/bytes" -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$(url "$other")/image/v2/images/$id/file") ||
			fail "it cannot be uploaded again"
		;;
	*) cat "$work/answer" "$work/curl" >&2; fail "an upload whose leader died is answered $(cat "$work/code")" ;;
	esac
	step "  an upload whose leader died was answered $(cat "$work/code")"
	ask "$other" DELETE "/image/v2/images/$id"
	controller "$leader"
done
ok "an upload whose leader dies is done, or refused in words and can be made again"

# --- without a majority
keys=$(ask c1 POST "/identity/v3/users/$(ask c1 GET '/identity/v3/users?name=admin' | jq -r '.users[0].id')/credentials/OS-EC2" -d '{"tenant_id":"'"$admin"'"}' | jq -r '.credential | .access + ":" + .secret')
# signed MACHINE FORM [CURL-OPTION…] asks one controller as EC2's clients do.
signed() {
	local m=$1 form=$2; shift 2
	(inside out curl -sS --max-time 30 --aws-sigv4 aws:amz:RegionOne:ec2 --user "$keys" -d "$form&Version=2016-11-15" "$(url "$m")/ec2" "$@")
}
for m in "${machines[@]}"; do
	signed $m Action=DescribeInstances -D "$work/header" >"$work/instances"
	grep -q '<instanceId>i-' "$work/instances" || { cat "$work/instances" >&2; fail "$m does not tell EC2's clients of the instance"; }
	! grep -i '^Unkai-Stale' "$work/header" >&2 || fail "$m says that what all know may be old"
done
[ ! -e "$work/heard" ] || ! grep no-leader "$work/heard" >&2 || fail "that another leads is told as if none did"
leader=$(leading)
left=$(next "$leader")
gone=$(next "$left")
kill9 "$leader"
kill9 "$gone"
asking="$(declare -f ask inside url on at host ns); net=$net tag=$tag auth=$auth"
until_ok 20 bash -c "$asking; ask $left GET /network/v2.0/networks -D - -o /dev/null | grep -i '^Unkai-Stale: true' >/dev/null" ||
	fail "a read without a majority does not say that it may be old"
[ "$(ask "$left" GET '/network/v2.0/networks?name=private' | jq '.networks | length')" -gt 0 ] || fail "reads do not go on without a majority"
auth=$(login "$left" "$work/header")
[ -n "$auth" ] && grep -qi '^Unkai-Stale: true' "$work/header" || { cat "$work/header" >&2; fail "a login without a majority is not answered, or does not say what it goes by"; }
[ "$(ask "$left" GET '/network/v2.0/networks?name=private' | jq '.networks | length')" -gt 0 ] || fail "the token is good for nothing"
code=$(auth='' ask "$left" POST /identity/v3/auth/tokens -o /dev/null -w '%{http_code}' \
	-d '{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"wrong"}}}}}')
[ "$code" = 401 ] || fail "a wrong password without a majority is answered $code"
signed "$left" Action=DescribeInstances -D "$work/header" >"$work/instances" || fail "EC2's reads do not go on without a majority"
grep -q '<instanceId>i-' "$work/instances" && grep -qi '^Unkai-Stale: true' "$work/header" || { cat "$work/header" "$work/instances" >&2; fail "EC2's reads do not go on, or do not say that they may be old"; }
code=$(signed "$left" 'Action=CreateKeyPair&KeyName=alone' -o "$work/alone" -w '%{http_code}')
[ "$code" = 503 ] && grep -q 'No controller leads now' "$work/alone" || { cat "$work/alone" >&2; fail "EC2's write without a majority is answered $code"; }
code=$(ask "$left" POST /network/v2.0/networks -d '{"network":{"name":"alone"}}' -o "$work/alone" -w '%{http_code}')
[ "$code" = 503 ] || fail "a write without a majority is answered $code"
grep -q 'No controller leads now' "$work/alone" || { cat "$work/alone" >&2; fail "the refusal does not say why"; }
("$unkai" status --data "$work/$left" 2>&1 || true) | grep 'DOES NOT ANSWER' >/dev/null || fail "the status does not say who does not answer"
kill -0 "$guest_pid" || fail "the guest ended with the majority"
until_ok 90 grep -qx "raised no-leader $left" "$work/heard" || fail "nobody is told that no controller leads"
controller "$gone"
until_ok 30 bash -c "$asking; ask $left POST /network/v2.0/networks -d '{\"network\":{\"name\":\"again\"}}' -f" || fail "with a majority nothing is written"
controller "$leader"
[ "$(ask "$(next "$leader")" GET '/compute/v2.1/servers' -o /dev/null -w '%{http_code}')" = 200 ] || fail "a token that was made without a majority is none with one"
[ "$(ask "$leader" GET '/network/v2.0/networks?name=alone' | jq '.networks | length')" = 0 ] || fail "a refused write was done"
until_ok 60 grep -qx "resolved no-leader $left" "$work/heard" || fail "nobody is told that one leads again"
[ "$(grep -c no-leader "$work/heard")" = 2 ] || { cat "$work/heard" >&2; fail "it is told again, or by another"; }
ok "without a majority reads, logins and EC2's reads go on and say so, writes are refused, operators are told, and all comes back"

# --- one is lost for good, and another takes its place; the lost one's certificate opens nothing any more
leader=$(leading)
lost=$(next "$leader")
kill9 "$lost"
knock() {
	(inside "$lost" curl -sS --http1.1 --max-time 10 --cacert "$work/$lost/peer/authority.pem" --cert "$work/$lost/peer/pair.pem" -o /dev/null -w '%{http_code}' "$1") 2>&1 || true
}
[ "$(knock "https://$(on "$leader" 8702)/controller/v1/health")" = 200 ] || fail "a controller is not known to another"
knock "https://$(on "$leader" 8703)/version" | grep 200 >/dev/null || fail "a controller's share is not known to another's"
"$unkai" controller dismiss "$lost" --data "$work/$leader" >/dev/null || fail "a lost controller cannot be dismissed"
sleep 2
for m in "$leader" "$(next "$lost")"; do
	[ "$(knock "https://$(on "$m" 8702)/controller/v1/health")" = 401 ] || fail "a dismissed controller is let in at $m's port for hosts"
	knock "https://$(on "$m" 8703)/version" | grep '200$' >/dev/null && fail "a dismissed controller is let in at $m's port for controllers"
done
rm -rf "${work:?}/$lost"
controller "$lost" --join "https://$(on "$leader" 8702)" --token "$(token "$leader" controller)"
until_ok 30 bash -c "'$unkai' status --data '$work/$leader' --json | jq -e '[.Controllers[] | select(.Answers and (.Joining | not))] | length == 3'" || fail "there are not three controllers again"
left=$lost
ok "a controller that is lost for good is dismissed, shut out, and replaced"

# --- the end
until_ok 30 up "$left" || fail "the hosts are not up"
ask "$left" DELETE "/compute/v2.1/servers/$vm"
until_ok 60 bash -c "! kill -0 $guest_pid" || fail "QEMU does not end"
for m in "${machines[@]}"; do
	until_ok 60 "$unkai" audit --data "$work/$m" || { "$unkai" audit --data "$work/$m" >&2 || true; fail "the audit of $m found contradictions"; }
done
ok "the audit is clean on all three"
step "done"
echo "cluster: $passed passed, 0 failed"
