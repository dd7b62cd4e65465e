#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/ivf-store/tests/support"]
mod support {
    pub mod damage;
    pub mod exercise;
    pub mod index;
}

fuzz_target!(|data: &[u8]| support::damage::exercise_bytes(data));
