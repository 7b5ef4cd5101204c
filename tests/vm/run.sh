#!/usr/bin/env bash
# Boots a kernel that has cgroup2 and nothing else, and runs the tests of tests/vm/tests.list in it, as root, as a user
# with a delegated subtree, and against a container engine. The machine is made of what is here: the build, nats-server, the
# engine, the shell and the tools that the programs use, in an initramfs; no image, no loop device, no rights.
#
#   tests/vm/run.sh [name …]       with names: those tests alone, instead of the list
#
#   VM_KERNEL=FILE   a kernel's .deb, or a bzImage with virtio built in; else Debian's linux-image-cloud-amd64
#   VM_WHO           "root user docker"; without docker where there is no engine to take along
#   VM_ACCEL         kvm or tcg; else kvm where it works
#   VM_CPUS          2 (1 for kernels that qemu 7.2 emulates wrongly with more, such as 6.12)
#   VM_TIMEOUT       seconds for the whole machine (1500)
#
# The console's log stays in .windlass/vm/. Exit status: 0 passed, 1 failed (also a panic, a hang, a time-out).
set -euo pipefail
cd "$(dirname "$0")/../.."
top=$PWD
here=$top/tests/vm
work=$top/.windlass/vm
mkdir -p "$work"
. "$here/machine.sh"

# Whether what the engine of tests/harness/docker.rs needs is here; tests/docker/packages.sh installs it.
has_engine() {
  local name
  for name in $engine; do
    type -P "$name" >/dev/null || { say "no $name"; return 1; }
  done
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
  awk -v who="$who" '/^#/ || !NF { next } $1 == who || ($1 == "both" && who != "docker") { print $2 } $1 == "skip" && who != "docker" { print "--skip"; print $2 }' "$here/tests.list"
}

initramfs() {
  local name file dir
  root=$(mktemp -d "$work/root.XXXXXX")
  trap 'rm -rf "$root"' EXIT
  # The machine's own root directory: open to its user.
  chmod 755 "$root"
  mkdir -p "$root"/{usr/bin,usr/sbin,usr/lib,usr/lib64,etc,proc,sys,dev,tmp,run,root,var/tmp,vm/modules,vm/engine,work,"$top/tests"}
  ln -s ../run "$root/var/run"
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
  printf 'export WINDLASS_TEST_NATS_SERVER=%q\nTEST_BINARY=%q\nWHO=%q\n' "$nats" "$tests" "$who" >"$root/vm/env"
  for name in $who; do arguments "$name" "$@" >"$root/vm/$name.tests"; done
  for file in "${modules[@]}"; do unpacked "$file" >"$root/vm/modules/$(basename "$file" | sed 's/\.ko.*/.ko/')"; done
  case " $who " in *" docker "*)
    for name in $engine; do add "$(type -P "$name")"; done
    for dir in "$(dirname "$(find /usr/lib -name libxt_conntrack.so -print -quit)")"; do add "$dir"/*.so; done
    for file in "${engine_modules[@]}"; do unpacked "$file" >"$root/vm/engine/$(basename "$file" | sed 's/\.ko.*/.ko/')"; done
    ;;
  esac
  (cd "$root" && find . | cpio --quiet -o -H newc -R 0:0) >"$work/initramfs.cpio"
}

# Programs of the tests' scripts and of tests/programs; the shells have the rest built in.
tools="cat chmod chown cp cut date dd env false find head id ln ls mkdir mktemp mv rm rmdir seq sleep sort stat sync tail tee touch tr true uname wc yes"

# What a container engine consists of, and what its tests use besides.
engine="dockerd containerd containerd-shim-runc-v2 runc docker-init docker-proxy iptables ip6tables unshare nsenter mount umount tar ldd cut"
needed qemu-system-x86_64:qemu-system-x86 cpio:cpio busybox:busybox-static setsid:util-linux setpriv:util-linux bash:bash strip:binutils
who=${VM_WHO:-}
if [ -z "$who" ]; then
  who="root user"
  if has_engine; then
    who="$who docker"
  elif [ "${CI:-}" = true ]; then
    say "no container engine to take along (tests/docker/packages.sh)"
    exit 1
  else
    say "without containers: no engine to take along (tests/docker/packages.sh)"
  fi
fi
build
nats=${WINDLASS_TEST_NATS_SERVER:-$(deploy/fetch-nats.sh)}
image=${VM_KERNEL:-}
if [ -z "$image" ]; then image=$(fetch_kernel); fi
# It was said why not.
if [ -z "$image" ]; then exit 0; fi
unpack_kernel "$image"
case " $who " in *" docker "*) find_engine_modules "$image" ;; esac
initramfs "$@"
truncate -s 64M "$work/disk.img"
truncate -s 256M "$work/swap.img"
boot "" -initrd "$work/initramfs.cpio" \
  -drive "file=$work/disk.img,if=virtio,format=raw,cache=unsafe" -drive "file=$work/swap.img,if=virtio,format=raw,cache=unsafe" \
  -append "console=ttyS0 rdinit=/vm/init panic=-1 loglevel=3 random.trust_cpu=on apparmor=0"
