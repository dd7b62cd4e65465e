//! The public functions against plain Rust.

mod distances;
mod kmeans;
mod reference;
