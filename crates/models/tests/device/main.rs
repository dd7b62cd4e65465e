//! All stored results once more, on the device and with the numbers that the environment names:
//! what the other tests compare with the CPU's own kernels, this compares with whatever computes.
//!
//!     PG_SIGHT_TEST_DEVICE   as `pg_sight.device`; without it the CPU
//!     PG_SIGHT_TEST_ROOT     the folder of this crate, where the program runs elsewhere than
//!                            where it was built
//!     PG_SIGHT_MINILM        all-MiniLM-L6-v2, which is compared too where it is there
//!
//! Tolerances are of components of embeddings, and of states relative to their largest value.

mod captioners;
mod encoders;

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sight_models::{DType, Device, Placement, Tensor};

#[path = "../support/overrides.rs"]
mod overrides;

fn root() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    env::var_os("PG_SIGHT_TEST_ROOT").map_or_else(here, PathBuf::from)
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn demo(name: &str) -> PathBuf {
    root().join("../../demo").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Where to compute, with each type of numbers there is.
fn places() -> Vec<Placement> {
    let device = env::var("PG_SIGHT_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let Placement { device, .. } = Placement::open(&device, "auto").unwrap();
    let dtypes = if device.is_cpu() {
        // In which the CPU computes with the plain forms.
        vec![DType::F32, DType::F16]
    } else {
        vec![DType::F32, DType::F16, DType::BF16]
    };
    let place = |dtype| Placement {
        device: device.clone(),
        dtype,
    };
    dtypes.into_iter().map(place).collect()
}

/// What rounding may come to, by the binary digits of the numbers: 24, 11 or 8.
fn tolerance(place: &Placement) -> f32 {
    match place.dtype {
        DType::F16 => 1e-2,
        DType::BF16 => 6e-2,
        _ => 1e-5,
    }
}

/// The same in short numbers for a model of three networks, each of which goes on with the
/// rounding of the one before it.
fn tolerance_of_three(place: &Placement) -> f32 {
    match place.dtype {
        DType::F32 => tolerance(place),
        _ => 3.0 * tolerance(place),
    }
}

fn what(name: &str, place: &Placement) -> String {
    format!("{name}, {} on {}", place.dtype_name(), place.device_name())
}

fn assert_near(difference: f32, place: &Placement, name: &str) {
    assert_within(difference, tolerance(place), &what(name, place));
}

fn assert_within(difference: f32, tolerance: f32, what: &str) {
    println!("{what}: {difference:.1e} of {tolerance:.0e}");
    assert!(difference < tolerance, "{what}: {difference}");
}

fn on_cpu(state: &Tensor) -> Tensor {
    state
        .to_dtype(DType::F32)
        .unwrap()
        .to_device(&Device::Cpu)
        .unwrap()
}

/// The larger number; NaN is the largest.
fn larger(a: f32, b: f32) -> f32 {
    if b > a || b.is_nan() { b } else { a }
}

fn largest(x: &Tensor) -> f32 {
    let x = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    x.into_iter().map(f32::abs).fold(0.0, larger)
}

fn stored_states(name: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap()
}
