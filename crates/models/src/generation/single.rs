//! One sequence for each input: the likeliest token, or one that is drawn, again
//! and again.

use crate::error::ModelError;
use crate::generation::sampling::Sampler;
use crate::generation::{Continuation, Decoder, Request, argmax, processors};

struct Row {
    input: usize,
    tokens: Vec<u32>,
    /// Draws the tokens; without it they are the likeliest.
    sampler: Option<Sampler>,
}

impl Row {
    fn new(input: usize, request: &Request<'_>) -> Result<Self, ModelError> {
        let sampling = request.config.sampling.as_ref();
        Ok(Self {
            input,
            tokens: request.prompt.to_vec(),
            sampler: sampling.map(Sampler::new).transpose()?,
        })
    }

    fn choose(&mut self, scores: &[f32]) -> Result<u32, ModelError> {
        match &mut self.sampler {
            Some(sampler) => sampler.draw(scores),
            None => argmax(scores),
        }
    }
}

pub(super) fn search(
    decoder: &mut dyn Decoder,
    request: &Request<'_>,
) -> Result<Vec<Option<Vec<u32>>>, ModelError> {
    let mut results = vec![None; request.inputs];
    let mut rows = (0..request.inputs)
        .map(|input| Row::new(input, request))
        .collect::<Result<Vec<_>, _>>()?;
    let mut tokens = choose(decoder, request, None, &mut rows)?;
    loop {
        let mut continuations = Vec::with_capacity(rows.len());
        let mut next = Vec::with_capacity(rows.len());
        for (parent, (mut row, token)) in rows.into_iter().zip(tokens).enumerate() {
            row.tokens.push(token);
            (request.watch.generated)(row.input);
            if token == request.end || row.tokens.len() >= request.lengths.max {
                results[row.input] = Some(row.tokens);
            } else if !(request.watch.cancelled)(row.input) {
                continuations.push(Continuation { parent, token });
                next.push(row);
            }
        }
        if next.is_empty() {
            return Ok(results);
        }
        rows = next;
        tokens = choose(decoder, request, Some(&continuations), &mut rows)?;
    }
}

/// The next token of each row: after the prompt, or after what the rows go on with.
fn choose(
    decoder: &mut dyn Decoder,
    request: &Request<'_>,
    continuations: Option<&[Continuation]>,
    rows: &mut [Row],
) -> Result<Vec<u32>, ModelError> {
    if request.config.sampling.is_none() && processors::only_bound_length(request) {
        let length = rows.first().map_or(0, |row| row.tokens.len());
        let forbidden = processors::forbidden_after(length, request);
        return match continuations {
            None => decoder.prompt_likeliest(forbidden),
            Some(continuations) => decoder.step_likeliest(continuations, forbidden),
        };
    }
    let mut scores = match continuations {
        None => decoder.prompt()?,
        Some(continuations) => decoder.step(continuations)?,
    };
    let each = scores.chunks_exact_mut(decoder.vocabulary()).zip(rows);
    each.map(|(scores, row)| {
        processors::process(request, &row.tokens, scores);
        row.choose(scores)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::testing::Scripted;
    use super::*;
    use crate::generation::{
        GenerationConfig, GenerationOverrides, Lengths, StoredGenerationConfig, Watch, generate,
    };

    const END: u32 = 9;

    /// Input i counts from i + 1 upwards and ends after its i + 2 tokens.
    fn counting(input: usize, tokens: &[u32]) -> Vec<f32> {
        let mut scores = vec![0.0; 10];
        let done = tokens.len() > input + 2;
        scores[if done {
            END as usize
        } else {
            input + tokens.len()
        }] = 1.0;
        scores
    }

    fn run(lengths: Lengths, watch: &Watch<'_>) -> Vec<Option<Vec<u32>>> {
        let options = GenerationOverrides::default();
        let config = GenerationConfig::new(&StoredGenerationConfig::default(), &options).unwrap();
        let mut decoder = Scripted::new(10, &[0], 3, counting);
        let request = Request {
            config: &config,
            lengths,
            prompt: &[0],
            inputs: 3,
            end: END,
            watch,
        };
        generate(&mut decoder, &request).unwrap()
    }

    #[test]
    fn rows_end_each_at_their_own_length() {
        let generated = [const { Cell::new(0) }; 3];
        let watch = Watch {
            generated: &|input: usize| generated[input].set(generated[input].get() + 1),
            ..Watch::default()
        };
        let results = run(Lengths { max: 20, min: 0 }, &watch);
        assert_eq!(results[0].as_deref(), Some([0, 1, 2, END].as_slice()));
        assert_eq!(results[1].as_deref(), Some([0, 2, 3, 4, END].as_slice()));
        assert_eq!(results[2].as_deref(), Some([0, 3, 4, 5, 6, END].as_slice()));
        assert_eq!(generated.map(Cell::into_inner), [3, 4, 5]);
    }

    #[test]
    fn lengths_bound_the_sequence() {
        let results = run(Lengths { max: 3, min: 0 }, &Watch::default());
        assert_eq!(results[2].as_deref(), Some([0, 3, 4].as_slice()));
        let results = run(Lengths { max: 20, min: 6 }, &Watch::default());
        assert!(results.iter().all(|r| r.as_ref().unwrap().len() >= 7));
    }

    #[test]
    fn a_cancelled_row_is_dropped_and_the_others_go_on() {
        let asked = Cell::new(0);
        let cancelled = |input| {
            asked.set(asked.get() + 1);
            input == 1 && asked.get() > 3
        };
        let watch = Watch {
            cancelled: &cancelled,
            ..Watch::default()
        };
        let results = run(Lengths { max: 20, min: 0 }, &watch);
        assert!(results[1].is_none());
        assert_eq!(results[2].as_deref(), Some([0, 3, 4, 5, 6, END].as_slice()));
    }

    /// Samples for these inputs of a model that likes several tokens at a time.
    fn sample(inputs: &[usize], options: &GenerationOverrides) -> Vec<Option<Vec<u32>>> {
        let config = GenerationConfig::new(&StoredGenerationConfig::default(), options).unwrap();
        let scores = |input: usize, tokens: &[u32]| -> Vec<f32> {
            let seen: u32 = tokens.iter().sum::<u32>() + inputs[input] as u32;
            let score = |token: u32| ((seen * 7 + token * 13) % 11) as f32 / 3.0;
            (0..10).map(score).collect()
        };
        let mut decoder = Scripted::new(10, &[0], inputs.len(), scores);
        let request = Request {
            config: &config,
            lengths: Lengths { max: 30, min: 0 },
            prompt: &[0],
            inputs: inputs.len(),
            end: END,
            watch: &Watch::default(),
        };
        generate(&mut decoder, &request).unwrap()
    }

    fn sampled(seed: Option<u64>) -> GenerationOverrides {
        GenerationOverrides {
            do_sample: Some(true),
            seed,
            ..GenerationOverrides::default()
        }
    }

    #[test]
    fn a_sampled_row_does_not_depend_on_its_batch() {
        let batch = sample(&[4, 5, 4, 6], &sampled(Some(3)));
        assert_eq!(batch[0], batch[2]);
        for (index, input) in [4, 5, 4, 6].into_iter().enumerate() {
            assert_eq!(sample(&[input], &sampled(Some(3)))[0], batch[index]);
        }
        assert_ne!(batch, sample(&[4, 5, 4, 6], &sampled(Some(4))));
        let free = sample(&[4; 8], &sampled(None));
        assert!(free.iter().any(|row| *row != free[0]));
    }

    #[test]
    fn the_likeliest_one_is_the_greedy_choice() {
        let greedy = sample(&[4, 5, 6], &GenerationOverrides::default());
        let top_k = GenerationOverrides {
            top_k: Some(1),
            ..sampled(Some(3))
        };
        assert_eq!(sample(&[4, 5, 6], &top_k), greedy);
        assert_ne!(sample(&[4, 5, 6], &sampled(Some(3))), greedy);
    }

    #[test]
    fn scores_that_are_no_numbers_are_an_error() {
        assert!(argmax(&[0.0, f32::NAN]).is_err());
        assert_eq!(argmax(&[1.0, 2.0, 2.0]).unwrap(), 1);
    }
}
