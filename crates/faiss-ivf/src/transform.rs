//! Linear maps before vectors are put into lists: FAISS's `LinearTransform`s, without
//! what some of them add. FAISS subtracts the mean before it takes principal components;
//! that changes no distance, but it would change inner products. Its random rotation is a
//! matrix, ours a [`Rotation`].

use std::ptr::NonNull;

use faiss::index::NativeIndex;

use crate::distance::{check_finite, rows};
use crate::error::FaissError;
use crate::poll::polled;
use crate::quantizer::floats;
use crate::rotation::Rotation;
use crate::{Metric, ffi, scale, threads};

/// How the map `y = A x` is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransformKind {
    /// A random rotation, the same for each sample (FAISS: `RR`). It keeps lengths
    /// and inner products, and takes `dim` log `dim` operations.
    RandomRotation,
    /// The first `out` principal components of vectors around their mean (FAISS:
    /// `PCA<out>`).
    Pca {
        /// The number of components, at most that of dimensions.
        out: usize,
    },
    /// A rotation and projection after which a product quantizer of `m` parts of 8
    /// bits loses little (Ge, He, Ke and Sun, "Optimized product quantization for
    /// approximate nearest neighbor search", CVPR 2013; FAISS: `OPQ<m>_<out>`, or
    /// `OPQ<m>` for as many dimensions as before).
    Opq {
        /// The number of parts of the product quantizer, a divisor of the dimensions after.
        m: usize,
        /// The number of dimensions after, at most that before, which it is by default.
        out: Option<usize>,
    },
}

impl TransformKind {
    /// The number of dimensions that become of `dim`.
    pub const fn out_dim(self, dim: usize) -> usize {
        match self {
            TransformKind::RandomRotation | TransformKind::Opq { out: None, .. } => dim,
            TransformKind::Pca { out } | TransformKind::Opq { out: Some(out), .. } => out,
        }
    }
}

/// A trained [`TransformKind`].
#[derive(Debug)]
pub struct Transform {
    map: Map,
    kind: TransformKind,
    dim: usize,
}

#[derive(Debug)]
enum Map {
    Rotation(Rotation),
    Matrix(Matrix),
}

/// A `LinearTransform` of FAISS.
#[derive(Debug)]
struct Matrix(NonNull<ffi::Transform>);

// SAFETY: the object is never changed after it was made, and FAISS reads it from
// many threads itself.
unsafe impl Send for Matrix {}
// SAFETY: as above.
unsafe impl Sync for Matrix {}

impl Drop for Matrix {
    fn drop(&mut self) {
        // SAFETY: the shim made it, and nobody else owns it.
        unsafe { ffi::faiss_ivf_transform_free(self.0.as_ptr()) };
    }
}

impl Matrix {
    /// Of the values `(out, dim)`.
    fn new(dim: usize, out: usize, values: &[f32]) -> Result<Self, FaissError> {
        debug_assert_eq!(values.len(), dim * out);
        check_finite(values, "values of a transform")?;
        let mut handle = std::ptr::null_mut();
        FaissError::check(|message, message_bytes| {
            // SAFETY: the matrix has this length. The shim copies it.
            unsafe {
                ffi::faiss_ivf_transform_new(
                    dim,
                    out,
                    values.as_ptr(),
                    &mut handle,
                    message,
                    message_bytes,
                )
            }
        })?;
        NonNull::new(handle)
            .map(Self)
            .ok_or(FaissError::OutOfMemory)
    }

    /// Writes what becomes of `vectors` `(n, dim)` to `mapped` `(n, out)`.
    fn apply(&self, vectors: &[f32], n: usize, mapped: &mut [f32]) -> Result<(), FaissError> {
        FaissError::check(|message, message_bytes| {
            // SAFETY: the slices hold n vectors before and after.
            unsafe {
                ffi::faiss_ivf_transform_apply(
                    self.0.as_ptr(),
                    vectors.as_ptr(),
                    n,
                    mapped.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    }
}

impl Transform {
    /// Whether vectors of `dim` dimensions can be mapped so.
    ///
    /// # Errors
    /// `InvalidArgument` says why not.
    pub fn check(kind: TransformKind, dim: usize) -> Result<(), FaissError> {
        rows(dim, &[], "vectors")?;
        let out = kind.out_dim(dim);
        if out == 0 || out > dim {
            return Err(FaissError::invalid(format!(
                "{dim} dimensions cannot become {out}"
            )));
        }
        if let TransformKind::Opq { m, .. } = kind
            && (m == 0 || !out.is_multiple_of(m))
        {
            return Err(FaissError::invalid(format!(
                "{out} dimensions cannot be cut into {m} equal parts"
            )));
        }
        let values = dim.checked_mul(dim);
        if values.is_none_or(|values| i32::try_from(values).is_err()) {
            return Err(FaissError::invalid(format!(
                "{dim} dimensions are too many for a matrix"
            )));
        }
        Ok(())
    }

    /// Finds the map for vectors such as `sample` `(n, dim)`. The same sample and
    /// number of threads give the same map, as long as BLAS is the same: store it.
    ///
    /// `interrupted` is asked as by [`kmeans`](crate::kmeans), but not during a
    /// decomposition of a matrix `(dim, dim)`: `Opq` makes 50 of these, the others one.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit, there is no vector, or a value
    /// is not finite; `Interrupted`; `OutOfMemory`.
    pub fn train(
        kind: TransformKind,
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
        let out = kind.out_dim(dim);
        let values = match kind {
            TransformKind::RandomRotation => {
                let map = Map::Rotation(Rotation::new(dim));
                return Ok(Self { map, kind, dim });
            }
            TransformKind::Pca { out } => principal_components(dim, out, sample)?,
            TransformKind::Opq { m, .. } => optimized_rotation(dim, m, out, sample, interrupted)?,
        };
        let map = Map::Matrix(Matrix::new(dim, out, &values)?);
        Ok(Self { map, kind, dim })
    }

    /// Bytes of what [`state`](Self::state) returns.
    pub const fn state_size(kind: TransformKind, dim: usize) -> usize {
        match kind {
            TransformKind::RandomRotation => Rotation::state_size(dim),
            _ => dim * kind.out_dim(dim) * size_of::<f32>(),
        }
    }

    /// What has to be stored to make this map again: the signs of a rotation with a
    /// checksum, otherwise the matrix `(out, dim)`, floats in the byte order of the machine.
    pub fn state(&self) -> Vec<u8> {
        let matrix = match &self.map {
            Map::Rotation(rotation) => return rotation.state(),
            // SAFETY: the object owns a matrix of this length, by which it was made, and it
            // neither moves nor changes while the object lives.
            Map::Matrix(matrix) => unsafe {
                let values = ffi::faiss_ivf_transform_matrix(matrix.0.as_ptr());
                std::slice::from_raw_parts(values, self.dim * self.out_dim())
            },
        };
        matrix
            .iter()
            .flat_map(|value| value.to_ne_bytes())
            .collect()
    }

    /// Makes the map whose [`state`](Self::state) was stored.
    ///
    /// # Errors
    /// `InvalidArgument` when `state` cannot be one of this kind and dimension;
    /// `OutOfMemory`.
    pub fn from_state(kind: TransformKind, dim: usize, state: &[u8]) -> Result<Self, FaissError> {
        Self::check(kind, dim)?;
        let map = if kind == TransformKind::RandomRotation {
            Map::Rotation(Rotation::from_state(dim, state)?)
        } else {
            let values = floats(state, Self::state_size(kind, dim))?;
            Map::Matrix(Matrix::new(dim, kind.out_dim(dim), &values)?)
        };
        Ok(Self { map, kind, dim })
    }

    /// How the map was found.
    pub fn kind(&self) -> TransformKind {
        self.kind
    }

    /// The number of dimensions before.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The number of dimensions after.
    pub fn out_dim(&self) -> usize {
        self.kind.out_dim(self.dim)
    }

    /// Appends what becomes of `vectors` `(n, dim)` to `out`: `(n, out_dim)`.
    ///
    /// It cannot be interrupted: give it vectors in batches. Matrices use the threads of
    /// [`set_threads`](crate::set_threads).
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit or a component is not finite.
    pub fn apply(&self, vectors: &[f32], out: &mut Vec<f32>) -> Result<(), FaissError> {
        let n = rows(self.dim, vectors, "vectors")?;
        // BLAS counts rows with 32 bits.
        if i32::try_from(n).is_err() {
            return Err(FaissError::invalid(format!("{n} vectors are too many")));
        }
        check_finite(vectors, "vectors")?;
        let len = n * self.out_dim();
        out.try_reserve(len).map_err(|_| FaissError::OutOfMemory)?;
        let begin = out.len();
        out.resize(begin + len, 0.0);
        if n == 0 {
            return Ok(());
        }
        let mapped = &mut out[begin..];
        match &self.map {
            Map::Rotation(rotation) => {
                mapped.copy_from_slice(vectors);
                rotation.apply(mapped);
                Ok(())
            }
            Map::Matrix(matrix) => {
                let run = || matrix.apply(vectors, n, mapped);
                threads::for_size(vectors.len().saturating_mul(self.out_dim()), run)
            }
        }
    }
}

/// `sample` `(n, dim)` around its mean, divided by a [`scale::unit`], as which FAISS can
/// square and sum it. All vectors are repeated equally often, until there are `rows`.
fn centred(dim: usize, sample: &[f32], rows: usize) -> Result<Vec<f32>, FaissError> {
    let n = sample.len() / dim;
    let mut mean = vec![0.0; dim];
    for row in sample.chunks_exact(dim) {
        for (sum, &x) in mean.iter_mut().zip(row) {
            *sum += f64::from(x) / n as f64;
        }
    }
    let differences = || {
        let rows = sample.chunks_exact(dim);
        rows.flat_map(|row| row.iter().zip(&mean).map(|(&x, mean)| f64::from(x) - mean))
    };
    let largest = differences().fold(0.0f64, |largest, x| largest.max(x.abs()));
    let factor = 1.0 / scale::unit(largest);
    let repeats = rows.div_ceil(n);
    let mut vectors = Vec::new();
    vectors
        .try_reserve_exact(sample.len() * repeats)
        .map_err(|_| FaissError::OutOfMemory)?;
    vectors.extend(differences().map(|x| (x * factor) as f32));
    for _ in 1..repeats {
        vectors.extend_from_within(..sample.len());
    }
    Ok(vectors)
}

fn principal_components(dim: usize, out: usize, sample: &[f32]) -> Result<Vec<f32>, FaissError> {
    // With fewer vectors than dimensions FAISS finds directions that are not at
    // right angles where vectors are not independent.
    let vectors = centred(dim, sample, dim)?;
    let mut matrix = vec![0.0; out * dim];
    let run = || {
        FaissError::check(|message, message_bytes| {
            // SAFETY: the slices hold as many vectors and directions.
            unsafe {
                ffi::faiss_ivf_principal_components(
                    dim,
                    out,
                    vectors.as_ptr(),
                    vectors.len() / dim,
                    matrix.as_mut_ptr(),
                    message,
                    message_bytes,
                )
            }
        })
    };
    threads::for_size(vectors.len().saturating_mul(dim), run)?;
    Ok(matrix)
}

fn optimized_rotation(
    dim: usize,
    m: usize,
    out: usize,
    sample: &[f32],
    interrupted: &dyn Fn() -> bool,
) -> Result<Vec<f32>, FaissError> {
    // As many vectors as the product quantizer has centroids.
    let vectors = centred(dim, sample, 256)?;
    let mut matrix = vec![0.0; out * dim];
    polled(interrupted, &mut |_| (), |poll| {
        poll.with_index(Metric::L2, out / m, |index| {
            FaissError::check(|message, message_bytes| {
                // SAFETY: the slices hold as many vectors and rows; the index is for
                // parts of the vectors after.
                unsafe {
                    ffi::faiss_ivf_optimized_rotation(
                        dim,
                        out,
                        m,
                        vectors.as_ptr(),
                        vectors.len() / dim,
                        index.inner_ptr(),
                        matrix.as_mut_ptr(),
                        message,
                        message_bytes,
                    )
                }
            })
        })
    })?;
    Ok(matrix)
}
