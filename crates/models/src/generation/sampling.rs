//! Sampling of the next token: the warpers of transformers' `generate` in their
//! order (temperature, the likeliest k, the likeliest that have a probability
//! together), then a draw.

use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};

use super::config::invalid;
use super::not_a_number;
use crate::error::{ErrorKind, ModelError};

/// How tokens are sampled.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    /// Divides the scores.
    pub(super) temperature: f32,
    /// Sample among so many of the likeliest tokens, and those that equal the
    /// last of them; 0 is all.
    pub(super) top_k: usize,
    /// Sample among the fewest likeliest tokens that together have this
    /// probability (Holtzman et al. 2020); 1 is all.
    pub(super) top_p: f32,
    /// Where the random numbers begin; from the operating system if there is none.
    pub(super) seed: Option<u64>,
}

impl Sampling {
    pub(super) fn check(&self) -> Result<(), ModelError> {
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return Err(invalid(
                "temperature",
                self.temperature,
                "It must be a number greater than 0.",
            )
            .with_hint("For the likeliest tokens set do_sample to false."));
        }
        if !(0.0..=1.0).contains(&self.top_p) {
            return Err(invalid("top_p", self.top_p, "It must be between 0 and 1."));
        }
        Ok(())
    }
}

/// Draws the tokens of one input's sequences. Each has random numbers of its own, so that
/// with a seed it does not matter what else is in the batch.
#[derive(Debug)]
pub(super) struct Sampler {
    sampling: Sampling,
    random: ChaCha12Rng,
    /// Tokens that may be drawn with their scores, likeliest first.
    candidates: Vec<(u32, f32)>,
}

impl Sampler {
    /// Errors: [`ErrorKind::Internal`] where the operating system gives no seed.
    pub(super) fn new(sampling: &Sampling) -> Result<Self, ModelError> {
        let random = match sampling.seed {
            Some(seed) => ChaCha12Rng::seed_from_u64(seed),
            None => ChaCha12Rng::try_from_os_rng().map_err(|error| {
                ModelError::new(ErrorKind::Internal, "could not get a seed for sampling")
                    .with_detail(format!("The system says: {error}."))
                    .with_hint("Set the generation option seed.")
            })?,
        };
        Ok(Self {
            sampling: sampling.clone(),
            random,
            candidates: Vec::new(),
        })
    }

    /// Draws the next token after its scores (logits); a score of minus infinity
    /// forbids a token.
    pub(super) fn draw(&mut self, scores: &[f32]) -> Result<u32, ModelError> {
        let probabilities = self.warp(scores, 1)?;
        let total: f64 = probabilities.iter().sum();
        let uniform = self.uniform();
        let mut rest = uniform * total;
        for (probability, (token, _)) in probabilities.iter().zip(&self.candidates) {
            if rest < *probability {
                return Ok(*token);
            }
            rest -= probability;
        }
        // Rounding may leave a rest; the last token is as likely as any.
        let last = probabilities.len() - 1;
        Ok(self.candidates[last].0)
    }

    /// Tokens that a beam may go on with, with their warped scores. Of each beam at
    /// least two stay, as in transformers: one of them may be the end.
    pub(super) fn warped(&mut self, scores: &[f32]) -> Result<&[(u32, f32)], ModelError> {
        let kept = self.warp(scores, 2)?.len();
        Ok(&self.candidates[..kept])
    }

    /// A key for something that has this logarithm of a probability (up to a common
    /// term): those with the largest keys, in their order, are draws without
    /// replacement (Kool et al. 2019, the Gumbel top-k trick).
    pub(super) fn key(&mut self, logarithm: f32) -> f64 {
        f64::from(logarithm) - (-(1.0 - self.uniform()).ln()).ln()
    }

    /// A random number from 0 up to, but not including, 1, of 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Finds the candidates, and their probabilities up to a common factor; at
    /// least `minimum` of them where there are so many.
    fn warp(&mut self, scores: &[f32], minimum: usize) -> Result<Vec<f64>, ModelError> {
        if scores.iter().any(|score| score.is_nan()) {
            return Err(not_a_number());
        }
        let temperature = self.sampling.temperature;
        let candidates = &mut self.candidates;
        candidates.clear();
        candidates.extend(
            (0..)
                .zip(scores.iter().map(|score| score / temperature))
                .filter(|(_, score)| *score > f32::NEG_INFINITY),
        );
        // Of equal ones the later token comes first: PyTorch sorts upwards and
        // keeps their order, so that the earlier is the first to be cut.
        let descending = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0));
        let top_k = match self.sampling.top_k {
            0 => candidates.len(),
            top_k => top_k.max(minimum),
        };
        if top_k < candidates.len() {
            let (_, last, _) = candidates.select_nth_unstable_by(top_k - 1, descending);
            let least = last.1;
            candidates.retain(|(_, score)| *score >= least);
        }
        candidates.sort_unstable_by(descending);
        let largest = match candidates.first() {
            Some((_, score)) if score.is_finite() => f64::from(*score),
            _ => return Err(not_a_number()),
        };
        let mut probabilities: Vec<f64> = candidates
            .iter()
            .map(|(_, score)| (f64::from(*score) - largest).exp())
            .collect();
        if self.sampling.top_p < 1.0 {
            cut_tail(&mut probabilities, self.sampling.top_p, minimum);
        }
        Ok(probabilities)
    }
}

/// Drops the least likely that have at most `1 - top_p` together, but not the first
/// `minimum`; `probabilities` fall and need not sum up to 1.
fn cut_tail(probabilities: &mut Vec<f64>, top_p: f32, minimum: usize) {
    let unwanted = (1.0 - f64::from(top_p)) * probabilities.iter().sum::<f64>();
    let mut tail = 0.0;
    let mut kept = probabilities.len();
    while kept > minimum {
        tail += probabilities[kept - 1];
        if tail > unwanted {
            break;
        }
        kept -= 1;
    }
    probabilities.truncate(kept);
}

#[cfg(test)]
mod tests;
