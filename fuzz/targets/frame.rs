#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| wshd::proto::ws::frame::fuzz(data));
