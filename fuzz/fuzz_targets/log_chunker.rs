#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| windlass::fuzz::log_chunker(bytes));
