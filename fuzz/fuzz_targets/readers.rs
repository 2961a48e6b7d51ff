#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    slackwater_fuzz::readers::any(data);
    slackwater_fuzz::readers::content(data);
});
