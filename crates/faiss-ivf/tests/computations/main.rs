//! The public functions against plain Rust.

mod coding;
mod crew;
mod distances;
mod kmeans;
mod quantizers;
mod reference;
#[cfg(target_os = "linux")]
mod threads;
mod transforms;
