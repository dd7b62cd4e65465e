//! Searches whose results are known.

use std::cell::Cell;

use super::super::testing::Scripted;
use super::*;
use crate::generation::{
    GenerationConfig, GenerationOverrides, Lengths, StoredGenerationConfig, Watch, generate,
};

const END: u32 = 0;

fn run(
    options: &GenerationOverrides,
    scores: impl Fn(usize, &[u32]) -> Vec<f32>,
    watch: &Watch<'_>,
) -> Vec<Option<Vec<u32>>> {
    let config = GenerationConfig::new(&StoredGenerationConfig::default(), options).unwrap();
    let mut decoder = Scripted::new(8, &[7], 2, scores);
    let request = Request {
        config: &config,
        lengths: Lengths { max: 6, min: 0 },
        prompt: &[7],
        inputs: 2,
        end: END,
        watch,
    };
    generate(&mut decoder, &request).unwrap()
}

/// Logarithms of probabilities, the rest of which is shared by other tokens.
fn probabilities(of: &[(u32, f32)]) -> Vec<f32> {
    let rest = (1.0 - of.iter().map(|(_, p)| p).sum::<f32>()) / (8 - of.len()) as f32;
    let mut scores = vec![rest.max(1e-9).ln(); 8];
    for (token, p) in of {
        scores[*token as usize] = p.ln();
    }
    scores
}

/// Token 1 is likelier first, but what follows token 2 is likelier by far.
fn garden_path(_: usize, tokens: &[u32]) -> Vec<f32> {
    match tokens {
        [7] => probabilities(&[(1, 0.5), (2, 0.4)]),
        [7, 1] => probabilities(&[(3, 0.3), (4, 0.3)]),
        [7, 2] => probabilities(&[(5, 0.98)]),
        _ => probabilities(&[(END, 0.97)]),
    }
}

fn beams(num_beams: u32) -> GenerationOverrides {
    GenerationOverrides {
        num_beams: Some(num_beams),
        ..GenerationOverrides::default()
    }
}

#[test]
fn beams_find_what_greedy_search_misses() {
    let greedy = run(&beams(1), garden_path, &Watch::default());
    assert_eq!(greedy[0].as_deref(), Some([7, 1, 3, END].as_slice()));
    let found = run(&beams(2), garden_path, &Watch::default());
    assert_eq!(found[0].as_deref(), Some([7, 2, 5, END].as_slice()));
    assert_eq!(found[0], found[1]);
}

#[test]
fn the_length_penalty_chooses_between_lengths() {
    let short_or_long = |_: usize, tokens: &[u32]| match tokens {
        [7] => probabilities(&[(END, 0.4), (1, 0.35)]),
        [7, 1] => probabilities(&[(2, 0.9)]),
        _ => probabilities(&[(END, 0.9)]),
    };
    let with = |length_penalty| GenerationOverrides {
        length_penalty: Some(length_penalty),
        ..beams(2)
    };
    let short = run(&with(0.0), short_or_long, &Watch::default());
    assert_eq!(short[0].as_deref(), Some([7, END].as_slice()));
    let long = run(&with(1.0), short_or_long, &Watch::default());
    assert_eq!(long[0].as_deref(), Some([7, 1, 2, END].as_slice()));
}

#[test]
fn a_cancelled_input_is_dropped_and_the_other_goes_on() {
    let generated = [const { Cell::new(0) }; 2];
    let watch = Watch {
        cancelled: &|input| input == 0,
        generated: &|input: usize| generated[input].set(generated[input].get() + 1),
    };
    let results = run(&beams(3), garden_path, &watch);
    assert!(results[0].is_none());
    assert_eq!(results[1].as_deref(), Some([7, 2, 5, END].as_slice()));
    assert_eq!(generated.map(Cell::into_inner), [1, 3]);
}

#[test]
fn more_beams_than_the_vocabulary_allows_are_invalid() {
    let config = GenerationConfig::new(&StoredGenerationConfig::default(), &beams(5)).unwrap();
    let mut decoder = Scripted::new(8, &[7], 1, garden_path);
    let request = Request {
        config: &config,
        lengths: Lengths { max: 6, min: 0 },
        prompt: &[7],
        inputs: 1,
        end: END,
        watch: &Watch::default(),
    };
    let error = generate(&mut decoder, &request).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidOption);
}

#[test]
fn the_largest_scores_come_in_order() {
    let best = best_of(&[0.0, 3.0, 1.0, 3.0, 2.0], 3);
    assert_eq!(best, [(1, 3.0), (3, 3.0), (4, 2.0)]);
}
