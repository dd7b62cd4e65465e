//! Compiles the kernels for NVIDIA devices where the feature `cuda` asks for them.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

const KERNELS: &str = "src/ops/cuda/kernels.cu";
/// The least compute capability that has all instructions of the kernels.
const LEAST_CAPABILITY: u32 = 80;

fn main() {
    for file in [
        "kernels.cu",
        "attention.cuh",
        "blocks.cuh",
        "numbers.cuh",
        "rows.cuh",
    ] {
        println!("cargo:rerun-if-changed=src/ops/cuda/{file}");
    }
    for name in ["CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_some()
        && let Err(message) = compile()
    {
        eprintln!("error: {message}");
        exit(1);
    }
}

/// Machine code for the capability of the build, and the intermediate form from which
/// drivers make that of later devices.
fn compile() -> Result<(), String> {
    let capability = capability()?;
    let output = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets no OUT_DIR")?);
    let mut command = Command::new(compiler());
    command
        .args(["-fatbin", "-O3", "-std=c++17"])
        .arg(format!(
            "-gencode=arch=compute_{capability},code=[sm_{capability},compute_{capability}]"
        ))
        .arg("-o")
        .arg(output.join("kernels.fatbin"))
        .arg(KERNELS);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?} failed: {status}")),
        Err(error) => Err(format!(
            "could not run nvcc: {error}. The feature cuda needs the CUDA toolkit: set CUDA_HOME, \
             or build with scripts/cuda.sh, which brings one."
        )),
    }
}

fn compiler() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter();
    let mut compilers = homes
        .filter_map(env::var_os)
        .map(|home| PathBuf::from(home).join("bin/nvcc"));
    compilers
        .find(|path| path.exists())
        .unwrap_or_else(|| "nvcc".into())
}

/// As candle reads it: `90` or `9.0`.
fn capability() -> Result<u32, String> {
    let Ok(text) = env::var("CUDA_COMPUTE_CAP") else {
        return Ok(LEAST_CAPABILITY);
    };
    match text.replace('.', "").parse() {
        Ok(capability) if capability >= LEAST_CAPABILITY => Ok(capability),
        _ => Err(format!(
            "CUDA_COMPUTE_CAP must be at least {LEAST_CAPABILITY}, not \"{text}\""
        )),
    }
}
