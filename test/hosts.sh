# Machines on one switch, for the scripts beside this file that need several: each is a network namespace with an address of
# its own, and what runs on it has its own directory. Source it with these set: tag (begins the namespaces' names), net (the
# first three bytes of every address, such as 10.213.8, or the beginning of IPv6 addresses up to the double colon without its
# second: fd13:8:), dir (where all of it is kept), prefix (of what agents make in the kernel; five letters at most), pool, unkai.
# Machines are called c1, c2, … (controllers, at .1, .2, …), a1, a2, … (hosts, at .11, .12, …), and out, where clients are. A
# second switch is the network outside: hosts and out are in it, so that floating addresses are reached from out, and guests
# reach out.

ns() { echo "$tag-$1"; }
inside() { local in=$1; shift; exec nsenter --net="/run/netns/$(ns "$in")" "$@"; }
at() {
	case $1 in
	c*) host "${1#c}" ;;
	a*) host "$((10 + ${1#a}))" ;;
	out) host 254 ;;
	esac
}
host() {
	case $net in
	*:) printf '%s:%x\n' "$net" "$1" ;; # fd13:8::b
	*) echo "$net.$1" ;;
	esac
}
# on MACHINE PORT is what one connects to.
on() {
	case $net in
	*:) echo "[$(at "$1")]:$2" ;;
	*) echo "$(at "$1"):$2" ;;
	esac
}
url() { echo "http://$(on "$1" 8700)"; }

# outside is the address of out in the network outside: it is that network's gateway.
outside() { echo "${pool%.*}.1"; }

# wire makes machines.
wire() {
	ip netns add "$(ns sw)"
	local m
	for m in sw world; do
		ip -n "$(ns sw)" link add name $m type bridge mcast_snooping 0
		ip -n "$(ns sw)" link set $m up
	done
	for m in "$@"; do
		ip netns add "$(ns "$m")"
		ip -n "$(ns "$m")" link set lo up
		plug "$m" sw up0 "$m"
		case $net in
		*:) ip -n "$(ns "$m")" addr add "$(at "$m")/64" dev up0 nodad ;;
		*) ip -n "$(ns "$m")" addr add "$(at "$m")/24" dev up0 ;;
		esac
		case $m in
		a*)
			# The operator's part: the bridge that an agent looks for has a member that leads out.
			ip -n "$(ns "$m")" link add name "$prefix${m#a}-public" type bridge mcast_snooping 0
			ip -n "$(ns "$m")" link set "$prefix${m#a}-public" up
			plug "$m" world wan "w$m"
			ip -n "$(ns "$m")" link set wan master "$prefix${m#a}-public"
			;;
		out)
			plug out world wan wout
			ip -n "$(ns out)" addr add "$(outside)/24" dev wan
			;;
		esac
	done
}
# plug MACHINE SWITCH DEVICE PORT connects a machine's device to a port of a switch.
plug() {
	ip link add "$3" netns "$(ns "$1")" type veth peer name "$4" netns "$(ns sw)"
	ip -n "$(ns sw)" link set "$4" master "$2" up
	ip -n "$(ns "$1")" link set "$3" up
}
unwire() {
	local n
	for n in $(ip netns list | awk '{print $1}' | grep "^$tag-" || true); do ip netns del "$n"; done
}

# launch runs a controller or an agent, which goes on when this script has ended. Options come after its name. With alone=yes a
# controller is told of no others, as releases want it that know of none.
launch() {
	local m=$1; shift
	: >"$dir/$m.out"
	case $m in
	c*)
		set -- controller --data "$dir/$m" --listen "$(on "$m" 8700)" --insecure-plain-http --hosts "$(on "$m" 8702)" --pool "$pool" "$@"
		[ -n "${alone:-}" ] || set -- "$@" --name "$m" --address "$(at "$m")" --peers "$(on "$m" 8703)"
		;;
	a*) set -- agent --name "$m" --data "$dir/$m" --join "https://$(on c1 8702)" --prefix "$prefix${m#a}" --pool "$pool" "$@" ;;
	esac
	(inside "$m" setsid "$unkai" "$@") </dev/null >"$dir/$m.out" 2>>"$dir/$m.log" &
	echo $! >"$dir/$m.pid"
	disown # how it ends is nothing to talk about
}
# ready waits until what was launched serves; it fails when that ends first, or takes too long.
ready() {
	local n
	for n in $(seq "${2:-600}"); do
		grep -q '^ready' "$dir/$1.out" && return
		[ -e "/proc/$(cat "$dir/$1.pid")" ] || break
		sleep 0.1
	done
	tail -n 5 "$dir/$1.log" >&2
	return 1
}
# alive prints the process of a machine, if it runs.
alive() (
	local pid
	exec 2>/dev/null # who has ended between two looks is no error
	pid=$(cat "$dir/$1.pid" 2>/dev/null) && tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -xF "$dir/$1" >/dev/null && echo "$pid"
)
# exited tells that a process has ended with all its threads: what it holds is held until the last of them has, and the first is a zombie before.
exited() {
	[ -e "/proc/$1" ] || return 0
	[ "$(cut -d' ' -f3 "/proc/$1/stat" 2>/dev/null)" = Z ] && [ "$(ls "/proc/$1/task" 2>/dev/null | wc -l)" -le 1 ]
}
# halt sends it a signal, and waits for its end.
halt() {
	local pid
	pid=$(alive "$1") || return 0
	kill "-${2:-TERM}" "$pid"
	for _ in $(seq 300); do
		! exited "$pid" || return 0
		sleep 0.05
	done
	return 1
}
# clear_agent takes away what an agent made on its machine: guests and networks.
clear_agent() {
	[ -e "$dir/$1" ] || return 0
	(inside "$1" "$unkai" down --data "$dir/$1" --prefix "$prefix${1#a}" --pool "$pool")
}

token() { "$unkai" controller token --data "$dir/$1" --for "$2" | tail -n 1; }
status() { "$unkai" status --data "$dir/$1" --json; }
# led_by names the controller that leads.
led_by() {
	local m
	for m in "$@"; do status "$m" 2>/dev/null | jq -e .Leads >/dev/null && { echo "$m"; return; }; done
	return 1
}
# login MACHINE [FILE] gets a token of the cloud's administrator from a controller; the answer's header goes to FILE.
login() {
	local body
	body='{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"'$(jq -r .Admin "$dir/$1/secrets.json")'"}}},
	"scope":{"project":{"name":"admin","domain":{"id":"default"}}}}}'
	(inside out curl -sS --max-time 20 -D - -o /dev/null -H 'Content-Type: application/json' "$(url "$1")/identity/v3/auth/tokens" -d "$body") |
		tee "${2:-/dev/null}" | tr -d '\r' | sed -n 's/^[Xx]-[Ss]ubject-[Tt]oken: //p'
}
# ask MACHINE METHOD PATH [CURL-OPTION…] asks one controller, as who has the token in $auth.
ask() {
	local m=$1 method=$2 path=$3; shift 3
	(inside out curl -sS --max-time 30 -X "$method" -H "X-Auth-Token: $auth" -H 'Content-Type: application/json' "$(url "$m")$path" "$@")
}
# image makes a public image of a file, through one controller; more properties may follow, as JSON: ,"name":"value".
image() {
	local m=$1 name=$2 file=$3 format=$4 more=${5:-} id container=bare
	case $format in aki | ari) container=$format ;; esac
	id=$(ask "$m" POST /image/v2/images -d '{"name":"'"$name"'","disk_format":"'"$format"'","container_format":"'$container'","visibility":"public"'"$more"'}' | jq -r .id)
	(inside out curl -sS -f --max-time 120 -T "$file" -H "X-Auth-Token: $auth" -H 'Content-Type: application/octet-stream' "$(url "$m")/image/v2/images/$id/file") || return
	echo "$id"
}
# quick makes an image of the guest that boots without a boot loader, which is quicker.
quick() {
	local kernel ramdisk
	kernel=$(image "$1" kernel "$guest/vmlinuz" aki) || return
	ramdisk=$(image "$1" ramdisk "$guest/initramfs.cpio.gz" ari) || return
	image "$1" quick "$guest/disk.qcow2" qcow2 ',"kernel_id":"'"$kernel"'","ramdisk_id":"'"$ramdisk"'","os_command_line":"'"$(jq -r .cmdline "$guest/manifest.json")"'"'
}
