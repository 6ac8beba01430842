#!/bin/bash
# Builds the demo guest from Debian's packages, without root, loop devices or mounts.
# README.md beside this file says what comes out and how to register it.
set -euo pipefail

usage() {
	cat <<-EOF
	usage: build.sh [--tempest] [--refresh] OUTDIR
	  --tempest   user cirros also has the password gocubsgo, on the console and over ssh;
	              never offer such an image to people
	  --refresh   fetch the package lists anew, so that security updates are seen
	OUTDIR gets vmlinuz, initramfs.cpio.gz, disk.qcow2 and manifest.json. Packages are kept in
	\${UNKAI_GUEST_CACHE:-~/.cache/unkai/guest}. What is up to date is not built again.
	EOF
}

tempest=0 refresh=0 out=
for arg; do
	case $arg in
	--tempest) tempest=1 ;;
	--refresh) refresh=1 ;;
	-h | --help) usage; exit 0 ;;
	-*) usage >&2; exit 2 ;;
	*) [ -z "$out" ] || { usage >&2; exit 2; }; out=$arg ;;
	esac
done
[ -n "$out" ] || { usage >&2; exit 2; }

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${UNKAI_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/unkai/guest}
export LC_ALL=C SOURCE_DATE_EPOCH=1700000000
umask 022

# What the guest has on board, and what builds it. Libraries follow from these.
packages=(busybox-static bash dropbear-bin openssh-sftp-server sudo libpam-modules util-linux mount e2fsprogs
	iproute2 iputils-ping netcat-traditional curl)
builders=(squashfs-tools syslinux syslinux-common mtools)
programs=(bash dropbear dropbearkey dbclient sudo lsblk blkid mount umount findmnt mke2fs mkfs.ext4
	e2fsck resize2fs ip ping nc.traditional curl)
# What a root file system may need before it can be read, and what can wait until it is.
early_modules=(virtio_pci virtio_net virtio_blk virtio_scsi virtio_rng virtio_console virtio_balloon
	sd_mod sr_mod ata_piix ata_generic nvme button evdev loop squashfs overlay)
modules=(isofs vfat nls_cp437 nls_iso8859_1 nls_ascii nls_utf8 fuse 8021q veth bridge tun ena vmxnet3)

# On the kernel's command line: nothing that waits, and little to print where a byte costs a trap.
quiet='quiet loglevel=3 cryptomgr.notests tsc=nowatchdog nowatchdog'
cmdline="console=tty0 console=ttyS0,115200 $quiet"

die() { echo "guest: $*" >&2; exit 1; }
note() { echo "guest: $*" >&2; }
for tool in apt-get apt-cache dpkg-deb sha256sum sha512sum gzip; do
	command -v $tool >/dev/null || die "$tool is missing: the guest is built from Debian's packages with it"
done
command -v qemu-img >/dev/null || die "qemu-img is missing: install qemu-utils"

mkdir -p "$out" "$cache/debs"
out=$(cd "$out" && pwd) cache=$(cd "$cache" && pwd)
exec 9>"$cache/lock"
flock 9

recipe=$({ echo "tempest=$tempest"; cd "$here"; sha256sum build.sh init $(find rootfs -type f | sort); } | sha256sum | cut -c1-32)
had() { sed -n "s/^  \"$1\": \"\(.*\)\",\$/\1/p" "$out/manifest.json" 2>/dev/null || true; }
complete() { [ -s "$out/vmlinuz" ] && [ -s "$out/initramfs.cpio.gz" ] && [ -s "$out/disk.qcow2" ]; }

# With the same recipe, and no package list newer than the last look, nothing can have changed.
lists=/var/lib/apt/lists
if ! ls $lists/*_Packages* >/dev/null 2>&1; then lists=$cache/apt/lists; fi
if [ $refresh = 0 ] && [ "$(had recipe)" = "$recipe" ] && complete &&
	[ -z "$(find $lists -newer "$out/manifest.json" -name '*_Packages*' 2>/dev/null | head -1)" ]; then
	note "$out is up to date"
	exit 0
fi

apt=(-qq -o Debug::NoLocking=1 -o APT::Sandbox::User= -o Dir::Cache="$cache/apt")
mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
if [ $refresh = 1 ] || [ $lists = "$cache/apt/lists" ]; then
	lists=$cache/apt/lists
	note "fetching the package lists"
	apt-get "${apt[@]}" -o Dir::State::Lists="$lists" update || note "the package lists cannot be fetched; going on with what is here"
fi
apt+=(-o Dir::State::Lists="$lists")

# wanted prints "file sha256 uri" of every package this guest is made of.
wanted() {
	local deps=(--recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances)
	local kernel libs
	kernel=$(apt-cache "${apt[@]}" depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p')
	[ -n "$kernel" ] || return 1
	libs=$(apt-cache "${apt[@]}" depends "${deps[@]}" "${packages[@]}" "${builders[@]}" |
		grep -E '^(lib[^ ]*|zlib1g)$' | grep -vE 'perl|newt|slang|text' | sort -u)
	# The names of libraries include virtual ones, which have no file: apt-get download refuses those alone.
	local known
	known=$(apt-cache "${apt[@]}" policy $libs | awk '/^[^ ]/ {name = $1; sub(/:$/, "", name)} /Candidate:/ && $2 != "(none)" {print name}')
	apt-get "${apt[@]}" download --print-uris "$kernel" "${packages[@]}" "${builders[@]}" $known |
		sed -n "s/^'\([^']*\)' \([^ ]*\) [0-9]* SHA256:\([0-9a-f]*\)\$/\2 \3 \1/p" | sort -u
}
if ! list=$(wanted) || [ -z "$list" ]; then
	if [ "$(had recipe)" = "$recipe" ] && complete; then
		note "no package lists here; keeping what $out has"
		exit 0
	fi
	die "apt knows no linux-image-cloud-amd64: this needs the package archive of Debian 12 or later (run apt-get update, or build.sh --refresh)"
fi
key=$(echo "$recipe $(echo "$list" | cut -d' ' -f1,2)" | sha256sum | cut -c1-32)
if [ "$(had key)" = "$key" ] && complete; then
	touch "$out/manifest.json"
	note "$out is up to date"
	exit 0
fi

debs=() missing=()
while read -r file sum uri; do
	deb=$cache/debs/$file
	if ! echo "$sum  $deb" | sha256sum -c --status 2>/dev/null; then
		missing+=("${file%%_*}=$(echo "$file" | cut -d_ -f2 | sed 's/%3a/:/g')")
	fi
	debs+=("$deb")
done <<<"$list"
if [ ${#missing[@]} -gt 0 ]; then
	note "downloading ${#missing[@]} packages"
	if ! (cd "$cache/debs" && apt-get "${apt[@]}" download "${missing[@]}"); then
		if [ "$(had recipe)" = "$recipe" ] && complete; then
			note "newer packages exist but cannot be downloaded; keeping what $out has"
			exit 0
		fi
		die "the packages cannot be downloaded"
	fi
	while read -r file sum uri; do
		echo "$sum  $cache/debs/$file" | sha256sum -c --status || die "$file is not what the package list promises"
	done <<<"$list"
fi

work=$(mktemp -d "$out/.build.XXXXXX")
trap 'rm -rf "$work"' EXIT
sys=$work/sys root=$work/root
mkdir -p "$sys" "$root"

note "unpacking ${#debs[@]} packages"
for deb in "${debs[@]}"; do dpkg-deb -x "$deb" "$sys"; done
arch=x86_64-linux-gnu
for loader in "$sys"{/usr,}/lib64/ld-linux-x86-64.so.2 "$sys"{/usr,}/lib/$arch/ld-linux-x86-64.so.2; do
	if [ -e "$loader" ]; then break; fi
done
loader=$(readlink -f "$loader")
libpath=$sys/lib/$arch:$sys/usr/lib/$arch:$sys/usr/libexec/sudo
found() {
	local dir
	for dir in usr/bin usr/sbin bin sbin; do
		if [ -x "$sys/$dir/$1" ]; then readlink -f "$sys/$dir/$1"; return; fi
	done
	die "no package has the program $1"
}
# borrowed runs a program of the unpacked packages with their own libraries, whatever this machine has.
borrowed() {
	local name=$1 program
	program=$(found "$name")
	shift
	"$loader" --library-path "$libpath" --argv0 "$name" "$program" "$@"
}
busybox=$(found busybox)
release=$(ls "$sys/lib/modules")

# --- the tree ---
# All directories of programs are one, so that no PATH misses any.
mkdir -p "$root"/{dev,etc/dropbear,home/cirros,mnt,proc,root,run,sys,tmp,usr/bin,usr/lib/$arch,usr/lib/security,usr/lib64,usr/libexec/sudo,var/lib/unkai,var/log,var/tmp}
ln -s usr/bin "$root/bin"
ln -s usr/bin "$root/sbin"
ln -s bin "$root/usr/sbin"
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
ln -s ../run "$root/var/run"
ln -s ../proc/mounts "$root/etc/mtab"
chmod 1777 "$root/tmp" "$root/var/tmp"
chmod 700 "$root/root" "$root/etc/dropbear"

cp "$busybox" "$root/usr/bin/busybox"
for applet in $("$busybox" --list); do
	[ "$applet" = busybox ] || ln -s busybox "$root/usr/bin/$applet"
done
for program in "${programs[@]}"; do
	file=$(found "$program")
	rm -f "$root/usr/bin/$program"
	cp "$file" "$root/usr/bin/$program"
done
# Busybox's shell runs its own applets whatever PATH says; people are to get the programs that they name.
ln -sf bash "$root/usr/bin/sh"
ln -sf ping "$root/usr/bin/ping4"
ln -sf ping "$root/usr/bin/ping6"
cp "$loader" "$root/usr/lib64/ld-linux-x86-64.so.2"
cp "$(find "$sys" -path '*/sudo/sudoers.so' -print -quit)" "$root/usr/libexec/sudo/"
cp "$(find "$sys" -name sftp-server -type f -print -quit)" "$root/usr/lib/"
for module in permit deny; do cp "$(find "$sys" -name pam_$module.so -print -quit)" "$root/usr/lib/security/"; done
chmod -R a+rX,u+w "$root/usr"
chmod 4755 "$root/usr/bin/sudo"

# Libraries: whatever the programs load, down to the last. A program without any is static.
for elf in "${programs[@]/#/$root/usr/bin/}" "$root"/usr/lib/sftp-server "$root"/usr/libexec/sudo/*.so "$root"/usr/lib/security/*.so; do
	"$loader" --library-path "$libpath" --list "$elf"
done >"$work/libs"
if grep 'not found' "$work/libs" >&2; then die 'the packages lack a library'; fi
awk '$2 == "=>" && $3 ~ /^\// {print $3}' "$work/libs" | sort -u | while read -r lib; do
	cp -L "$lib" "$root/usr/lib/$arch/"
done

cp -r --remove-destination "$here/rootfs/." "$root/"
cp "$sys/etc/mke2fs.conf" "$root/etc/"

# Kernel modules: those named above and what they need.
tree=lib/modules/$release
"$busybox" depmod -b "$sys" "$release"
# bring copies modules, and the modules that they need, into a tree.
bring() {
	local into=$1 module line path
	shift
	for module; do
		module=${module//_/[-_]}
		if line=$(grep -E "(^|/)$module\.ko:" "$sys/$tree/modules.dep"); then
			for path in ${line/:/}; do
				mkdir -p "$into/usr/$tree/$(dirname "$path")"
				cp "$sys/$tree/$path" "$into/usr/$tree/$path"
			done
		elif ! grep -qE "/$module\.ko$" "$sys/$tree/modules.builtin"; then
			die "the kernel has no module $module"
		fi
	done
	cp "$sys/$tree/modules.builtin" "$into/usr/$tree/"
	"$busybox" depmod -b "$into" "$release"
	rm -f "$into/usr/$tree/modules.symbols"
}
bring "$root" "${early_modules[@]}" "${modules[@]}"

hash='*'
if [ $tempest = 1 ]; then
	hash=$("$busybox" mkpasswd -m sha512 -S unkaiguest gocubsgo)
	: >"$root/var/lib/unkai/ssh-password"
fi
printf 'root:*:19000:0:99999:7:::\ncirros:%s:19000:0:99999:7:::\n' "$hash" >"$root/etc/shadow"
chmod 600 "$root/etc/shadow"
chmod 440 "$root/etc/sudoers"
find "$root" -depth -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +

# --- kernel and initramfs ---
cp "$sys/boot/vmlinuz-$release" "$work/vmlinuz"
# pack makes a cpio archive of the current directory, owned by root.
pack() { find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null | gzip -n -"$1"; }
# The initramfs holds little more than the way to the tree, and the tree itself as squashfs: it is read where
# it lies, compressed, and needs a third of the memory that its files would.
early=$work/early
mkdir -p "$early"/{dev,proc,sys,usr/bin}
ln -s usr/bin "$early/bin"
ln -s usr/lib "$early/lib"
cp "$here/init" "$early/init"
chmod 755 "$early/init"
cp "$busybox" "$early/usr/bin/busybox"
for applet in blockdev cat chroot dd echo findfs head mkdir modprobe mount printf sleep switch_root tr umount wc; do
	ln -s busybox "$early/usr/bin/$applet"
done
bring "$early" "${early_modules[@]}"
find "$early" -depth -exec touch -hd "@$SOURCE_DATE_EPOCH" {} +
(cd "$early" && pack 9) >"$work/initramfs"
mkdir "$work/image"
borrowed mksquashfs "$root" "$work/image/root.squashfs" -quiet -no-progress -all-root -noappend -comp zstd >/dev/null
# The kernel reads archives one after the other; this one would not shrink.
(cd "$work/image" && touch -d "@$SOURCE_DATE_EPOCH" . root.squashfs && pack 1) | cat "$work/initramfs" - >"$work/initramfs.cpio.gz"

# --- disk: a FAT partition with SYSLINUX and the kernel, an ext4 partition with the tree ---
# SYSLINUX, not GRUB: without KVM, GRUB moves the kernel to its place byte by byte and takes 5 s longer.
boot_start=2048 boot_mib=$((($(stat -c %s "$work/vmlinuz" "$work/initramfs" | paste -sd+)) / 1048576 + 2))
export MTOOLS_SKIP_CHECK=1 MTOOLSRC=/dev/null TZ=UTC0
fat=$work/boot.fat
truncate -s ${boot_mib}M "$fat"
borrowed mformat -i "$fat" -T $((boot_mib * 2048)) -h 64 -s 32 -H $boot_start -c 8 -N 756e6b61 -v UNKAI-BOOT ::
cat >"$work/syslinux.cfg" <<-EOF
	default guest
	prompt 0
	timeout 0
	label guest
	kernel /vmlinuz
	initrd /initramfs
	append root=LABEL=unkai-root $cmdline
EOF
for file in syslinux.cfg vmlinuz initramfs; do borrowed mcopy -i "$fat" "$work/$file" ::$file; done
# syslinux calls mtools by their names.
mkdir "$work/bin"
for program in mcopy mattrib mmove; do
	printf '#!/bin/sh\nexec "%s" --library-path "%s" --argv0 %s "%s" "$@"\n' "$loader" "$libpath" $program "$(found mtools)" >"$work/bin/$program"
	chmod +x "$work/bin/$program"
done
PATH=$work/bin:$PATH borrowed syslinux --install "$fat"

root_start=$((boot_start + boot_mib * 2048))
root_mib=$(($(du -sm "$root" | cut -f1) * 5 / 4 + 12))
truncate -s ${root_mib}M "$work/root.ext4"
MKE2FS_CONFIG=$sys/etc/mke2fs.conf borrowed mke2fs -q -t ext4 -m 1 -b 4096 -J size=4 -L unkai-root -U 756e6b61-6900-4000-8000-67756573740a \
	-E root_owner=0:0,hash_seed=756e6b61-6900-4000-8000-67756573740b,resize=64G -d "$root" "$work/root.ext4"
# mke2fs copies the owners from this machine; in the guest all belongs to root.
if [ "$(id -u)" != 0 ]; then
	(cd "$root" && find . -mindepth 1 -printf 'sif "%P" uid 0\nsif "%P" gid 0\n') >"$work/owners"
	borrowed debugfs -w -f "$work/owners" "$work/root.ext4" >/dev/null 2>"$work/debugfs" || { cat "$work/debugfs" >&2; die "debugfs failed"; }
fi

raw=$work/disk.raw
truncate -s $((1 + boot_mib + root_mib))M "$raw"
dd if="$sys/usr/lib/syslinux/mbr/mbr.bin" of="$raw" bs=440 count=1 conv=notrunc status=none
dd if="$fat" of="$raw" bs=1M seek=$((boot_start / 2048)) conv=notrunc,sparse status=none
dd if="$work/root.ext4" of="$raw" bs=1M seek=$((root_start / 2048)) conv=notrunc,sparse status=none
# le prints a number as four bytes, the least significant first. A partition's entry is: active or not, where it
# starts as cylinders could say it (they cannot), type, where it ends likewise, first sector, sectors.
le() { printf "$(printf '\\x%02x' $(($1 & 255)) $(($1 >> 8 & 255)) $(($1 >> 16 & 255)) $(($1 >> 24 & 255)))"; }
{
	printf '\x80\xfe\xff\xff\x0e\xfe\xff\xff'; le $boot_start; le $((boot_mib * 2048))
	printf '\x00\xfe\xff\xff\x83\xfe\xff\xff'; le $root_start; le $((root_mib * 2048))
} | dd of="$raw" bs=1 seek=446 conv=notrunc status=none
printf '\x55\xaa' | dd of="$raw" bs=1 seek=510 conv=notrunc status=none
qemu-img convert -q -f raw -O qcow2 -c "$raw" "$work/disk.qcow2"

# --- what it is ---
entry() { printf '    "%s": {"size": %d, "sha512": "%s"}' "$1" "$(stat -c %s "$work/$1")" "$(sha512sum <"$work/$1" | cut -d' ' -f1)"; }
{
	printf '{\n  "recipe": "%s",\n  "key": "%s",\n  "kernel": "%s",\n  "tempest": %s,\n' "$recipe" "$key" "$release" "$([ $tempest = 1 ] && echo true || echo false)"
	printf '  "cmdline": "%s",\n  "user": "cirros",\n  "disk_size": %d,\n  "files": {\n' "$cmdline" "$(stat -c %s "$raw")"
	entry vmlinuz; printf ',\n'
	entry initramfs.cpio.gz; printf ',\n'
	entry disk.qcow2; printf '\n  },\n  "packages": {\n'
	echo "$list" | sed -E 's/^([^_]*)_([^_]*)_.*/\1 \2/; s/%3a/:/g' | sort -u | sed -E 's/(.*) (.*)/    "\1": "\2",/; $ s/,$//'
	printf '  }\n}\n'
} >"$work/manifest.json"
rm -f "$out/manifest.json"
for file in vmlinuz initramfs.cpio.gz disk.qcow2 manifest.json; do mv -f "$work/$file" "$out/$file"; done
note "built in $out: $(cd "$out" && du -h --apparent-size vmlinuz initramfs.cpio.gz disk.qcow2 | awk '{printf "%s%s %s", sep, $2, $1; sep = ", "}')"
