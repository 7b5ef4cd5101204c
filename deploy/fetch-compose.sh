#!/usr/bin/env bash
# Finds or fetches a Docker Compose (version 2 or newer), and prints its path: tests check docker-compose.yml with it.
#
# `config` needs no daemon. Debian has version 2 since Debian 13, and that binary runs on Debian 12, too: apt-get fetches and
# verifies it with lists of its own, so that nothing of this machine's packages changes. It is kept in .windlass/tools.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=$PWD/.windlass/tools
keys=/usr/share/keyrings/debian-archive-keyring.gpg

is_2() { "$1" version --short 2>/dev/null | grep -q '^v\{0,1\}\([2-9]\|[1-9][0-9]\)\.'; }

fail() {
  echo "fetch-compose: $*; install Docker Compose 2" >&2
  exit 1
}

for found in "$(command -v docker-compose || true)" /usr/libexec/docker/cli-plugins/docker-compose /usr/lib/docker/cli-plugins/docker-compose \
  ~/.docker/cli-plugins/docker-compose "$tools/docker-compose"; do
  if [ -n "$found" ] && [ -x "$found" ] && is_2 "$found"; then
    echo "$found"
    exit
  fi
done

command -v apt-get >/dev/null && [ -r "$keys" ] || fail "there is no Debian archive to fetch it from"
mkdir -p "$tools"
scratch=$(mktemp -d "$tools/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch/lists/partial" "$scratch/archives/partial"
echo "deb [signed-by=$keys] http://deb.debian.org/debian trixie main" >"$scratch/sources.list"
apt() {
  apt-get -qq -o Dir::Etc::sourcelist="$scratch/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$scratch/lists" \
    -o Dir::Cache::archives="$scratch/archives" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@" >/dev/null 2>&1
}
echo "fetch-compose: fetching docker-compose (Debian 13)" >&2
apt update && (cd "$scratch" && apt download docker-compose) || fail "apt-get cannot fetch Debian 13's docker-compose"
dpkg-deb -x "$scratch"/docker-compose_*.deb "$scratch/tree"
binary=$(find "$scratch/tree" -type f -name docker-compose -perm -100 -print -quit)
is_2 "$binary" || fail "Debian 13's docker-compose does not run here"
# Renamed last: a half-written binary is never found under its name.
mv "$binary" "$tools/docker-compose"
echo "$tools/docker-compose"
