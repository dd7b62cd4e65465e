//! How the vectors of an index are coded, and how codes are compared with a query.
//!
//! A vector x is mapped to z by the transform A, belongs to the list of a centroid c, and
//! is stored as a code of its residual r = z - c. The code stands for a vector s that is
//! scored by inner products ⟨s, q⟩ alone, with the transformed query q: once a query, not
//! once a list. What else an estimate needs does not depend on the query, and lies with
//! the code in three numbers, scale, offset and error:
//!
//!   key = constant of the list + offset + scale ⟨s, q⟩,
//!
//! where a key is what sorts rows: the squared distance, or the negative inner product.
//! With the estimate r' = f s of r, δ = r - r', and y = q - c:
//!
//! - inner product: -⟨z, q⟩ = -⟨c, q⟩ - ⟨δ, c⟩ - ⟨r', q⟩ - ⟨δ, y⟩,
//! - L2: ‖z - q‖² = ‖y‖² + ‖r‖² + 2⟨r', c⟩ - 2⟨r', q⟩ - 2⟨δ, y⟩.
//!
//! Only ⟨δ, y⟩ is unknown. The query's nearest neighbours have a y that is much like r, so
//! f = ⟨r, r⟩ / ⟨r, s⟩ makes δ orthogonal to r (as in RaBitQ, Gao and Long 2024): otherwise
//! they would all seem to be farther than they are. As far as δ and y have nothing else to
//! do with each other, as in random directions, ⟨δ, y⟩ is distributed with a standard
//! deviation of ‖δ‖‖y‖ / √(d - 1). That, without ‖y‖, is the error; some of them make a
//! bound.
//!
//! A transform to fewer dimensions loses a part of x and a part of q, of lengths u and v.
//! Of these only bounds are known, which always hold: the squared distance is not smaller
//! without them, and their inner product is not greater than u v. For the latter u is
//! added to the error, and what it is multiplied with is not smaller than v.
//!
//! Refine codes are the same with the mean of the training sample in place of a
//! centroid, and without a transform.

use crate::Metric;
use crate::codec::Codec;
use crate::error::FaissError;
use crate::factory::{Code, Factory};
use crate::quantizer::Quantizer;
use crate::transform::Transform;

pub(crate) const FLOAT: usize = size_of::<f32>();
/// Vectors that are mapped or coded at once.
const CHUNK: usize = 1024;

/// How the vectors of an index are coded, with all that was learned for it.
pub struct Coding {
    factory: Factory,
    pub(crate) metric: Metric,
    /// Dimensions of the vectors.
    pub(crate) dim: usize,
    /// How vectors are stored that are stored as they are.
    pub(crate) flat: Codec,
    transform: Option<Transform>,
    pub(crate) codes: Option<Quantizer>,
    pub(crate) refine: Option<Refine>,
}

pub(crate) struct Refine {
    pub quantizer: Quantizer,
    pub mean: Vec<f32>,
}

/// Sizes of the parts of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntrySizes {
    /// Bytes of the code.
    pub code: usize,
    /// Codes lie in blocks of 32.
    pub is_packed: bool,
    /// The code loses something: scale, offset and error belong to it.
    pub is_lossy: bool,
    /// Bytes of the refine code, and whether it is lossy: it has the same numbers then.
    pub refine: Option<(usize, bool)>,
}

impl Coding {
    /// The coding of vectors of `dim` dimensions that was not trained yet.
    ///
    /// # Errors
    /// `InvalidArgument` if such vectors cannot be coded so.
    pub fn check(factory: &Factory, dim: usize) -> Result<(), FaissError> {
        let mut code_dim = dim;
        if let Some(kind) = factory.transform {
            Transform::check(kind, dim)?;
            code_dim = kind.out_dim(dim);
        }
        for (kind, dim) in [
            (factory.code.quantizer(), code_dim),
            (factory.refine.and_then(Code::quantizer), dim),
        ] {
            if let Some(kind) = kind {
                Quantizer::check(kind, dim)?;
            }
        }
        Ok(())
    }

    /// What a coding with this factory string has in an entry.
    pub fn sizes(factory: &Factory, dim: usize, flat: Codec) -> EntrySizes {
        let code_dim = factory.transform.map_or(dim, |kind| kind.out_dim(dim));
        let refine = factory.refine.map(|code| match code {
            Code::Flat => (flat.code_size(dim), false),
            Code::Lossy(kind) => (kind.code_size(dim), true),
        });
        match factory.code {
            Code::Flat => EntrySizes {
                code: flat.code_size(dim),
                is_packed: false,
                is_lossy: false,
                refine,
            },
            Code::Lossy(kind) => EntrySizes {
                code: kind.code_size(code_dim),
                is_packed: kind.is_packed(),
                is_lossy: true,
                refine,
            },
        }
    }

    /// A coding that stores vectors as they are, and learns nothing.
    pub fn flat(metric: Metric, dim: usize, flat: Codec) -> Self {
        Self {
            factory: Factory::FLAT,
            metric,
            dim,
            flat,
            transform: None,
            codes: None,
            refine: None,
        }
    }

    /// Learns what has to be known before the centroids: the refine codes and the
    /// transform. `sample` `(n, dim)` is mapped, in place, to `(n, code_dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` if such vectors cannot be coded so, `Interrupted` if
    /// `is_interrupted` says so.
    pub fn train(
        factory: &Factory,
        metric: Metric,
        dim: usize,
        flat: Codec,
        sample: &mut Vec<f32>,
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<Self, FaissError> {
        Self::check(factory, dim)?;
        let mut coding = Self {
            factory: *factory,
            ..Self::flat(metric, dim, flat)
        };
        if let Some(kind) = factory.refine.and_then(Code::quantizer) {
            let mean = mean(dim, sample);
            let mut scratch = std::mem::take(sample);
            subtract(&mut scratch, &mean);
            let quantizer = Quantizer::train(kind, dim, &scratch, is_interrupted)?;
            add(&mut scratch, &mean);
            *sample = scratch;
            coding.refine = Some(Refine { quantizer, mean });
        }
        if let Some(kind) = factory.transform {
            let transform = Transform::train(kind, dim, sample, is_interrupted)?;
            coding.transform = Some(transform);
            coding.map_in_place(sample)?;
        }
        Ok(coding)
    }

    /// Learns the codes of residuals. `sample` `(n, code_dim)` are mapped vectors, which may
    /// become residuals in place; `centroids` is `(lists, code_dim)`.
    ///
    /// # Errors
    /// As for [`Self::train`].
    pub fn train_codes(
        &mut self,
        sample: &mut [f32],
        centroids: &[f32],
        is_interrupted: &dyn Fn() -> bool,
    ) -> Result<(), FaissError> {
        let Code::Lossy(kind) = self.factory.code else {
            return Ok(());
        };
        let dim = self.code_dim();
        if !kind.is_trained() {
            let any = &sample[..sample.len().min(dim)];
            self.codes = Some(Quantizer::train(kind, dim, any, is_interrupted)?);
            return Ok(());
        }
        let mut lists = vec![0; CHUNK];
        for chunk in sample.chunks_mut(CHUNK * dim) {
            let lists = &mut lists[..chunk.len() / dim];
            if centroids.len() > dim {
                crate::assign(self.metric, dim, centroids, chunk, lists)?;
            }
            for (vector, list) in chunk.chunks_exact_mut(dim).zip(lists) {
                let at = *list as usize * dim;
                subtract(vector, &centroids[at..at + dim]);
            }
            if is_interrupted() {
                return Err(FaissError::Interrupted);
            }
        }
        self.codes = Some(Quantizer::train(kind, dim, sample, is_interrupted)?);
        Ok(())
    }

    /// What was learned, as bytes.
    pub fn state(&self) -> Vec<u8> {
        let mut state = Vec::new();
        if let Some(transform) = &self.transform {
            state.extend(transform.state());
        }
        if let Some(codes) = &self.codes {
            state.extend(codes.state());
        }
        if let Some(refine) = &self.refine {
            state.extend(refine.quantizer.state());
            state.extend(refine.mean.iter().flat_map(|value| value.to_ne_bytes()));
        }
        state
    }

    /// Length of [`Self::state`].
    pub fn state_len(&self) -> usize {
        let transform = self.transform.as_ref().map_or(0, |transform| {
            Transform::state_size(transform.kind(), self.dim)
        });
        let quantizer = |codes: &Quantizer| Quantizer::state_size(codes.kind(), codes.dim());
        let refine = self.refine.as_ref().map_or(0, |refine| {
            quantizer(&refine.quantizer) + refine.mean.len() * FLOAT
        });
        transform + self.codes.as_ref().map_or(0, quantizer) + refine
    }

    /// The coding that [`Self::state`] was taken of.
    ///
    /// # Errors
    /// `InvalidArgument` if the bytes are not of such a coding.
    pub fn from_state(
        factory: &Factory,
        metric: Metric,
        dim: usize,
        flat: Codec,
        state: &[u8],
    ) -> Result<Self, FaissError> {
        Self::check(factory, dim)?;
        let mut rest = state;
        let mut take = |len: usize| {
            let (taken, left) = rest
                .split_at_checked(len)
                .ok_or_else(|| FaissError::invalid("the state of the codes is too short"))?;
            rest = left;
            Ok::<_, FaissError>(taken)
        };
        let mut coding = Self {
            factory: *factory,
            ..Self::flat(metric, dim, flat)
        };
        if let Some(kind) = factory.transform {
            let bytes = take(Transform::state_size(kind, dim))?;
            coding.transform = Some(Transform::from_state(kind, dim, bytes)?);
        }
        if let Some(kind) = factory.code.quantizer() {
            let dim = coding.code_dim();
            let bytes = take(Quantizer::state_size(kind, dim))?;
            coding.codes = Some(Quantizer::from_state(kind, dim, bytes)?);
        }
        if let Some(kind) = factory.refine.and_then(Code::quantizer) {
            let quantizer =
                Quantizer::from_state(kind, dim, take(Quantizer::state_size(kind, dim))?)?;
            let mean: Vec<f32> = take(dim * FLOAT)?.chunks_exact(FLOAT).map(float).collect();
            if !mean.iter().all(|value| value.is_finite()) {
                return Err(FaissError::invalid("the mean is not finite"));
            }
            coding.refine = Some(Refine { quantizer, mean });
        }
        if rest.is_empty() {
            Ok(coding)
        } else {
            Err(FaissError::invalid("the state of the codes is too long"))
        }
    }

    /// The factory string that this is of.
    pub fn factory(&self) -> &Factory {
        &self.factory
    }

    /// Dimensions of centroids and codes.
    pub fn code_dim(&self) -> usize {
        self.transform.as_ref().map_or(self.dim, Transform::out_dim)
    }

    /// Whether codes lose something, so that keys are estimates.
    pub fn is_lossy(&self) -> bool {
        self.codes.is_some()
    }

    /// Whether the entry has the vector itself.
    pub fn is_exact(&self) -> bool {
        self.codes.is_none() || self.factory.refine == Some(Code::Flat)
    }

    /// Maps vectors `(n, dim)`, as they are compared, to `(n, code_dim)`. What a float
    /// cannot hold becomes the largest that it can.
    ///
    /// # Errors
    /// `InvalidArgument` when a component is not finite or the length does not fit.
    pub fn map(&self, vectors: &[f32]) -> Result<Vec<f32>, FaissError> {
        match &self.transform {
            None => Ok(vectors.to_vec()),
            Some(transform) => {
                let mut mapped = Vec::new();
                transform.apply(vectors, &mut mapped)?;
                for value in mapped.iter_mut().filter(|value| !value.is_finite()) {
                    *value = value.clamp(f32::MIN, f32::MAX).max(f32::MIN);
                }
                Ok(mapped)
            }
        }
    }

    fn map_in_place(&self, vectors: &mut Vec<f32>) -> Result<(), FaissError> {
        let (dim, code_dim) = (self.dim, self.code_dim());
        let (mut read, mut written) = (0, 0);
        while read < vectors.len() {
            let end = vectors.len().min(read + CHUNK * dim);
            let mapped = self.map(&vectors[read..end])?;
            vectors[written..written + mapped.len()].copy_from_slice(&mapped);
            written += mapped.len();
            read = end;
        }
        debug_assert_eq!(written * dim, read * code_dim);
        vectors.truncate(written);
        Ok(())
    }

    /// The squared length of what the transform loses of a vector.
    pub(crate) fn lost(&self, vector: &[f32], mapped: &[f32]) -> f64 {
        if mapped.len() < vector.len() {
            (squared(vector) - squared(mapped)).max(0.0)
        } else {
            0.0
        }
    }
}

/// Whether a component is infinite, or [`Coding::map`] has made it the largest float.
pub(crate) fn is_cut_off(vector: &[f32]) -> bool {
    // Without an early exit, so that the compiler can vectorise.
    let is_whole = |all, value: &f32| all & (value.abs() < f32::MAX);
    !vector.iter().fold(true, is_whole)
}

/// The squared length of a vector.
pub fn squared(vector: &[f32]) -> f64 {
    dot(vector, vector)
}

pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    // Side by side, so that the compiler can vectorise.
    let mut sums = [0.0; 8];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    for ((sum, a), b) in sums.iter_mut().zip(a_rest).zip(b_rest) {
        *sum += f64::from(*a) * f64::from(*b);
    }
    sums.iter().sum()
}

/// Subtracts `center` from each of `vectors`.
pub(crate) fn subtract(vectors: &mut [f32], center: &[f32]) {
    for vector in vectors.chunks_exact_mut(center.len()) {
        for (value, center) in vector.iter_mut().zip(center) {
            *value -= center;
        }
    }
}

fn add(vectors: &mut [f32], center: &[f32]) {
    for vector in vectors.chunks_exact_mut(center.len()) {
        for (value, center) in vector.iter_mut().zip(center) {
            *value += center;
        }
    }
}

fn mean(dim: usize, vectors: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0; dim];
    for vector in vectors.chunks_exact(dim) {
        for (sum, value) in sums.iter_mut().zip(vector) {
            *sum += f64::from(*value);
        }
    }
    let count = (vectors.len() / dim).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

pub(crate) fn float(bytes: &[u8]) -> f32 {
    f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
