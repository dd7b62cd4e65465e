#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the other target runs the rest")]
#[path = "../../crates/protocol/tests/support/exercise.rs"]
mod exercise;

fuzz_target!(|data: &[u8]| exercise::exercise_requests(data));
