#!/usr/bin/env bash
# Finds or fetches promtool, which checks what a worker says at /metrics, and prints its path.
#
# It is a part of Debian's prometheus, which also has a server that would be started, and pages for a browser. So the package
# is only downloaded and unpacked, and its one program kept in .windlass/tools/promtool. Nothing is installed or started;
# as root, the lists of packages are brought up to date when they do not have it.
set -euo pipefail
cd "$(dirname "$0")/.."

target=.windlass/tools/promtool

say() { printf '%s\n' "$*" >&2; }

runs() { "$1" --version >/dev/null 2>&1; }

if [ -x "$target" ] && runs "$target"; then
  echo "$PWD/$target"
  exit
fi
if found=$(command -v promtool) && runs "$found"; then
  echo "$found"
  exit
fi
command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "fetch-promtool: no promtool on PATH, and this is no Debian"; exit 1; }

mkdir -p .windlass/tools
scratch=$(mktemp -d .windlass/tools/fetch.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
# Root's downloads are made by a user of their own, who must get there.
chmod 755 "$scratch"
download() { (cd "$scratch" && apt-get download -qq prometheus >/dev/null 2>&1); }
say "fetch-promtool: fetching promtool (Debian's prometheus, unpacked, not installed)"
download || { [ "$(id -u)" = 0 ] && apt-get update -qq >/dev/null 2>&1 && download; } || { say "fetch-promtool: apt-get cannot download prometheus"; exit 1; }
dpkg-deb --fsys-tarfile "$scratch"/prometheus_*.deb | tar -x -C "$scratch" ./usr/bin/promtool
runs "$scratch/usr/bin/promtool" || { say "fetch-promtool: the fetched promtool does not run here"; exit 1; }
# Renamed last: a half-written binary is never found under its name.
mv "$scratch/usr/bin/promtool" "$target"
echo "$PWD/$target"
