#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    slackwater_fuzz::texts::any(data);
    slackwater_fuzz::texts::masked(data);
});
