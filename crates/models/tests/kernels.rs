//! Kernels for GPUs whose weights are in blocks, compiled for and run on the CPU, since there is
//! rarely a GPU where they are changed: `kernels/run.cpp` imitates what they need of one. Weights
//! are quantized and decoded by candle.

use std::fs;
use std::path::Path;
use std::process::Command;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// Reproducible values between -1 and 1.
fn values(count: usize) -> Vec<f32> {
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn kernels_of_blocks_give_what_the_formats_say() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("run");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let compiled = Command::new(&compiler)
        .args([
            "-std=c++20",
            "-O1",
            "-Wno-unknown-pragmas",
            "-pthread",
            "-I",
        ])
        .arg(crate_folder.join("tests/kernels"))
        .arg("-I")
        .arg(crate_folder.join("src/ops/cuda"))
        .arg(crate_folder.join("tests/kernels/run.cpp"))
        .arg("-o")
        .arg(&program)
        .status();
    assert!(compiled.unwrap().success(), "{compiler}");
    for (name, format) in [("q4k", GgmlDType::Q4K), ("q6k", GgmlDType::Q6K)] {
        // Also outputs that fill no block of threads, and fewer chunks than warps.
        for (outputs, inputs) in [(37, 768), (3, 256)] {
            let weights =
                Tensor::from_vec(values(outputs * inputs), (outputs, inputs), &Device::Cpu);
            let quantized = QTensor::quantize(&weights.unwrap(), format).unwrap();
            let decoded = quantized.dequantize(&Device::Cpu).unwrap();
            let decoded: Vec<f32> = decoded.flatten_all().unwrap().to_vec1().unwrap();
            let decoded: Vec<u8> = decoded.iter().flat_map(|x| x.to_le_bytes()).collect();
            let [blocks, numbers] = ["blocks", "numbers"].map(|name| folder.path().join(name));
            fs::write(&blocks, quantized.data().unwrap()).unwrap();
            fs::write(&numbers, decoded).unwrap();
            let ran = Command::new(&program)
                .arg(name)
                .args([&blocks, &numbers])
                .args([outputs.to_string(), inputs.to_string()])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ran.stdout);
            assert!(
                ran.status.success(),
                "{name}, {outputs} x {inputs}:\n{said}"
            );
            assert_eq!(said.lines().count(), 1 + 5 + 4, "{said}");
        }
    }
}
