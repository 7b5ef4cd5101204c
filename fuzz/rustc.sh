#!/bin/sh
# rustc for `make fuzz`: what the fuzzer watches is instrumented (our crate and the targets, with all generic code of the
# libraries that ends up in them), everything else is what the crate's own build has made already. Works on stable Rust.
rustc=$1
shift
case " $* " in
*" --crate-name windlass "*'feature="fuzzing"'* | *"fuzz_targets/"*)
    exec "$rustc" "$@" -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
    ;;
esac
exec "$rustc" "$@"
