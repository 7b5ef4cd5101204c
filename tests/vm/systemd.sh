#!/usr/bin/env bash
# Boots a Debian with systemd as process 1, Docker as Debian sets it up (cgroup2, driver systemd) and the worker as its unit has it,
# and runs tests/vm/systemd/proof in there. Takes root for debootstrap, the first time some minutes, and no other rights.
#
#   VM_SUITE     bookworm (Docker 20.10) or trixie (26.1)
#   VM_ACCEL, VM_CPUS, VM_KERNEL, VM_TIMEOUT as in tests/vm/run.sh
#
# What is fetched stays in .windlass/vm/, and so does the console's log. Exit status: 0 passed, 1 failed.
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
here=$top/tests/vm
work=$top/.windlass/vm
mkdir -p "$work"
. "$here/machine.sh"

suite=${VM_SUITE:-bookworm}
disk=$work/$suite.ext4
packages="systemd,systemd-sysv,dbus,udev,kmod,iproute2,procps,ca-certificates,curl,jq,docker.io,containerd,runc,iptables,tini"

# Debian's own root as a disk, made once; it is never written to.
base() {
  if [ -s "$disk" ]; then return; fi
  local root=$work/$suite.root
  [ "$(id -u)" = 0 ] || skip "debootstrap takes root"
  say "making a $suite"
  rm -rf "$root"
  debootstrap --variant=minbase --include="$packages" "$suite" "$root" >"$work/$suite.debootstrap" 2>&1 ||
    { rm -rf "$root"; skip "debootstrap cannot make $suite; see $work/$suite.debootstrap"; }
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc
  : >"$root/etc/machine-id"
  mke2fs -q -t ext4 -d "$root" "$disk.new" 3G >/dev/null
  mv "$disk.new" "$disk"
  rm -rf "$root"
}

# What is tested, as files over Debian's.
payload() {
  local root=$scratch/payload tree=$work/kernel-$(basename "$image" .deb) version file
  mkdir -p "$root"/{usr/bin,usr/lib/modules,etc/systemd/system/multi-user.target.wants,etc/default,var/lib} "$scratch/image/bin" "$scratch/image/tmp"
  chmod 755 "$root"
  strip --strip-debug -o "$scratch/windlass" "$worker"
  BINARY=$scratch/windlass PREFIX=/usr DESTDIR=$root deploy/install.sh install
  install -m 755 "$nats" "$root/usr/bin/nats-server"
  install -m 755 "$here/systemd/proof" "$root/usr/bin/windlass-proof"
  version=$(basename "$tree"/lib/modules/*)
  for file in "$tree/lib/modules/$version"/modules.{builtin,builtin.modinfo,order}; do install -D -m 644 "$file" "$root/usr/lib/modules/$version/$(basename "$file")"; done
  for file in "${engine_modules[@]}"; do install -D -m 644 "$file" "$root/usr/lib/modules/$version/${file#*/lib/modules/"$version"/}"; done
  depmod -b "$root/usr" "$version"
  printf '%s\n' "WINDLASS__DOCKER__IMAGES='[\"*\"]'" WINDLASS__LEASE__ACK_WAIT_S=10 \
    WINDLASS__STREAMS__LOGS_MAX=256MiB WINDLASS__CLASSES__CPU_LONG__MEMORY=256MiB WINDLASS__CLASSES__CPU_LONG__CPUS=1 \
    WINDLASS__DOCKER__REQUEST_TIMEOUT_S=120 >"$root/etc/default/windlass-worker"
  printf '%s\n' '[Service]' 'ExecStart=/usr/bin/nats-server -a 127.0.0.1 -js -sd /var/lib/nats' >"$root/etc/systemd/system/nats.service"
  printf '%s\n' '[Unit]' 'After=docker.service nats.service' '[Service]' 'Type=oneshot' 'ExecStart=/usr/bin/windlass-proof' 'StandardOutput=tty' \
    'StandardError=tty' 'TTYPath=/dev/ttyS0' 'TimeoutStartSec=infinity' >"$root/etc/systemd/system/windlass-proof.service"
  ln -s /dev/null "$root/etc/systemd/system/serial-getty@ttyS0.service"
  ln -s ../nats.service ../windlass-proof.service "$root/etc/systemd/system/multi-user.target.wants/"
  install -m 755 "$(type -P busybox)" "$scratch/image/bin/busybox"
  busybox --list | grep -vx busybox | while read -r file; do ln -s busybox "$scratch/image/bin/$file"; done
  chmod 1777 "$scratch/image/tmp"
  tar -C "$scratch/image" --owner=0 --group=0 -cf "$root/var/lib/image.tar" .
  mke2fs -q -t ext4 -d "$root" -E root_owner=0:0 "$work/payload.ext4" 512M >/dev/null
}

initramfs() {
  local root=$scratch/initramfs file
  mkdir -p "$root/bin" "$root/modules"
  install -m 755 "$(type -P busybox)" "$root/bin/busybox"
  install -m 755 "$here/systemd/init" "$root/init"
  for file in "${modules[@]}"; do unpacked "$file" >"$root/modules/$(basename "$file" | sed 's/\.ko.*/.ko/')"; done
  (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/systemd.cpio"
}

needed qemu-system-x86_64:qemu-system-x86 cpio:cpio busybox:busybox-static debootstrap:debootstrap mke2fs:e2fsprogs depmod:kmod strip:binutils
build
nats=${WINDLASS_TEST_NATS_SERVER:-$(deploy/fetch-nats.sh)}
image=${VM_KERNEL:-}
if [ -z "$image" ]; then image=$(fetch_kernel); fi
if [ -z "$image" ]; then exit 0; fi
base
if [ ! -s "$disk" ]; then exit 0; fi
unpack_kernel "$image"
find_engine_modules "$image"
scratch=$(mktemp -d "$work/systemd.XXXXXX")
trap 'rm -rf "$scratch" "$work/payload.ext4" "$work/systemd.cpio"' EXIT
payload
initramfs
boot "systemd-$suite-" -initrd "$work/systemd.cpio" \
  -drive "file=$disk,if=virtio,format=raw,snapshot=on" -drive "file=$work/payload.ext4,if=virtio,format=raw,snapshot=on" \
  -append "console=ttyS0 panic=-1 loglevel=3 random.trust_cpu=on apparmor=0 systemd.show_status=false systemd.log_target=null"
