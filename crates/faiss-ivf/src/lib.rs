//! FAISS as the compute library of the `faiss_ivf` access method.
//!
//! This crate knows vectors, centroids and codes in memory, nothing of pages or
//! of PostgreSQL. Everything checks its arguments before FAISS sees them (FAISS
//! aborts on some mistakes), turns C++ exceptions into [`FaissError`] and never
//! calls back into the caller from under C++ frames, except for the two closures
//! of [`kmeans`].
//!
//! Call [`init`] once in every process before anything else.
//!
//! Distances carry FAISS's own sign: an inner product is larger when nearer, an
//! L2 distance is squared and smaller when nearer. Cosine distance is the inner
//! product of normalised vectors; [`normalize`] prepares them.

mod codec;
mod cpu;
mod distance;
mod distinct;
mod error;
mod ffi;
mod kmeans;
mod threads;

pub use codec::{CodeScanner, Codec, extend_from_halves};
pub use cpu::{UnsupportedCpu, init};
pub use distance::{assign, distances, nearest, normalize};
pub use error::FaissError;
pub use kmeans::{KMeans, kmeans};
pub use threads::set_threads;

/// How two vectors are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The inner product: larger is nearer.
    InnerProduct,
    /// The squared Euclidean distance: smaller is nearer.
    L2,
}

impl Metric {
    /// True when `a` is strictly nearer than `b` under this metric; a NaN is
    /// never nearer than anything.
    pub fn is_nearer(self, a: f32, b: f32) -> bool {
        match self {
            Metric::InnerProduct => a > b,
            Metric::L2 => a < b,
        }
    }
}
