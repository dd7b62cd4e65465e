//! The quantizers of FAISS that encode, owned.

use std::borrow::Cow;
use std::ffi::c_int;
use std::ptr::NonNull;

use crate::error::FaissError;
use crate::product::Shape;
use crate::{ffi, threads};

/// A trained `faiss::Quantizer`.
#[derive(Debug)]
pub(crate) struct Coder {
    handle: NonNull<ffi::Quantizer>,
    dim: usize,
    code_size: usize,
    /// Vectors are divided by this, a power of two, before FAISS sees them.
    unit: f32,
    /// Components beyond this, after the division, become this.
    limit: f32,
    /// Multiplications of one component while it is encoded, for a guess whether
    /// threads are worth it.
    work: usize,
    /// Vectors that FAISS encodes in one call.
    rows_per_call: usize,
    /// The number of centroids of all parts of a product quantizer.
    tables_len: usize,
}

/// The largest number that 16 bits hold as a float.
const LARGEST_HALF: f32 = 65504.0;

/// Far beyond all centroids, and the sum of the squares of as many components as
/// there may be is still below 1e20, beyond which FAISS finds no centroid.
const FARTHEST: f32 = (1 << 24) as f32;

/// Entries of the tables of distances that FAISS makes for all vectors of a call.
const ENTRIES_PER_CALL: usize = 1 << 22;

// SAFETY: the object is never changed after it was made, and FAISS reads it from
// many threads itself.
unsafe impl Send for Coder {}
// SAFETY: as above.
unsafe impl Sync for Coder {}

impl Drop for Coder {
    fn drop(&mut self) {
        // SAFETY: the shim made it, and nobody else owns it.
        unsafe { ffi::faiss_ivf_quantizer_free(self.handle.as_ptr()) };
    }
}

impl Coder {
    /// The ranges of `sample` `(n, dim)`, at least one vector, for a scalar quantizer:
    /// the least value of each dimension, then the width of each.
    pub(crate) fn train_scalar(
        kind: c_int,
        dim: usize,
        sample: &[f32],
    ) -> Result<Vec<f32>, FaissError> {
        let mut trained = vec![0.0; 2 * dim];
        FaissError::check(|message, message_bytes| {
            // SAFETY: the sample holds that many vectors, and `trained` has room for
            // two values a dimension.
            unsafe {
                ffi::faiss_ivf_scalar_train(
                    kind,
                    dim,
                    sample.as_ptr(),
                    sample.len() / dim,
                    trained.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })?;
        Ok(trained)
    }

    /// A scalar quantizer; `trained` holds what its kind needs.
    pub(crate) fn scalar(
        kind: c_int,
        dim: usize,
        code_size: usize,
        trained: &[f32],
    ) -> Result<Self, FaissError> {
        let mut handle = std::ptr::null_mut();
        FaissError::check(|message, message_bytes| {
            // SAFETY: the shim copies `trained` and writes the pointer.
            unsafe {
                ffi::faiss_ivf_scalar_quantizer_new(
                    kind,
                    dim,
                    trained.as_ptr(),
                    trained.len(),
                    &mut handle,
                    message,
                    message_bytes,
                )
            }
        })?;
        let half = kind == ffi::SCALAR_HALF;
        Ok(Coder {
            handle: NonNull::new(handle).ok_or(FaissError::OutOfMemory)?,
            dim,
            code_size,
            unit: 1.0,
            limit: if half { LARGEST_HALF } else { f32::INFINITY },
            work: 1,
            rows_per_call: usize::MAX,
            tables_len: 0,
        })
    }

    /// A product quantizer; `centroids` `(m, 2^bits, dim / m)` are divided by `unit`.
    pub(crate) fn product(shape: Shape, unit: f32, centroids: &[f32]) -> Result<Self, FaissError> {
        let Shape { dim, m, bits } = shape;
        assert_eq!(centroids.len(), dim * shape.centroids());
        let mut handle = std::ptr::null_mut();
        FaissError::check(|message, message_bytes| {
            // SAFETY: the shim copies as many centroids and writes the pointer.
            unsafe {
                ffi::faiss_ivf_product_quantizer_new(
                    dim,
                    m,
                    bits,
                    centroids.as_ptr(),
                    &mut handle,
                    message,
                    message_bytes,
                )
            }
        })?;
        Ok(Coder {
            handle: NonNull::new(handle).ok_or(FaissError::OutOfMemory)?,
            dim,
            code_size: (m * bits).div_ceil(8),
            unit,
            limit: FARTHEST,
            work: shape.centroids(),
            rows_per_call: (ENTRIES_PER_CALL / (m * shape.centroids())).max(1),
            tables_len: m * shape.centroids(),
        })
    }

    pub(crate) fn handle(&self) -> *const ffi::Quantizer {
        self.handle.as_ptr()
    }

    pub(crate) fn code_size(&self) -> usize {
        self.code_size
    }

    /// The values that it was made of.
    pub(crate) fn trained(&self) -> &[f32] {
        let (mut values, mut len) = (std::ptr::null(), 0);
        // SAFETY: both outputs are locals.
        unsafe { ffi::faiss_ivf_quantizer_trained(self.handle(), &mut values, &mut len) };
        if len == 0 {
            return &[];
        }
        // SAFETY: the object owns these values, and they neither move nor change
        // while it lives.
        unsafe { std::slice::from_raw_parts(values, len) }
    }

    /// What values are divided by before FAISS sees them.
    pub(crate) fn unit(&self) -> f64 {
        f64::from(self.unit)
    }

    /// Writes the inner products of `query` `(dim)` with the centroids of a product
    /// quantizer to `tables` `(m, 2^bits)`.
    pub(crate) fn product_tables(
        &self,
        query: &[f32],
        tables: &mut [f32],
    ) -> Result<(), FaissError> {
        assert_eq!(query.len(), self.dim);
        assert_eq!(tables.len(), self.tables_len);
        FaissError::check(|message, message_bytes| {
            // SAFETY: the query has as many dimensions as the quantizer, the tables
            // as many entries as it has centroids.
            unsafe {
                ffi::faiss_ivf_product_tables(
                    self.handle(),
                    query.as_ptr(),
                    tables.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    }

    /// Encodes `vectors` `(n, dim)` into `codes`, `n * code_size` bytes.
    pub(crate) fn encode(&self, vectors: &[f32], codes: &mut [u8]) -> Result<(), FaissError> {
        let n = vectors.len() / self.dim;
        assert_eq!(codes.len(), n * self.code_size);
        let vectors = self.fitted(vectors);
        let run = || {
            let rows = self.rows_per_call.min(n.max(1));
            let parts = vectors.chunks(rows * self.dim);
            parts
                .zip(codes.chunks_mut(rows * self.code_size))
                .try_for_each(|(vectors, codes)| self.encode_part(vectors, codes))
        };
        threads::for_size(vectors.len().saturating_mul(self.work), run)
    }

    /// The vectors as FAISS can encode them.
    fn fitted<'a>(&self, vectors: &'a [f32]) -> Cow<'a, [f32]> {
        let fits = |x: &f32| x.abs() <= self.limit;
        if self.unit == 1.0 && vectors.iter().all(fits) {
            return Cow::Borrowed(vectors);
        }
        let factor = 1.0 / self.unit;
        let fit = |x: &f32| (x * factor).clamp(-self.limit, self.limit);
        vectors.iter().map(fit).collect()
    }

    fn encode_part(&self, vectors: &[f32], codes: &mut [u8]) -> Result<(), FaissError> {
        FaissError::check(|message, message_bytes| {
            // SAFETY: `encode` gives slices of as many vectors and codes.
            unsafe {
                ffi::faiss_ivf_quantizer_encode(
                    self.handle(),
                    vectors.as_ptr(),
                    vectors.len() / self.dim,
                    codes.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    }

    /// Decodes `codes`, `n * code_size` bytes, into `vectors` `(n, dim)`.
    pub(crate) fn decode(&self, codes: &[u8], vectors: &mut [f32]) -> Result<(), FaissError> {
        let n = codes.len() / self.code_size;
        assert_eq!(vectors.len(), n * self.dim);
        threads::alone(|| {
            FaissError::check(|message, message_bytes| {
                // SAFETY: the slices have the lengths that the shim expects.
                unsafe {
                    ffi::faiss_ivf_quantizer_decode(
                        self.handle(),
                        codes.as_ptr(),
                        n,
                        vectors.as_mut_ptr(),
                        message,
                        message_bytes,
                    )
                }
            })
        })?;
        if self.unit != 1.0 {
            vectors.iter_mut().for_each(|x| *x *= self.unit);
        }
        Ok(())
    }
}
