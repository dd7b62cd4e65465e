//! Vectors as short codes that lose something, and how such codes are stored.

use std::sync::Arc;

use crate::byte_scan::ByteScan;
use crate::coder::Coder;
use crate::distance::{check_finite, rows};
use crate::error::FaissError;
use crate::product::{self, Shape, Tables};
use crate::scorer::Scorer;
use crate::{ffi, packed, scale, signs};

const FLOAT: usize = size_of::<f32>();

/// An encoding that loses something of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizerKind {
    /// 8 bits a component, between the least and the largest that training saw in
    /// this dimension (FAISS: `SQ8`).
    Sq8,
    /// 4 bits a component, likewise (FAISS: `SQ4`).
    Sq4,
    /// A float of 16 bits a component; larger ones become the largest such float
    /// (FAISS: `SQfp16`).
    SqFp16,
    /// `m` parts of 8 bits, each the nearest of 256 centroids (FAISS: `PQ<m>`).
    Pq {
        /// The number of parts, a divisor of the number of dimensions.
        m: usize,
    },
    /// `m` parts of 4 bits, each the nearest of 16 centroids, scored by look-up
    /// tables of 8 bits (FAISS: `PQ<m>x4fs`).
    Pq4 {
        /// The number of parts, a divisor of the number of dimensions.
        m: usize,
    },
    /// The sign of each component: +1 for components of at least 0, -1 for others.
    /// It is the sign part of RaBitQ (Gao and Long, SIGMOD 2024); the vectors
    /// should be rotated at random before.
    Signs,
}

impl QuantizerKind {
    /// True for codes that lists store in blocks of 32, in FAISS's layout for fast scan.
    pub const fn is_packed(self) -> bool {
        matches!(self, QuantizerKind::Pq4 { .. } | QuantizerKind::Signs)
    }

    /// Bytes of one code of a vector of `dim` dimensions in row form.
    pub const fn code_size(self, dim: usize) -> usize {
        match self {
            QuantizerKind::Sq8 => dim,
            QuantizerKind::Sq4 => dim.div_ceil(2),
            QuantizerKind::SqFp16 => dim * 2,
            QuantizerKind::Pq { m } => m,
            QuantizerKind::Pq4 { m } => m.div_ceil(2),
            QuantizerKind::Signs => dim.div_ceil(8),
        }
    }

    /// Bytes of a block of 32 packed codes; 0 for codes that are not packed.
    pub const fn block_size(self, dim: usize) -> usize {
        if self.is_packed() {
            packed::block_size(self.code_size(dim))
        } else {
            0
        }
    }

    /// Whether there is something to learn from a sample.
    pub(crate) const fn is_trained(self) -> bool {
        !matches!(self, QuantizerKind::SqFp16 | QuantizerKind::Signs)
    }

    /// The number of trained floats: least values and widths, or the unit and the
    /// centroids.
    const fn trained_len(self, dim: usize) -> usize {
        match self {
            QuantizerKind::Sq8 | QuantizerKind::Sq4 => 2 * dim,
            QuantizerKind::Pq { .. } => 1 + 256 * dim,
            QuantizerKind::Pq4 { .. } => 1 + 16 * dim,
            QuantizerKind::SqFp16 | QuantizerKind::Signs => 0,
        }
    }

    /// The name of this encoding for the shim when it is one of FAISS's scalar
    /// quantizers.
    const fn scalar(self) -> Option<std::ffi::c_int> {
        match self {
            QuantizerKind::Sq8 => Some(ffi::SCALAR_8_BITS),
            QuantizerKind::Sq4 => Some(ffi::SCALAR_4_BITS),
            QuantizerKind::SqFp16 => Some(ffi::SCALAR_HALF),
            QuantizerKind::Pq { .. } | QuantizerKind::Pq4 { .. } | QuantizerKind::Signs => None,
        }
    }

    /// The shape of this encoding when it is a product quantizer.
    const fn product(self, dim: usize) -> Option<Shape> {
        match self {
            QuantizerKind::Pq { m } => Some(Shape { dim, m, bits: 8 }),
            QuantizerKind::Pq4 { m } => Some(Shape { dim, m, bits: 4 }),
            _ => None,
        }
    }

    /// Scalar quantizers decode to the middle of a cell, so that the largest code
    /// is half a cell beyond the range: it is this part of the range.
    const fn overshoot(self) -> f64 {
        match self {
            QuantizerKind::Sq4 => 15.5 / 15.0,
            _ => 255.5 / 255.0,
        }
    }
}

/// A trained [`QuantizerKind`]; a clone shares what was trained.
#[derive(Debug, Clone)]
pub struct Quantizer {
    kind: QuantizerKind,
    dim: usize,
    /// None for signs, which need nothing of FAISS to be encoded.
    coder: Option<Arc<Coder>>,
}

impl Quantizer {
    /// Whether vectors of `dim` dimensions can be encoded so.
    ///
    /// # Errors
    /// `InvalidArgument` says why not.
    pub fn check(kind: QuantizerKind, dim: usize) -> Result<(), FaissError> {
        rows(dim, &[], "vectors")?;
        if let Some(Shape { m, .. }) = kind.product(dim)
            && (m == 0 || !dim.is_multiple_of(m))
        {
            return Err(FaissError::invalid(format!(
                "{dim} dimensions cannot be cut into {m} equal parts"
            )));
        }
        if kind.is_packed() && packed::sub_codes(kind.code_size(dim)) > packed::MOST_SUB_CODES {
            return Err(FaissError::invalid(format!(
                "{dim} dimensions are too many for packed codes"
            )));
        }
        Ok(())
    }

    /// Learns from `sample` `(n, dim)`, at least one vector. The same sample and
    /// number of threads give the same quantizer.
    ///
    /// `interrupted` is asked as by [`kmeans`](crate::kmeans).
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit, when there is no vector, or a
    /// value is not finite or so large that a code could not be decoded;
    /// `Interrupted`; `OutOfMemory`.
    pub fn train(
        kind: QuantizerKind,
        dim: usize,
        sample: &[f32],
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Self, FaissError> {
        Self::check(kind, dim)?;
        if rows(dim, sample, "vectors")? == 0 {
            return Err(FaissError::invalid("there is no vector to learn from"));
        }
        check_finite(sample, "vectors")?;
        if interrupted() {
            return Err(FaissError::Interrupted);
        }
        let trained = match (kind.product(dim), kind.scalar()) {
            (Some(shape), _) => product::train(shape, sample, interrupted)?,
            (_, Some(scalar)) if kind.trained_len(dim) > 0 => {
                Coder::train_scalar(scalar, dim, sample)?
            }
            _ => Vec::new(),
        };
        Self::from_trained(kind, dim, &trained)
    }

    /// Of as many values as the kind needs.
    fn from_trained(kind: QuantizerKind, dim: usize, trained: &[f32]) -> Result<Self, FaissError> {
        check_finite(trained, "trained values")?;
        let coder = match (kind.product(dim), kind.scalar()) {
            (Some(shape), _) => {
                let (unit, centroids) = (trained[0], &trained[1..]);
                check_centroids(unit, centroids)?;
                Some(Coder::product(shape, unit, centroids)?)
            }
            (_, Some(scalar)) => {
                check_ranges(kind.overshoot(), trained)?;
                Some(Coder::scalar(scalar, dim, kind.code_size(dim), trained)?)
            }
            _ => None,
        };
        Ok(Quantizer {
            kind,
            dim,
            coder: coder.map(Arc::new),
        })
    }

    /// Bytes of what [`state`](Self::state) returns.
    pub const fn state_size(kind: QuantizerKind, dim: usize) -> usize {
        kind.trained_len(dim) * FLOAT
    }

    /// What has to be stored to make this quantizer again: floats in the byte order
    /// of the machine.
    pub fn state(&self) -> Vec<u8> {
        let Some(coder) = &self.coder else {
            return Vec::new();
        };
        let unit = self.kind.product(self.dim).map(|_| coder.unit() as f32);
        let values = unit.iter().chain(coder.trained());
        values.flat_map(|value| value.to_ne_bytes()).collect()
    }

    /// Makes the quantizer whose [`state`](Self::state) was stored.
    ///
    /// # Errors
    /// `InvalidArgument` when `state` cannot be one of this kind and dimension;
    /// `OutOfMemory`.
    pub fn from_state(kind: QuantizerKind, dim: usize, state: &[u8]) -> Result<Self, FaissError> {
        Self::check(kind, dim)?;
        let trained = floats(state, Self::state_size(kind, dim))?;
        Self::from_trained(kind, dim, &trained)
    }

    /// The encoding.
    pub fn kind(&self) -> QuantizerKind {
        self.kind
    }

    /// The number of dimensions.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Bytes of one code in row form.
    pub fn code_size(&self) -> usize {
        self.kind.code_size(self.dim)
    }

    /// True when lists store blocks of 32 codes, in FAISS's layout for fast scan.
    pub fn is_packed(&self) -> bool {
        self.kind.is_packed()
    }

    /// Bytes of a block of 32 packed codes; 0 for codes that are not packed.
    pub fn block_size(&self) -> usize {
        self.kind.block_size(self.dim)
    }

    /// Encodes `vectors` `(n, dim)` into `codes`, `n * code_size` bytes in row form.
    /// Components outside the trained range become the nearest that has a code.
    ///
    /// It cannot be interrupted: give it vectors in batches. It uses the threads of
    /// [`set_threads`](crate::set_threads).
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit or a component is not finite.
    pub fn encode(&self, vectors: &[f32], codes: &mut [u8]) -> Result<(), FaissError> {
        let n = rows(self.dim, vectors, "vectors")?;
        let size = self.code_size();
        if codes.len() != n.saturating_mul(size) {
            return Err(FaissError::invalid(format!(
                "{n} codes of {size} bytes do not fit exactly into {} bytes",
                codes.len()
            )));
        }
        check_finite(vectors, "vectors")?;
        let Some(coder) = &self.coder else {
            for (vector, code) in vectors
                .chunks_exact(self.dim)
                .zip(codes.chunks_exact_mut(size))
            {
                signs::encode(vector, code);
            }
            return Ok(());
        };
        coder.encode(vectors, codes)
    }

    /// Appends the vectors `(n, dim)` that `codes`, `n * code_size` bytes in row
    /// form, stand for.
    ///
    /// # Errors
    /// `InvalidArgument` when `codes` is not a whole number of codes.
    pub fn decode(&self, codes: &[u8], out: &mut Vec<f32>) -> Result<(), FaissError> {
        let size = self.code_size();
        if !codes.len().is_multiple_of(size) {
            return Err(FaissError::invalid(format!(
                "{} bytes are not a whole number of codes of {size} bytes",
                codes.len()
            )));
        }
        let n = codes.len() / size;
        out.try_reserve(n * self.dim)
            .map_err(|_| FaissError::OutOfMemory)?;
        let Some(coder) = &self.coder else {
            for code in codes.chunks_exact(size) {
                signs::decode(code, self.dim, out);
            }
            return Ok(());
        };
        let begin = out.len();
        out.resize(begin + n * self.dim, 0.0);
        coder.decode(codes, &mut out[begin..])
    }

    /// Prepares inner products of `query` `(dim)` with codes.
    ///
    /// # Errors
    /// `InvalidArgument` when the query has another dimension or is not finite.
    pub fn scorer(&self, query: &[f32]) -> Result<Scorer, FaissError> {
        if query.len() != self.dim {
            return Err(FaissError::invalid(format!(
                "a query of {} dimensions does not fit codes of {}",
                query.len(),
                self.dim
            )));
        }
        check_finite(query, "query")?;
        let Some(coder) = &self.coder else {
            return Ok(Scorer::packed(signs::fast_scan(query)));
        };
        if self.kind == QuantizerKind::Sq8 {
            return Ok(Scorer::bytes(ByteScan::new(coder, query)));
        }
        let Some(shape) = self.kind.product(self.dim) else {
            return Scorer::scalar(coder, query);
        };
        let tables = Tables::new(coder, shape, query)?;
        Ok(if self.is_packed() {
            Scorer::packed(tables.fast_scan())
        } else {
            Scorer::product(shape, tables)
        })
    }
}

/// Refuses ranges, least values and then widths, of which codes would decode to what
/// is no float; the largest code is at the part `overshoot` of the width.
fn check_ranges(overshoot: f64, trained: &[f32]) -> Result<(), FaissError> {
    let (least, width) = trained.split_at(trained.len() / 2);
    let decodes = |(&least, &width): (&f32, &f32)| {
        let largest = f64::from(least) + f64::from(width) * overshoot;
        width >= 0.0 && largest < f64::from(f32::MAX)
    };
    if least.iter().zip(width).all(decodes) {
        Ok(())
    } else {
        Err(FaissError::invalid("ranges are negative or too wide"))
    }
}

/// Refuses centroids that are too large, and a unit that is none.
fn check_centroids(unit: f32, centroids: &[f32]) -> Result<(), FaissError> {
    let largest = scale::largest(centroids);
    let decoded = largest * f64::from(unit);
    if unit.is_normal() && unit > 0.0 && largest <= scale::LARGEST && decoded < f64::from(f32::MAX)
    {
        Ok(())
    } else {
        Err(FaissError::invalid("centroids are too large"))
    }
}

/// The floats of a stored state of `size` bytes.
pub(crate) fn floats(state: &[u8], size: usize) -> Result<Vec<f32>, FaissError> {
    if state.len() != size {
        return Err(FaissError::invalid(format!(
            "a state has {} bytes instead of {size}",
            state.len()
        )));
    }
    let float = |bytes: &[u8]| f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    Ok(state.chunks_exact(FLOAT).map(float).collect())
}
