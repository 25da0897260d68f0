#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wshd_fuzz::proto::ws::frame::fuzz(data));
