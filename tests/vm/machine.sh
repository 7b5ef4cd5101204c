# What the virtual machines of this directory have in common: programs, the kernel, the build. Sourced; $work is where things are kept.

say() { printf 'test-vm: %s\n' "$*" >&2; }

# Not here: that is a failure only where all must be had.
skip() {
  say "SKIPPED: $*"
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
}

# Programs that must be there, each with its Debian package.
needed() {
  local missing=() pair
  for pair; do
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

# Sets engine_modules: what a container engine needs of that kernel, with what those need in turn.
find_engine_modules() {
  local name file tree
  tree=$work/kernel-$(basename "$1" .deb)
  engine_modules=()
  if [ ! -d "$tree" ]; then return; fi
  local wanted="$network" seen=" "
  while [ -n "$wanted" ]; do
    name=${wanted%% *}
    wanted=${wanted#"$name"}
    wanted=${wanted# }
    case $seen in *" $name "*) continue ;; esac
    seen="$seen$name "
    file=$(find "$tree" \( -name "$name.ko*" -o -name "${name//_/-}.ko*" \) -print -quit)
    if [ -z "$file" ]; then continue; fi
    engine_modules+=("$file")
    wanted="$wanted $(unpacked "$file" | grep -a -z '^depends=' | tr '\0,' '  ' | sed 's/depends=//')"
    wanted=$(echo $wanted)
  done
}

# A module's bytes, however the kernel's package has it.
unpacked() {
  case $1 in
    *.xz) xz -dc "$1" ;;
    *.zst) zstd -qdc "$1" ;;
    *) cat "$1" ;;
  esac
}

# The executables that cargo built: the suite and the worker that it starts.
build() {
  local messages
  messages=$(${CARGO:-cargo} test --locked --test integration --no-run --message-format=json-render-diagnostics)
  tests=$(sed -n 's/.*"name":"integration".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages" | tail -n 1)
  worker=$(sed -n 's/.*"kind":\["bin"\].*"name":"windlass".*"executable":"\([^"]*\)".*/\1/p' <<<"$messages" | tail -n 1)
  [ -x "$tests" ] && [ -x "$worker" ] || { say "cargo does not say where it put the tests and the worker"; exit 1; }
}

# Modules of the kernel that container engines use.
network="overlay veth bridge br_netfilter nf_tables nft_compat nft_chain_nat nf_nat nf_conntrack nf_conntrack_netlink xt_MASQUERADE xt_addrtype \
xt_conntrack xt_nat xt_tcpudp xt_mark"
network=$(echo $network)

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

# boot NAME ARGUMENT…: runs the machine to its end, says what it said, and ends this script with 0 or 1. AppArmor must be off in it:
# an engine would want its parser. NAME begins the name of the log.
boot() {
  local accel log started=$SECONDS status=0 name=$1
  shift
  accel=$(accelerator)
  log=$work/$name$(date +%Y%m%d-%H%M%S).log
  { ls -t "$work"/*.log 2>/dev/null || true; } | tail -n +10 | xargs -r rm -f
  say "$(basename "$kernel") under qemu ($accel), log $log"
  timeout -k 5 "${VM_TIMEOUT:-1500}" qemu-system-x86_64 -accel "$accel" -cpu max -smp "${VM_CPUS:-2}" -m 3072 -display none -nodefaults -no-reboot \
    -serial stdio -kernel "$kernel" "$@" </dev/null >"$log" 2>&1 || status=$?
  # A serial line ends its lines as a teletype does.
  sed -i 's/\r$//' "$log"
  grep -E '^(windlass-vm: [^r]|windlass-vm: root:|test result:)' "$log" >&2 || true
  if grep -qx 'windlass-vm: result 0' "$log"; then
    say "passed in $((SECONDS - started)) s"
    exit 0
  fi
  case $status in
    124 | 137) say "not over after ${VM_TIMEOUT:-1500} s" ;;
    0) ;;
    *) say "qemu ended with $status" ;;
  esac
  grep -v '^test .* \.\.\. ok' "$log" | tail -n 100 >&2
  say "FAILED after $((SECONDS - started)) s; the whole log: $log"
  exit 1
}
