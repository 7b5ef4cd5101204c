#!/bin/sh
# Takes over into the corpus what runs found to reach new code, as little of it as reaches all: fuzz/keep.sh TARGET...
set -eu
cd "$(dirname "$0")"
for target in "$@"; do
    mkdir -p "work/$target"
    "${CARGO_TARGET_DIR:-../target}/debug/$target" -merge=1 -max_len=4096 "corpus/$target" "work/$target" 2>&1 | tail -n 1
done
