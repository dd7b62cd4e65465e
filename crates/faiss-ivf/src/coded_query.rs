//! How codes are compared with a query: see [`Coding`] for what is computed.

use crate::coding::{Coding, FLOAT, dot, float, is_cut_off, squared, subtract};
use crate::error::FaissError;
use crate::scorer::Scorer;
use crate::{CoarseCentroids, Metric, distances};

/// By refine codes a row is taken to be no nearer than its estimate less so many more
/// standard deviations than by codes: of few rows the refine codes are looked at.
const MORE_DEVIATIONS: f32 = 1.0;
/// Of sums of so large numbers so much is lost by rounding.
const ROUNDING: f32 = 4e-7;

impl Coding {
    /// Prepares to compare codes with `query` `(dim)`. By its code a row is taken to be
    /// no nearer than its estimate less so many standard deviations of it, or than is
    /// certain by Cauchy and Schwarz where the vectors lie behind codes of 8 bits.
    ///
    /// # Errors
    /// `InvalidArgument` when a component is not finite or the length does not fit.
    pub fn query(&self, query: &[f32], deviations: f32) -> Result<CodedQuery, FaissError> {
        let mapped = self.map(query)?;
        let lost = self.lost(query, &mapped);
        let codes = self.codes.as_ref();
        let deviations = match self.factory().is_certain() {
            // The error is ‖δ‖ / √(d - 1).
            true => (self.code_dim() as f32 - 1.0).max(1.0).sqrt(),
            false => deviations,
        };
        let refine = self.refine.as_ref().map(|refine| {
            let mut away = query.to_vec();
            subtract(&mut away, &refine.mean);
            let constant = match self.metric {
                Metric::InnerProduct => -dot(&refine.mean, query),
                Metric::L2 => squared(&away),
            };
            Ok::<_, FaissError>(RefineQuery {
                scorer: refine.quantizer.scorer(query)?,
                constant: constant as f32,
                reach: squared(&away).sqrt() as f32 * (deviations + MORE_DEVIATIONS),
            })
        });
        Ok(CodedQuery {
            metric: self.metric,
            square: squared(&mapped),
            lost,
            deviations,
            is_cut_off: is_cut_off(&mapped),
            scorer: codes.map(|codes| codes.scorer(&mapped)).transpose()?,
            refine: refine.transpose()?,
            scores: Vec::new(),
            mapped,
        })
    }
}

/// A query, prepared for the codes of one [`Coding`].
pub struct CodedQuery {
    metric: Metric,
    /// `(code_dim)`
    mapped: Vec<f32>,
    square: f64,
    /// Squared length of what the transform loses of the query.
    lost: f64,
    deviations: f32,
    /// The transform could not hold it: scores say nothing.
    is_cut_off: bool,
    /// `None` for flat codes.
    scorer: Option<Scorer>,
    refine: Option<RefineQuery>,
    scores: Vec<f32>,
}

struct RefineQuery {
    scorer: Scorer,
    constant: f32,
    /// What an error is multiplied with.
    reach: f32,
}

/// A list and a query.
#[derive(Debug, Clone, Copy)]
pub struct ListQuery {
    constant: f32,
    /// What errors are multiplied with.
    reach: f32,
}

/// What lies in a list page beside codes: 32-bit floats, `n` of each.
#[derive(Debug, Clone, Copy)]
pub struct CodeFactors<'a> {
    /// Factors of the scores.
    pub scale: &'a [u8],
    /// What is added to them.
    pub offset: &'a [u8],
    /// Their error.
    pub error: &'a [u8],
}

impl CodedQuery {
    /// The keys of centroids `(lists, code_dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` when the lengths do not fit.
    pub fn rank(&self, centroids: &[f32]) -> Result<Vec<f32>, FaissError> {
        let mut keys = vec![0.0; centroids.len() / self.mapped.len()];
        self.write_keys(centroids, &mut keys)?;
        Ok(keys)
    }

    /// The key of one centroid `(code_dim)`.
    ///
    /// # Errors
    /// `InvalidArgument` for another length.
    pub fn key(&self, centroid: &[f32]) -> Result<f32, FaissError> {
        let mut key = [0.0];
        self.write_keys(centroid, &mut key)?;
        Ok(key[0])
    }

    fn write_keys(&self, centroids: &[f32], keys: &mut [f32]) -> Result<(), FaissError> {
        distances(self.metric, &self.mapped, centroids, keys)?;
        if self.metric == Metric::InnerProduct {
            for key in keys {
                *key = 0.0 - *key;
            }
        }
        Ok(())
    }

    /// [`CoarseCentroids::estimates`] of the keys of these centroids.
    #[must_use]
    pub fn rank_coarsely(&self, centroids: &CoarseCentroids) -> Option<(Vec<f32>, f32)> {
        let (mut keys, slack) = centroids.estimates(&self.mapped)?;
        if self.metric == Metric::L2 {
            for key in &mut keys {
                *key += self.square as f32;
            }
        }
        Some((keys, slack))
    }

    /// [`gap`] of a centroid, by its key and that of the nearest one.
    #[must_use]
    pub fn gap(&self, nearest: f32, key: f32) -> f32 {
        gap(self.metric, self.square.sqrt() as f32, nearest, key)
    }

    /// The list with a centroid of this key and squared length; both 0 without centroids.
    pub fn list(&self, key: f32, square: f32) -> ListQuery {
        let (key, square) = (f64::from(key), f64::from(square));
        let away = match self.metric {
            Metric::L2 => key,
            Metric::InnerProduct => self.square + square + 2.0 * key,
        };
        // The key is a sum of floats.
        let rounding = (self.square + square + key.abs()) * f64::from(ROUNDING);
        let reach = match self.is_cut_off {
            true => f32::INFINITY,
            false => self.deviations * (away.max(0.0) + rounding).sqrt() as f32,
        };
        ListQuery {
            constant: key as f32,
            reach: reach.max(self.lost.sqrt() as f32),
        }
    }

    /// Writes for each of `n` codes of a list the least key that it may have to `bounds`.
    ///
    /// # Errors
    /// `InvalidArgument` when lengths do not fit, or if codes are flat.
    pub fn bounds(
        &mut self,
        list: ListQuery,
        codes: &[u8],
        factors: CodeFactors<'_>,
        n: usize,
        bounds: &mut Vec<f32>,
    ) -> Result<(), FaissError> {
        let scorer = self.scorer.as_mut();
        let scorer = scorer.ok_or_else(|| FaissError::invalid("flat codes have no bounds"))?;
        self.scores.resize(n, 0.0);
        scorer.scan(codes, n, &mut self.scores)?;
        let score_error = scorer.error();
        let numbers = |bytes| floats(bytes, n);
        let (scale, offset) = (numbers(factors.scale)?, numbers(factors.offset)?);
        let error = numbers(factors.error)?;
        let (constant, reach) = (list.constant, list.reach);
        let rounded = constant.abs() * ROUNDING;
        bounds.clear();
        bounds.resize(n, 0.0);
        // Slices of one length, so that the compiler makes vector operations of it.
        let (bounds, scores) = (&mut bounds[..n], &self.scores[..n]);
        let (scale, offset, error) = (&scale[..n], &offset[..n], &error[..n]);
        for i in 0..n {
            let scored = scale[i] * scores[i];
            let rounding = rounded + (offset[i].abs() + scored.abs()) * ROUNDING;
            let margin = reach * error[i] + scale[i].abs() * score_error + rounding;
            bounds[i] = known(constant + offset[i] + scored - margin);
        }
        Ok(())
    }

    /// The least key that a row may have by its lossy refine code with the factors
    /// scale, offset and error.
    ///
    /// # Errors
    /// `InvalidArgument` if there are no such codes, or for another length.
    pub fn refine(&self, code: &[u8], factors: [f32; 3]) -> Result<f32, FaissError> {
        let refine = self.refine.as_ref();
        let refine = refine.ok_or_else(|| FaissError::invalid("there are no refine codes"))?;
        let [scale, offset, error] = factors;
        let scored = scale * refine.scorer.score(code)?;
        let rounding = (refine.constant.abs() + offset.abs() + scored.abs()) * ROUNDING;
        let margin = refine.reach * error + scale.abs() * refine.scorer.error() + rounding;
        Ok(known(refine.constant + offset + scored - margin))
    }
}

/// How much farther from a query of some `length` a centroid with `key` is than the
/// nearest one, whose key is `nearest`: the difference of their distances, under the
/// inner product that of their projections on the query's direction. Neither grows with
/// the length of a query far away from all centroids, nor with its number of dimensions.
/// Not a number where keys are not, or for a query without a direction.
#[must_use]
pub fn gap(metric: Metric, length: f32, nearest: f32, key: f32) -> f32 {
    match metric {
        Metric::L2 => key.max(0.0).sqrt() - nearest.max(0.0).sqrt(),
        Metric::InnerProduct => (key - nearest) / length,
    }
}

/// A bound, or that there is none where infinities have cancelled each other.
fn known(bound: f32) -> f32 {
    bound.max(f32::NEG_INFINITY)
}

/// The first `n` floats of bytes, which are copied only where their address keeps them
/// from being read in place.
fn floats(bytes: &[u8], n: usize) -> Result<std::borrow::Cow<'_, [f32]>, FaissError> {
    let bytes = bytes
        .get(..n * FLOAT)
        .ok_or_else(|| FaissError::invalid(format!("{} bytes have no {n} floats", bytes.len())))?;
    // SAFETY: every bit pattern is a float.
    let (before, floats, after) = unsafe { bytes.align_to::<f32>() };
    Ok(if before.is_empty() && after.is_empty() {
        floats.into()
    } else {
        bytes.chunks_exact(FLOAT).map(float).collect()
    })
}
