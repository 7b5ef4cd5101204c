#!/bin/sh
# Takes over into the corpus what runs found to reach new code, as little of it as reaches all branches: fuzz/keep.sh TARGET...
set -eu
cd "$(dirname "$0")"
for target in "$@"; do
    mkdir -p "work/$target"
    "${CARGO_TARGET_DIR:-../target}/debug/$target" -set_cover_merge=1 -use_counters=0 -max_len=1024 "corpus/$target" "work/$target" 2>&1 | tail -n 1
done
