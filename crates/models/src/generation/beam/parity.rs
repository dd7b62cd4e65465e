//! Against transformers' beam search over a model that is one table, which
//! tools/fixtures/table_model.py stored.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;

use super::super::testing::Scripted;
use super::*;
use crate::generation::{
    EarlyStopping, GenerationConfig, GenerationOverrides, StoredGenerationConfig, Watch, generate,
};

const END: u32 = 0;
const BEGIN: u32 = 11;

#[derive(Deserialize)]
struct Case {
    /// Logits of the next token by the last one.
    table: Vec<Vec<f32>>,
    searches: Vec<Searched>,
    sampled: Vec<Sampled>,
}

#[derive(Deserialize)]
struct Searched {
    #[serde(flatten)]
    options: Options,
    /// By first token, from 1.
    sequences: Vec<Vec<u32>>,
}

#[derive(Deserialize)]
struct Sampled {
    #[serde(flatten)]
    options: Options,
    /// How often each sequence came out, after [`BEGIN`].
    counts: Vec<(Vec<u32>, usize)>,
}

#[derive(Debug, Deserialize)]
struct Options {
    num_beams: u32,
    max_new_tokens: u32,
    early_stopping: Option<EarlyStopping>,
    length_penalty: Option<f32>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
}

impl Options {
    fn overrides(&self, sampling_seed: Option<u64>) -> GenerationOverrides {
        GenerationOverrides {
            num_beams: Some(self.num_beams),
            max_new_tokens: Some(self.max_new_tokens),
            early_stopping: self.early_stopping,
            length_penalty: self.length_penalty,
            temperature: self.temperature,
            top_k: self.top_k.or(Some(0)),
            top_p: self.top_p,
            do_sample: Some(sampling_seed.is_some()),
            seed: sampling_seed,
            ..GenerationOverrides::default()
        }
    }
}

fn goldens() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/beam_search.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What comes after the first token.
fn answer(case: &Case, first: u32, options: &GenerationOverrides) -> Vec<u32> {
    let config = GenerationConfig::new(&StoredGenerationConfig::default(), options).unwrap();
    let table = |_: usize, tokens: &[u32]| case.table[*tokens.last().unwrap() as usize].clone();
    let mut decoder = Scripted::new(case.table.len(), &[first], 1, table);
    let request = Request {
        config: &config,
        lengths: config.lengths(1, 512).unwrap(),
        prompt: &[first],
        inputs: 1,
        end: END,
        watch: &Watch::default(),
    };
    let mut sequence = generate(&mut decoder, &request).unwrap().remove(0).unwrap();
    sequence.remove(0);
    sequence
}

#[test]
fn searches_are_those_of_transformers() {
    let mut endings = HashMap::new();
    for case in goldens() {
        for searched in &case.searches {
            let options = searched.options.overrides(None);
            for (first, expected) in (1..).zip(&searched.sequences) {
                let found = answer(&case, first, &options);
                assert_eq!(&found, expected, "{:?} after {first}", searched.options);
            }
            let of = (
                searched.options.num_beams,
                searched.options.length_penalty.map(f32::to_bits),
            );
            let sequences: &mut Vec<_> = endings.entry(of).or_default();
            sequences.push(searched.sequences.clone());
        }
    }
    // The three kinds of ending must not be the same thing in all of them.
    assert!(endings.values().any(|of| of[0] != of[1] && of[0] != of[2]));
}

/// Two samples of one distribution: the sum of (a - b)² / (a + b) over n kinds is
/// distributed as chi-square with n - 1 degrees of freedom where both are equally
/// large, so that its mean is n - 1 and its variance 2 (n - 1).
#[test]
fn samples_are_distributed_as_those_of_transformers() {
    for case in goldens() {
        for sampled in &case.sampled {
            let draws: usize = sampled.counts.iter().map(|(_, count)| count).sum();
            let mut ours: HashMap<Vec<u32>, usize> = HashMap::new();
            for seed in 0..draws as u64 {
                let options = sampled.options.overrides(Some(seed));
                *ours.entry(answer(&case, BEGIN, &options)).or_default() += 1;
            }
            let mut chi_square = 0.0;
            let mut kinds = 0;
            // Rare ones are counted together.
            let (mut rare, mut our_rare) = (0, draws);
            for (sequence, count) in &sampled.counts {
                let our_count = ours.get(sequence).copied().unwrap_or(0);
                if *count < 20 {
                    rare += count;
                    continue;
                }
                our_rare -= our_count;
                kinds += 1;
                let difference = *count as f64 - our_count as f64;
                chi_square += difference * difference / (count + our_count) as f64;
            }
            if rare + our_rare > 20 {
                let difference = rare as f64 - our_rare as f64;
                chi_square += difference * difference / (rare + our_rare) as f64;
                kinds += 1;
            } else {
                assert!(our_rare <= 20, "{:?}: {our_rare}", sampled.options);
            }
            let freedom = f64::from(kinds - 1);
            let limit = freedom + 5.0 * (2.0 * freedom).sqrt() + 5.0;
            assert!(
                chi_square < limit,
                "{:?}: {chi_square} of {kinds}",
                sampled.options
            );
        }
    }
}

#[test]
fn a_seed_repeats_its_sample() {
    let case = &goldens()[1];
    let options = |seed| GenerationOverrides {
        temperature: Some(3.0),
        ..case.sampled[1].options.overrides(Some(seed))
    };
    let of = |seed| answer(case, BEGIN, &options(seed));
    assert!((0..20).all(|seed| of(seed) == of(seed)));
    assert!((1..20).any(|seed| of(seed) != of(0)));
}
