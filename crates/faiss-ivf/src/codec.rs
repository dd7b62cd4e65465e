//! How vectors are stored in lists, and how stored codes are scored in place.

use crate::error::FaissError;
use crate::{Metric, distances};

/// The encoding of the vectors of an index.
///
/// A code is a fixed number of bytes; codes lie one after the other. A further
/// encoding is one more variant with its size, its encoder and its
/// [`CodeScanner`]; those that are trained carry what they learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The vector itself: `dim` floats in the byte order of the machine.
    Flat,
}

impl Codec {
    /// Bytes of one code of a vector of `dim` dimensions.
    pub const fn code_size(self, dim: usize) -> usize {
        match self {
            Codec::Flat => dim * size_of::<f32>(),
        }
    }

    /// Encodes `vectors` `(n, dim)` into `codes`, `n * code_size(dim)` bytes.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit.
    pub fn encode(self, dim: usize, vectors: &[f32], codes: &mut [u8]) -> Result<(), FaissError> {
        let n = crate::distance::rows(dim, vectors, "vectors")?;
        if codes.len() != n * self.code_size(dim) {
            return Err(FaissError::invalid(format!(
                "{n} codes do not fit exactly into {} bytes",
                codes.len()
            )));
        }
        match self {
            Codec::Flat => {
                for (code, value) in codes.chunks_exact_mut(size_of::<f32>()).zip(vectors) {
                    code.copy_from_slice(&value.to_ne_bytes());
                }
            }
        }
        Ok(())
    }

    /// Prepares to score codes against `query` `(dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty query.
    pub fn scanner(
        self,
        metric: Metric,
        query: &[f32],
    ) -> Result<Box<dyn CodeScanner>, FaissError> {
        match self {
            Codec::Flat => Ok(Box::new(FlatScanner::new(metric, query)?)),
        }
    }
}

/// Scores codes against the one query that it was made for.
pub trait CodeScanner {
    /// Bytes of one code.
    fn code_size(&self) -> usize;

    /// Scores the first `n` codes of `codes` into `out` `(n)`. The codes may lie
    /// anywhere, for example in a pinned buffer page; they are not copied unless
    /// their address keeps the kernel from reading them.
    ///
    /// # Errors
    /// `InvalidArgument` when `codes` is shorter than `n` codes or `out` is not
    /// `n` long.
    fn scan(&self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError>;
}

/// Scores codes of [`Codec::Flat`].
#[derive(Debug, Clone)]
pub struct FlatScanner {
    metric: Metric,
    query: Vec<f32>,
}

impl FlatScanner {
    /// Prepares to score against `query` `(dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` for an empty query.
    pub fn new(metric: Metric, query: &[f32]) -> Result<Self, FaissError> {
        if query.is_empty() {
            return Err(FaissError::invalid("a query needs at least one dimension"));
        }
        Ok(FlatScanner {
            metric,
            query: query.to_vec(),
        })
    }

    /// As [`CodeScanner::scan`].
    ///
    /// # Errors
    /// As [`CodeScanner::scan`].
    pub fn scan(&self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError> {
        let bytes = n.saturating_mul(self.code_size());
        let Some(codes) = codes.get(..bytes) else {
            return Err(FaissError::invalid(format!(
                "{n} codes of {} bytes do not lie in {} bytes",
                self.code_size(),
                codes.len()
            )));
        };
        // SAFETY: every bit pattern is a float.
        let (before, vectors, after) = unsafe { codes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return distances(self.metric, &self.query, vectors, out);
        }
        // A float must lie at a multiple of four bytes; pages give that, so
        // this copy is for callers with other layouts.
        let copy: Vec<f32> = codes
            .chunks_exact(size_of::<f32>())
            .map(|bytes| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        distances(self.metric, &self.query, &copy, out)
    }
}

impl CodeScanner for FlatScanner {
    fn code_size(&self) -> usize {
        Codec::Flat.code_size(self.query.len())
    }

    fn scan(&self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError> {
        FlatScanner::scan(self, codes, n, out)
    }
}
