#!/usr/bin/env bash
# `make deb-test`: the package installed, upgraded, removed and purged in a Debian that has nothing else, and what that changes.
#
#   DEB_SUITE   bookworm; the base is kept in .windlass/deb/
set -euo pipefail
cd "$(dirname "$0")/../.."

say() { printf 'deb-test: %s\n' "$*" >&2; }
fail() { say "FAILED: $*"; exit 1; }
skip() {
  say "SKIPPED: $*"
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
}

[ "$(id -u)" = 0 ] || skip "a root directory of its own takes root"
if ! command -v debootstrap >/dev/null; then
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends debootstrap; } >/dev/null 2>&1 || skip "there is no debootstrap"
fi

suite=${DEB_SUITE:-bookworm}
package=$(find target/debian -maxdepth 1 -name 'windlass_*.deb' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2)
[ -n "$package" ] || fail "there is no package; make deb"
base=.windlass/deb/$suite
if [ ! -d "$base" ]; then
  say "making a base of $suite"
  mkdir -p .windlass/deb
  rm -rf "$base.new"
  debootstrap --variant=minbase "$suite" "$base.new" >"$base.log" 2>&1 || skip "debootstrap cannot make $suite; see $base.log"
  mv "$base.new" "$base"
fi
root=$(mktemp -d "$PWD/.windlass/deb/root.XXXXXX")
trap 'rm -rf "$root"' EXIT
cp -a "$base/." "$root/"
cp "$package" "$root/tmp/windlass.deb"

in_root() { chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
# Everything but what dpkg notes for itself.
listing() { (cd "$root" && find . \( -path ./var/lib/dpkg -o -path ./var/log -o -path ./var/cache \) -prune -o -print | sort); }

contents=$(dpkg-deb -c "$package" | awk '{ print $NF }')
for path in usr/bin/windlass etc/windlass/worker.toml usr/share/doc/windlass/copyright usr/share/doc/windlass/operating.md; do
  grep -qx "./$path\(\.gz\)\?" <<<"$contents" || fail "$path is not in the package: $contents"
done
unit=$(grep '/systemd/system/windlass-worker.service$' <<<"$contents") || fail "the unit is not in the package: $contents"
if target/release/windlass help man >/dev/null 2>&1; then
  grep -q '/man1/windlass.1.gz$' <<<"$contents" || fail "the manual is not in the package"
  grep -q '/bash-completion/completions/windlass$' <<<"$contents" || fail "completions are not in the package"
fi
dpkg-deb -f "$package" Depends | grep -q libc6 || fail "it does not say that it needs libc6: $(dpkg-deb -f "$package" Depends)"

say "install"
listing >"$root/tmp/before"
in_root dpkg -i /tmp/windlass.deb >"$root/tmp/log" 2>&1 || fail "$(cat "$root/tmp/log")"
in_root windlass --version || fail "it does not run"
[ -f "$root/$unit" ] || fail "the unit is not there"
if find "$root/etc/systemd" -name 'windlass*' | grep -q .; then fail "the unit is enabled before there is a configuration"; fi
grep -qx '/etc/windlass/worker.toml' "$root/var/lib/dpkg/info/windlass.conffiles" || fail "the configuration is not a conffile"
# Nobody listens there: 6, and not 2, which a wrong configuration would be.
code=0
in_root windlass init --dry-run --server nats://127.0.0.1:1 --config /etc/windlass/worker.toml >"$root/tmp/log" 2>&1 || code=$?
[ "$code" = 6 ] || fail "the configuration that comes with it: exit code $code: $(cat "$root/tmp/log")"

say "upgrade: what the operator wrote is kept"
echo '# mine' >>"$root/etc/windlass/worker.toml"
in_root dpkg -i /tmp/windlass.deb >"$root/tmp/log" 2>&1 || fail "$(cat "$root/tmp/log")"
grep -q '^# mine$' "$root/etc/windlass/worker.toml" || fail "the configuration was overwritten"

say "remove: nothing but configuration and state is left"
mkdir -p "$root/var/lib/windlass/spool"
in_root dpkg -r windlass >"$root/tmp/log" 2>&1 || fail "$(cat "$root/tmp/log")"
# Until the purge Debian keeps what was enabled, and masks the unit.
left=$(listing | comm -13 "$root/tmp/before" - | grep -v '^./tmp/\|/deb-systemd-helper-' || true)
[ "$left" = "./etc/systemd/system/windlass-worker.service
./etc/windlass
./etc/windlass/worker.toml
./var/lib/windlass
./var/lib/windlass/spool" ] || fail "left after removal: $left"
[ "$(readlink "$root/etc/systemd/system/windlass-worker.service")" = /dev/null ] || fail "the unit is there after removal"

say "install again: with the configuration that was left"
in_root dpkg -i /tmp/windlass.deb >"$root/tmp/log" 2>&1 || fail "$(cat "$root/tmp/log")"
grep -q '^# mine$' "$root/etc/windlass/worker.toml" || fail "the configuration was overwritten"
[ ! -e "$root/etc/systemd/system/windlass-worker.service" ] || fail "the unit is still masked"

say "purge: nothing is left"
in_root dpkg -P windlass >"$root/tmp/log" 2>&1 || fail "$(cat "$root/tmp/log")"
left=$(listing | comm -13 "$root/tmp/before" - | grep -v '^./tmp/' || true)
[ -z "$left" ] || fail "left after purge: $left"
say "passed: $(basename "$package"), $(du -h "$package" | cut -f 1)"
