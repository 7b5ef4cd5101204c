#!/usr/bin/env bash
# `make deny`: deny.toml against Cargo.lock, and against fuzz/Cargo.lock.
#
# Licences, bans and sources need no network. Advisories need the database of https://github.com/rustsec/advisory-db: a clone named by
# WINDLASS_ADVISORY_DB, else fetched. Where neither is to be had that part is skipped, which is a failure with CI=true.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
export PATH="$PWD/.windlass/tools/bin:$PATH"
db=https://github.com/rustsec/advisory-db

for manifest in Cargo.toml fuzz/Cargo.toml; do
  "$cargo" deny --locked --config deny.toml --manifest-path "$manifest" check --hide-inclusion-graph -A license-exception-not-encountered bans licenses sources
done

if [ -n "${WINDLASS_ADVISORY_DB:-}" ]; then
  # cargo-deny keeps its clones under this name, and takes one only when it looks like a fetched one.
  clone=.windlass/advisory-dbs/advisory-db-3157b0e258782691
  rm -rf "$clone"
  mkdir -p "$clone"
  cp -r "$WINDLASS_ADVISORY_DB"/. "$clone/"
  touch "$clone/.git/FETCH_HEAD"
  offline=--offline
elif git ls-remote --exit-code "$db" HEAD >/dev/null 2>&1; then
  offline=
else
  echo "deny: SKIPPED: advisories: $db cannot be reached; name a clone by WINDLASS_ADVISORY_DB" >&2
  if [ "${CI:-}" = true ]; then exit 1; fi
  exit 0
fi
for manifest in Cargo.toml fuzz/Cargo.toml; do
  "$cargo" deny $offline --locked --config deny.toml --manifest-path "$manifest" check advisories
done
