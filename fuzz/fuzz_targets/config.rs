#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| volhost_fuzz::config::run(data));
