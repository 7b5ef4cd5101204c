#!/bin/sh
# Builds the fuzz targets on stable Rust and runs each for so many seconds, without cargo-fuzz (whose layout this is): fuzz/run.sh SECONDS TARGET...
set -eu
cd "$(dirname "$0")"
seconds=$1
shift
export RUSTC_WRAPPER="$PWD/rustc.sh" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/../target}"
"${CARGO:-cargo}" build --locked --quiet
for target in "$@"; do
    mkdir -p "work/$target" "artifacts/$target"
    log="work/$target.log"
    if ! "$CARGO_TARGET_DIR/debug/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 \
        -artifact_prefix="artifacts/$target/" "work/$target" "corpus/$target" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "fuzz: $target broke a promise; the input is in fuzz/artifacts/$target: mend it, and keep the input in fuzz/corpus/$target" >&2
        exit 1
    fi
    sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) second.*/'"$target"': \1 inputs in \2 s, none breaks a promise/p' "$log"
done
