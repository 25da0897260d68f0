#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wshd_fuzz::proto::http1::proxy::fuzz(data));
