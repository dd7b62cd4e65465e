//! Inner products of a query with codes of a byte a component, in integers.
//!
//! A code stands for least + width (c + ½) / 255 in each dimension, so that with the query q
//!
//!   ⟨q, x⟩ = Σ q (least + width / 510) + Σ w c,   w = q width / 255.
//!
//! The weights w become integers W of 16 bits with w = u W + e, and ⟨W, c⟩ is a sum of
//! integers, of which a processor makes some ten times as many as it decodes codes to floats.
//! Of what is left, Σ e c, the middle 127.5 Σ e is known, and it is off by no more than
//! 127.5 Σ |e|.

use std::sync::Arc;

use crate::coder::Coder;
use crate::ffi;

/// Codes have as many steps.
const STEPS: f64 = 255.0;
/// The largest weight.
const LARGEST: f64 = i16::MAX as f64;
/// The largest sum.
const LARGEST_SUM: f64 = i32::MAX as f64;

/// A query, prepared for codes of `SQ8`.
#[derive(Debug)]
pub(crate) struct ByteScan {
    /// W, of `(dim)`
    weights: Vec<i16>,
    /// u
    unit: f64,
    /// What does not depend on the code.
    constant: f64,
    error: f32,
    /// Sums of a call.
    sums: Vec<i32>,
}

impl ByteScan {
    /// For a quantizer of 8 bits of as many dimensions as the query has.
    pub(crate) fn new(coder: &Arc<Coder>, query: &[f32]) -> Self {
        let (least, width) = coder.trained().split_at(query.len());
        assert_eq!(width.len(), query.len());
        let mut constant = 0.0;
        let weights: Vec<f64> = (query.iter().zip(least).zip(width))
            .map(|((query, least), width)| {
                let (query, width) = (f64::from(*query), f64::from(*width));
                constant += query * (f64::from(*least) + width / (2.0 * STEPS));
                query * width / STEPS
            })
            .collect();
        let unit = unit(&weights);
        let mut left = 0.0;
        let mut error = 0.0;
        let weights = (weights.into_iter())
            .map(|weight| {
                // `unit` keeps it within 16 bits.
                let whole = (weight / unit).round();
                let rest = weight - unit * whole;
                left += rest;
                error += rest.abs();
                whole as i16
            })
            .collect();
        Self {
            weights,
            unit,
            constant: constant + left * STEPS / 2.0,
            error: (error * STEPS / 2.0) as f32,
            sums: Vec::new(),
        }
    }

    pub(crate) fn code_size(&self) -> usize {
        self.weights.len()
    }

    /// A score is off by no more than this.
    pub(crate) fn error(&self) -> f32 {
        self.error
    }

    /// Scores as many codes as `out` has places; `codes` holds exactly these.
    pub(crate) fn scan(&mut self, codes: &[u8], out: &mut [f32]) {
        self.sums.clear();
        self.sums.resize(out.len(), 0);
        products(&self.weights, codes, &mut self.sums);
        for (out, sum) in out.iter_mut().zip(&self.sums) {
            *out = self.whole(*sum);
        }
    }

    /// The score of one code.
    pub(crate) fn score(&self, code: &[u8]) -> f32 {
        let mut sum = [0];
        products(&self.weights, code, &mut sum);
        self.whole(sum[0])
    }

    fn whole(&self, sum: i32) -> f32 {
        (self.constant + self.unit * f64::from(sum)) as f32
    }
}

/// The smallest unit with which neither a weight nor a sum of products is too large.
fn unit(weights: &[f64]) -> f64 {
    let sizes = weights.iter().map(|weight| weight.abs());
    let largest = sizes.clone().fold(0.0, f64::max);
    // Rounding may add half to each weight.
    let room = LARGEST_SUM / STEPS - weights.len() as f64;
    let unit = (largest / LARGEST).max(sizes.sum::<f64>() / room);
    if unit.is_normal() { unit } else { 1.0 }
}

/// Inner products of the weights with as many codes as `sums` has places.
fn products(weights: &[i16], codes: &[u8], sums: &mut [i32]) {
    assert_eq!(codes.len(), sums.len() * weights.len());
    // SAFETY: the lengths are those that the shim is told, and with the unit of these
    // weights no sum overflows.
    unsafe {
        ffi::faiss_ivf_code_products(
            weights.len(),
            weights.as_ptr(),
            codes.as_ptr(),
            sums.len(),
            sums.as_mut_ptr(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No choice of weights lets the largest sum of products overflow.
    #[test]
    fn units_leave_room() {
        for dim in [1, 2, 384, 2000, 4096] {
            for weights in [
                vec![1e-30; dim],
                vec![3e38; dim],
                (0..dim).map(|i| if i == 0 { 1.0 } else { 1e-9 }).collect(),
            ] {
                let unit = unit(&weights);
                let whole = weights.iter().map(|weight| (weight / unit).round());
                assert!(whole.clone().all(|weight| weight <= LARGEST));
                assert!(whole.sum::<f64>() * STEPS <= LARGEST_SUM);
            }
        }
        assert_eq!(unit(&[0.0; 3]), 1.0);
    }
}
