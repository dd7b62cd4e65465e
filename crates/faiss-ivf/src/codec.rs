//! How vectors are stored in lists, and how stored codes are scored in place.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::FaissError;
use crate::{Metric, distances, ffi};

const HALF: usize = size_of::<f16>();
const FLOAT: usize = size_of::<f32>();

/// The encoding of the vectors of an index.
///
/// A code is a fixed number of bytes; codes lie one after the other. A further
/// encoding is one more variant with its size, its encoder and its
/// [`CodeScanner`]; those that are trained carry what they learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The vector itself: `dim` floats in the byte order of the machine.
    Flat,
    /// `dim` floats of 16 bits: the vector itself where it has such components.
    Half,
    /// `dim` floats of 16 bits and the reciprocal of the vector's length, a float
    /// of 32 bits. Inner products are with the vector of length one, which 16 bits
    /// could not hold exactly.
    NormedHalf,
}

impl Codec {
    /// Bytes of one code of a vector of `dim` dimensions.
    pub const fn code_size(self, dim: usize) -> usize {
        match self {
            Codec::Flat => dim * FLOAT,
            Codec::Half => dim * HALF,
            Codec::NormedHalf => dim * HALF + FLOAT,
        }
    }

    /// Encodes `vectors` `(n, dim)` into `codes`, `n * code_size(dim)` bytes. What
    /// 16 bits cannot hold is rounded to the nearest, ties to even.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit.
    pub fn encode(self, dim: usize, vectors: &[f32], codes: &mut [u8]) -> Result<(), FaissError> {
        let n = crate::distance::rows(dim, vectors, "vectors")?;
        let size = self.code_size(dim);
        if codes.len() != n * size {
            return Err(FaissError::invalid(format!(
                "{n} codes do not fit exactly into {} bytes",
                codes.len()
            )));
        }
        for (vector, code) in vectors.chunks_exact(dim).zip(codes.chunks_exact_mut(size)) {
            match self {
                Codec::Flat => put_floats(vector, code),
                Codec::Half => put_halves(vector, code),
                Codec::NormedHalf => {
                    let (halves, norm) = code.split_at_mut(dim * HALF);
                    put_halves(vector, halves);
                    put_floats(&[reciprocal_length(vector)], norm);
                }
            }
        }
        Ok(())
    }

    /// Appends to `out` the vector of `dim` dimensions that a code holds, as it is
    /// compared.
    ///
    /// # Errors
    /// `InvalidArgument` when the code has another length.
    pub fn decode(self, dim: usize, code: &[u8], out: &mut Vec<f32>) -> Result<(), FaissError> {
        if code.len() != self.code_size(dim) {
            return Err(FaissError::invalid(format!(
                "{} bytes are no code of {dim} dimensions",
                code.len()
            )));
        }
        let halves = |bytes: &[u8], scale: f32| -> Vec<f32> {
            let halves = bytes.chunks_exact(HALF);
            let values = halves.map(|half| f16::from_ne_bytes([half[0], half[1]]).to_f32());
            values.map(|value| value * scale).collect()
        };
        match self {
            Codec::Flat => out.extend(code.chunks_exact(FLOAT).map(float)),
            Codec::Half => out.extend(halves(code, 1.0)),
            Codec::NormedHalf => {
                let (bytes, norm) = code.split_at(dim * HALF);
                out.extend(halves(bytes, float(norm)));
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
        if query.is_empty() {
            return Err(FaissError::invalid("a query needs at least one dimension"));
        }
        let query = query.to_vec();
        Ok(match self {
            Codec::Flat => Box::new(FlatScanner { metric, query }),
            Codec::Half | Codec::NormedHalf => Box::new(HalfScanner {
                codec: self,
                metric,
                query,
            }),
        })
    }
}

/// Appends the values of 16-bit floats, given by their bits, to `out`.
pub fn extend_from_halves(bits: &[u16], out: &mut Vec<f32>) {
    use half::slice::HalfBitsSliceExt;
    let begin = out.len();
    out.resize(begin + bits.len(), 0.0);
    let halves: &[f16] = bits.reinterpret_cast();
    halves.convert_to_f32_slice(&mut out[begin..]);
}

fn put_floats(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.chunks_exact_mut(FLOAT).zip(values) {
        bytes.copy_from_slice(&value.to_ne_bytes());
    }
}

fn put_halves(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.chunks_exact_mut(HALF).zip(values) {
        bytes.copy_from_slice(&f16::from_f32(*value).to_ne_bytes());
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// 0 for a zero vector.
fn reciprocal_length(vector: &[f32]) -> f32 {
    let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if squares > 0.0 {
        (1.0 / squares.sqrt()) as f32
    } else {
        0.0
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

/// The bytes of `n` codes, after a look at all lengths.
fn codes_of<'a>(
    codes: &'a [u8],
    n: usize,
    size: usize,
    out: &[f32],
) -> Result<&'a [u8], FaissError> {
    if out.len() != n {
        return Err(FaissError::invalid(format!(
            "{n} distances cannot be written into {} places",
            out.len()
        )));
    }
    codes.get(..n.saturating_mul(size)).ok_or_else(|| {
        FaissError::invalid(format!(
            "{n} codes of {size} bytes do not lie in {} bytes",
            codes.len()
        ))
    })
}

/// Scores codes of [`Codec::Flat`].
struct FlatScanner {
    metric: Metric,
    query: Vec<f32>,
}

impl CodeScanner for FlatScanner {
    fn code_size(&self) -> usize {
        Codec::Flat.code_size(self.query.len())
    }

    fn scan(&self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError> {
        let codes = codes_of(codes, n, self.code_size(), out)?;
        // SAFETY: every bit pattern is a float.
        let (before, vectors, after) = unsafe { codes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return distances(self.metric, &self.query, vectors, out);
        }
        // A float must lie at a multiple of four bytes; pages give that, so
        // this copy is for callers with other layouts.
        let copy: Vec<f32> = codes.chunks_exact(FLOAT).map(float).collect();
        distances(self.metric, &self.query, &copy, out)
    }
}

/// Scores codes of [`Codec::Half`] and [`Codec::NormedHalf`].
struct HalfScanner {
    codec: Codec,
    metric: Metric,
    query: Vec<f32>,
}

impl CodeScanner for HalfScanner {
    fn code_size(&self) -> usize {
        self.codec.code_size(self.query.len())
    }

    fn scan(&self, codes: &[u8], n: usize, out: &mut [f32]) -> Result<(), FaissError> {
        let size = self.code_size();
        let codes = codes_of(codes, n, size, out)?;
        FaissError::check(|message, message_bytes| {
            // SAFETY: the lengths are those that the shim is told; it reads codes at
            // any address.
            unsafe {
                ffi::faiss_ivf_half_distances(
                    self.metric.code(),
                    self.query.len(),
                    self.query.as_ptr(),
                    codes.as_ptr(),
                    size,
                    n,
                    out.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })?;
        if self.codec == Codec::NormedHalf {
            for (code, distance) in codes.chunks_exact(size).zip(out) {
                *distance *= float(&code[size - FLOAT..]);
            }
        }
        Ok(())
    }
}
