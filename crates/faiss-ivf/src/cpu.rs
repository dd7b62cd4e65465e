//! The check that this processor can run what was compiled.

use crate::threads::set_threads;

/// The processor lacks instructions that FAISS and this crate were compiled with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this processor lacks instructions that faiss_ivf was compiled for: {}", .missing.join(", "))]
pub struct UnsupportedCpu {
    /// The names of the missing instruction sets, for example `AVX2`.
    pub missing: Vec<&'static str>,
}

/// Checks the processor and sets one thread. Call it once in every process
/// before any other function; it starts no thread and may run in a process that
/// forks later.
pub fn init() -> Result<(), UnsupportedCpu> {
    let missing = missing_features();
    if !missing.is_empty() {
        return Err(UnsupportedCpu { missing });
    }
    set_threads(1);
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn missing_features() -> Vec<&'static str> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    // `is_x86_feature_detected!` is a constant `true` for whatever the compiler
    // was told to assume, hence the raw instruction.
    let basic = __cpuid(1);
    let extended = if __cpuid(0).eax >= 7 {
        __cpuid_count(7, 0).ebx
    } else {
        0
    };
    let bit = |register: u32, position: u32| register >> position & 1 == 1;
    // AVX registers are usable only when the operating system saves them (bits 1
    // and 2 of XCR0), which bit 27 (OSXSAVE) makes readable.
    let ymm_saved = bit(basic.ecx, 27) && xcr0() & 0b110 == 0b110;
    [
        ("AVX", bit(basic.ecx, 28) && ymm_saved),
        ("AVX2", bit(extended, 5) && ymm_saved),
        ("FMA", bit(basic.ecx, 12)),
        ("F16C", bit(basic.ecx, 29)),
        ("BMI1", bit(extended, 3)),
        ("BMI2", bit(extended, 8)),
    ]
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect()
}

/// The extended control register 0: which register files the operating system saves.
#[cfg(target_arch = "x86_64")]
fn xcr0() -> u32 {
    let low: u32;
    // SAFETY: the caller has seen OSXSAVE, so XGETBV with index 0 exists; it
    // writes edx:eax and touches no memory.
    unsafe {
        std::arch::asm!(
            "xgetbv",
            in("ecx") 0u32,
            out("eax") low,
            out("edx") _,
            options(nomem, nostack, preserves_flags)
        );
    }
    low
}

#[cfg(not(target_arch = "x86_64"))]
fn missing_features() -> Vec<&'static str> {
    // Elsewhere FAISS is compiled for the base level of the architecture.
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::init;

    #[test]
    fn the_processor_that_runs_the_tests_is_supported() {
        assert_eq!(init(), Ok(()));
    }
}
