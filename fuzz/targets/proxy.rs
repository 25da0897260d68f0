#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wshd::proto::http1::proxy::fuzz(data));
