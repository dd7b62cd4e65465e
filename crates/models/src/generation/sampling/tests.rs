//! Against the probabilities of transformers, which tools/fixtures/sampling.py stored.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Goldens {
    /// Null where a token is forbidden.
    logits: Vec<Option<f32>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    probabilities: Vec<f64>,
}

impl Case {
    fn sampler(&self, seed: u64) -> Sampler {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: Some(seed),
        };
        sampling.check().unwrap();
        Sampler::new(&sampling).unwrap()
    }
}

fn goldens() -> (Vec<f32>, Vec<Case>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sampling.json");
    let goldens: Goldens = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let logits = goldens.logits.iter();
    let logits = logits.map(|logit| logit.unwrap_or(f32::NEG_INFINITY));
    (logits.collect(), goldens.cases)
}

fn sampling(seed: Option<u64>) -> Sampling {
    Sampling {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        seed,
    }
}

#[test]
fn probabilities_are_those_of_transformers() {
    let (logits, cases) = goldens();
    assert!(cases.len() > 8);
    for (index, case) in cases.iter().enumerate() {
        let mut sampler = case.sampler(1);
        let weights = sampler.warp(&logits, 1).unwrap();
        let total: f64 = weights.iter().sum();
        let mut probabilities = vec![0.0; logits.len()];
        for (weight, (token, _)) in weights.iter().zip(&sampler.candidates) {
            probabilities[*token as usize] = weight / total;
        }
        for (token, expected) in case.probabilities.iter().enumerate() {
            let actual = probabilities[token];
            assert_eq!(actual > 0.0, *expected > 0.0, "case {index}, token {token}");
            assert!(
                (actual - expected).abs() < 1e-6,
                "case {index}, token {token}"
            );
        }
    }
}

/// Pearson's chi-square of draws against probabilities, and its degrees of freedom.
fn chi_square(counts: &[usize], probabilities: &[f64]) -> (f64, usize) {
    let draws = counts.iter().sum::<usize>() as f64;
    let (mut sum, mut classes) = (0.0, 0);
    // Classes with few expected draws are put together, as the test demands.
    let mut rare = (0.0, 0.0);
    for (count, probability) in counts.iter().zip(probabilities) {
        let (count, expected) = (*count as f64, draws * probability);
        if expected < 8.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            sum += (count - expected).powi(2) / expected;
            classes += 1;
        }
    }
    if rare.1 > 0.0 {
        sum += (rare.0 - rare.1).powi(2) / rare.1;
        classes += 1;
    }
    (sum, classes - 1)
}

#[test]
fn draws_follow_the_probabilities() {
    const DRAWS: usize = 40_000;
    let (logits, cases) = goldens();
    for (index, case) in cases.iter().enumerate() {
        let mut sampler = case.sampler(7 + index as u64);
        let mut counts = vec![0; logits.len()];
        for _ in 0..DRAWS {
            counts[sampler.draw(&logits).unwrap() as usize] += 1;
        }
        for (count, probability) in counts.iter().zip(&case.probabilities) {
            assert!(*count == 0 || *probability > 0.0, "case {index}");
        }
        let (sum, freedom) = chi_square(&counts, &case.probabilities);
        // Mean and deviation of chi-square are n and sqrt(2 n): 4 deviations are
        // beyond a chance of 1 in 1000 for all n here.
        let freedom = freedom as f64;
        assert!(
            sum <= freedom + 4.0 * (2.0 * freedom).sqrt(),
            "case {index}: {sum}"
        );
    }
}

#[test]
fn a_wrong_distribution_is_found_out() {
    let (logits, cases) = goldens();
    let mut sampler = cases[1].sampler(1);
    let mut counts = vec![0; logits.len()];
    for _ in 0..40_000 {
        counts[sampler.draw(&logits).unwrap() as usize] += 1;
    }
    let (sum, freedom) = chi_square(&counts, &cases[0].probabilities);
    assert!(sum > 100.0 * freedom as f64);
}

#[test]
fn a_seed_repeats_its_draws_and_the_system_gives_others() {
    let scores = [0.0; 64];
    let draws = |seed| -> Vec<u32> {
        let mut sampler = Sampler::new(&sampling(seed)).unwrap();
        (0..32).map(|_| sampler.draw(&scores).unwrap()).collect()
    };
    assert_eq!(draws(Some(5)), draws(Some(5)));
    assert_ne!(draws(Some(5)), draws(Some(6)));
    assert_ne!(draws(None), draws(None));
}

#[test]
fn seeds_mean_the_same_in_every_version() {
    const GOLDEN: [u32; 6] = [473, 457, 363, 594, 965, 585];
    let mut sampler = Sampler::new(&sampling(Some(42))).unwrap();
    let drawn: Vec<u32> = (0..6)
        .map(|_| sampler.draw(&[0.0; 1000]).unwrap())
        .collect();
    assert_eq!(drawn, GOLDEN);
}

#[test]
fn scores_that_cannot_be_sampled_are_an_error() {
    let mut sampler = Sampler::new(&sampling(Some(1))).unwrap();
    for scores in [
        [0.0, f32::NAN],
        [f32::NEG_INFINITY; 2],
        [0.0, f32::INFINITY],
    ] {
        assert!(sampler.draw(&scores).is_err());
    }
    assert_eq!(sampler.draw(&[f32::NEG_INFINITY, -3.0]).unwrap(), 1);
}
