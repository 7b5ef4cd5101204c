#!/usr/bin/env bash
# Boots a kernel that has cgroup2 and nothing else, and runs the tests of tests/vm/tests.list in it, as root and as a user
# with a delegated subtree. The machine is made of what is here: the build, nats-server, the shell and the tools that the
# programs use, in an initramfs; no image, no loop device, no rights.
#
#   tests/vm/run.sh [name …]       with names: those tests alone, instead of the list
#
#   VM_KERNEL=FILE   a kernel's .deb, or a bzImage with virtio built in; else Debian's linux-image-cloud-amd64
#   VM_WHO           "root user"
#   VM_ACCEL         kvm or tcg; else kvm where it works
#   VM_CPUS          2 (1 for kernels that qemu 7.2 emulates wrongly with more, such as 6.12)
#   VM_TIMEOUT       seconds for the whole machine (900)
#
# The console's log stays in .windlass/vm/. Exit status: 0 passed, 1 failed (also a panic, a hang, a time-out).
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
here=$top/tests/vm
work=$top/.windlass/vm
mkdir -p "$work"

say() { printf 'test-vm: %s\n' "$*" >&2; }

# Not here: that is a failure only where all must be had.
skip() {
  say "SKIPPED: $*"
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
}

needed() {
  local missing=() pair
  for pair in qemu-system-x86_64:qemu-system-x86 cpio:cpio busybox:busybox-static setsid:util-linux setpriv:util-linux bash:bash strip:binutils; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
  done
  # A busybox with shared libraries would do, too, but that is not what the others have been tested with.
  if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      say "installing ${missing[*]}"
      { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
        skip "apt-get cannot install ${missing[*]}"
    else
      skip "the virtual machine needs ${missing[*]} (Debian: apt-get install ${missing[*]})"
    fi
  fi
}

# Prints the .deb of Debian's newest kernel for virtual machines, fetched once; nothing where it cannot be had.
fetch_kernel() {
  local package found scratch
  found=$(find "$work" -maxdepth 1 -name 'linux-image-*-cloud-amd64_*.deb' | sort -V | tail -n 1)
  if [ -n "$found" ]; then
    echo "$found"
    return
  fi
  command -v apt-get >/dev/null || skip "no apt-get to fetch a kernel with; name one by VM_KERNEL"
  package() { { apt-cache depends --important linux-image-cloud-amd64 2>/dev/null || true; } | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1; }
  package=$(package)
  if [ -z "$package" ] && [ "$(id -u)" = 0 ]; then
    apt-get update -qq >/dev/null 2>&1 || true
    package=$(package)
  fi
  [ -n "$package" ] || skip "apt-get does not know linux-image-cloud-amd64; name a kernel by VM_KERNEL"
  say "fetching $package"
  scratch=$(mktemp -d "$work/fetch.XXXXXX")
  (cd "$scratch" && apt-get download -qq -o APT::Sandbox::User=root "$package" >/dev/null 2>&1) || true
  found=$(find "$scratch" -name '*.deb' -print -quit)
  if [ -z "$found" ] && [ "$(id -u)" = 0 ]; then
    # The lists may be older than the archive.
    (cd "$scratch" && apt-get update -qq && apt-get download -qq -o APT::Sandbox::User=root "$package") >/dev/null 2>&1 || true
    found=$(find "$scratch" -name '*.deb' -print -quit)
  fi
  [ -n "$found" ] || { rm -rf "$scratch"; skip "apt-get cannot fetch $package; name a kernel by VM_KERNEL"; }
  mv "$found" "$work/"
  rm -rf "$scratch"
  echo "$work/$(basename "$found")"
}

# Sets kernel (a bzImage) and modules (files to load).
unpack_kernel() {
  local deb=$1 tree name file
  modules=()
  if [ "${deb%.deb}" = "$deb" ]; then
    kernel=$deb
    return
  fi
  tree=$work/kernel-$(basename "$deb" .deb)
  if [ ! -d "$tree" ]; then
    rm -rf "$tree.new"
    dpkg-deb -x "$deb" "$tree.new"
    mv "$tree.new" "$tree"
  fi
  kernel=$(find "$tree/boot" -name 'vmlinuz-*' -print -quit)
  for name in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
    file=$(find "$tree" -name "$name.ko*" -print -quit)
    # Not there: built in.
    if [ -n "$file" ]; then modules+=("$file"); fi
  done
}

# The executables that cargo built: the suite and the worker that it starts.
build() {
  local messages
  messages=$(${CARGO:-cargo} test --locked --test integration --no-run --message-format=json-render-diagnostics)
  tests=$(sed -n 's/.*"name":"integration".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages" | tail -n 1)
  worker=$(sed -n 's/.*"kind":\["bin"\].*"name":"windlass".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages" | tail -n 1)
  [ -x "$tests" ] && [ -x "$worker" ] || { say "cargo does not say where it put the tests and the worker"; exit 1; }
}

# Puts a program and its libraries where they are here.
add() {
  local file library target
  for file; do
    install -D -m 755 "$file" "$root$(realpath -s "$(dirname "$file")" | sed 's,^/\(bin\|sbin\|lib\|lib64\)\(/\|$\),/usr/\1\2,')/$(basename "$file")"
    # A static one has none.
    { ldd "$file" 2>/dev/null | grep -o '/[^ ]*' || true; } | sort -u | while read -r library; do
      target=$root$(sed 's,^/\(lib\|lib64\)/,/usr/\1/,' <<<"$library")
      [ -e "$target" ] || install -D -m 755 "$library" "$target"
    done
  done
}

arguments() {
  local who=$1
  shift
  if [ "$#" -gt 0 ]; then
    printf '%s\n' "$@"
    return
  fi
  awk -v who="$who" '/^#/ || !NF { next } $1 == who || $1 == "both" { print $2 } $1 == "skip" { print "--skip"; print $2 }' "$here/tests.list"
}

initramfs() {
  local name file
  root=$(mktemp -d "$work/root.XXXXXX")
  trap 'rm -rf "$root"' EXIT
  # The machine's own root directory: open to its user.
  chmod 755 "$root"
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,proc,sys,dev,tmp,run,root,var/tmp,vm/modules,work,"$top/tests"}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  printf 'root:x:0:0:root:/root:/bin/bash\ntester:x:1000:1000::/tmp:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
  printf 'root:x:0:\ntester:x:1000:\nnogroup:x:65534:\n' >"$root/etc/group"
  printf '127.0.0.1 localhost\n' >"$root/etc/hosts"
  for name in bash sh busybox setsid setpriv grep sed $tools; do add "$(type -P "$name")"; done
  add "$nats"
  for file in "$tests" "$worker"; do
    add "$file"
    strip --strip-debug -o "$root$file" "$file"
  done
  cp -r "$top/tests/programs" "$root$top/tests/"
  cp -r "$top/config" "$root$top/"
  install -m 755 "$here/init" "$root/vm/init"
  ln -s vm/init "$root/init"
  printf 'export WINDLASS_TEST_NATS_SERVER=%q\nTEST_BINARY=%q\nWHO=%q\n' "$nats" "$tests" "${VM_WHO:-root user}" >"$root/vm/env"
  for name in root user; do arguments "$name" "$@" >"$root/vm/$name.tests"; done
  for file in "${modules[@]}"; do
    name=$(basename "$file")
    case $file in
      *.xz) xz -dc "$file" >"$root/vm/modules/${name%.xz}" ;;
      *.zst) zstd -qdc "$file" >"$root/vm/modules/${name%.zst}" ;;
      *) cp "$file" "$root/vm/modules/$name" ;;
    esac
  done
  (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs.cpio"
}

# Programs of the tests' scripts and of tests/programs; the shells have the rest built in.
tools="cat chmod chown cp cut date dd env false find head id ln ls mkdir mktemp mv rm rmdir seq sleep sort stat sync tail tee touch tr true uname wc yes"

# Whether a kernel boots there: a device that can be opened may still do nothing, as on a machine that is emulated itself.
# The kernel finds no root and panics, which ends the machine; what is seen is kept until this machine boots again.
accelerator() {
  local note
  note=$work/accel-$(cat /proc/sys/kernel/random/boot_id)
  if [ -n "${VM_ACCEL:-}" ]; then
    echo "$VM_ACCEL"
    return
  fi
  if [ ! -s "$note" ]; then
    rm -f "$work"/accel-*
    if [ -w /dev/kvm ] && timeout -k 1 10 qemu-system-x86_64 -accel kvm -m 256 -display none -nodefaults -no-reboot \
      -kernel "$kernel" -append "panic=-1 quiet" </dev/null >/dev/null 2>&1; then
      echo kvm >"$note"
    else
      echo tcg >"$note"
    fi
  fi
  cat "$note"
}

needed
build
nats=${WINDLASS_TEST_NATS_SERVER:-$(deploy/fetch-nats.sh)}
image=${VM_KERNEL:-}
if [ -z "$image" ]; then image=$(fetch_kernel); fi
# It was said why not.
if [ -z "$image" ]; then exit 0; fi
unpack_kernel "$image"
initramfs "$@"
truncate -s 64M "$work/disk.img"
truncate -s 256M "$work/swap.img"
accel=$(accelerator)
log=$work/$(date +%Y%m%d-%H%M%S).log
{ ls -t "$work"/*.log 2>/dev/null || true; } | tail -n +10 | xargs -r rm -f
say "$(basename "$kernel") under qemu ($accel), log $log"
started=$SECONDS
status=0
timeout -k 5 "${VM_TIMEOUT:-900}" qemu-system-x86_64 -accel "$accel" -cpu max -smp "${VM_CPUS:-2}" -m 2048 -display none -nodefaults -no-reboot \
  -serial stdio -kernel "$kernel" -initrd "$work/initramfs.cpio" \
  -drive "file=$work/disk.img,if=virtio,format=raw,cache=unsafe" -drive "file=$work/swap.img,if=virtio,format=raw,cache=unsafe" \
  -append "console=ttyS0 rdinit=/vm/init panic=-1 loglevel=3 random.trust_cpu=on" </dev/null >"$log" 2>&1 || status=$?
# A serial line ends its lines as a teletype does.
sed -i 's/\r$//' "$log"
grep -E '^(windlass-vm: [^r]|windlass-vm: root:|test result:)' "$log" >&2 || true
if grep -qx 'windlass-vm: result 0' "$log"; then
  say "passed in $((SECONDS - started)) s"
  exit 0
fi
case $status in
  124 | 137) say "not over after ${VM_TIMEOUT:-900} s" ;;
  0) ;;
  *) say "qemu ended with $status" ;;
esac
grep -v '^test .* \.\.\. ok' "$log" | tail -n 100 >&2
say "FAILED after $((SECONDS - started)) s; the whole log: $log"
exit 1
