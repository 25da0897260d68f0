#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wshd::proto::proxy::fuzz(data));
