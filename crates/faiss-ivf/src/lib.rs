//! FAISS as the compute library of the `faiss_ivf` access method.
//!
//! This crate knows vectors, centroids and codes in memory, nothing of pages or
//! of PostgreSQL. Everything checks its arguments before FAISS sees them (FAISS
//! aborts on some mistakes), turns C++ exceptions into [`FaissError`] and never
//! calls back into the caller from under C++ frames, except for closures that
//! training asks.
//!
//! Call [`init`] once in every process before anything else.
//!
//! Distances carry FAISS's own sign: an inner product is larger when nearer, an
//! L2 distance is squared and smaller when nearer. Cosine distance is the inner
//! product of normalised vectors; [`normalize`] prepares them.

mod byte_scan;
mod coarse;
mod codec;
mod coded_query;
mod coder;
mod coding;
mod cpu;
mod crew;
mod distance;
mod distinct;
mod encoding;
mod error;
mod factory;
mod fast_scan;
mod ffi;
mod hierarchy;
mod kmeans;
mod packed;
mod poll;
mod product;
mod quantizer;
mod rotation;
mod scale;
mod scorer;
mod signs;
mod threads;
mod transform;

pub use coarse::CoarseCentroids;
pub use codec::{CodeScanner, Codec, extend_from_halves};
pub use coded_query::{CodeFactors, CodedQuery, ListQuery, gap};
pub use coding::{Coding, EntrySizes, squared};
pub use cpu::{UnsupportedCpu, init};
pub use crew::{Crew, with_crew};
pub use distance::{all_distances, assign, distances, nearest_one, normalize};
pub use error::FaissError;
pub use factory::{Code, Factory, FactoryError};
pub use kmeans::{KMeans, kmeans};
pub use quantizer::{Quantizer, QuantizerKind};
pub use scorer::Scorer;
pub use threads::{set_threads, stop_threads};
pub use transform::{Transform, TransformKind};

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
