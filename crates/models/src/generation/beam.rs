//! Beam search as transformers does it: twice as many candidates as beams are
//! looked at, so that enough go on when others end, and scores of ended
//! sequences are divided by a power of their length.

use crate::error::{ErrorKind, ModelError};
use crate::generation::{Continuation, Decoder, EarlyStopping, Request, not_a_number, processors};

/// The score of what must not be chosen; sums with it stay comparable.
const UNLIKELY: f32 = -1.0e9;

/// A sequence that goes on.
#[derive(Debug, Clone)]
struct Running {
    tokens: Vec<u32>,
    score: f32,
}

/// A sequence among the best, ended or (at first) a place for one.
#[derive(Debug, Clone)]
struct Best {
    tokens: Vec<u32>,
    score: f32,
    ended: bool,
}

/// The next token of a running sequence, and whether it ends it.
struct Candidate {
    beam: usize,
    token: u32,
    score: f32,
    ends: bool,
}

/// The search for one input.
struct Search {
    input: usize,
    running: Vec<Running>,
    best: Vec<Best>,
    /// Whether a running sequence may still become better than the best.
    hopeful: bool,
}

pub(super) fn search(
    decoder: &mut dyn Decoder,
    request: &Request<'_>,
) -> Result<Vec<Option<Vec<u32>>>, ModelError> {
    let vocabulary = decoder.vocabulary();
    let beams = request.config.num_beams;
    if 2 * beams > vocabulary {
        return Err(ModelError::new(
            ErrorKind::InvalidOption,
            format!("invalid value for generation option \"num_beams\": {beams}"),
        )
        .with_detail(format!("The vocabulary has only {vocabulary} tokens.")));
    }
    let mut results = vec![None; request.inputs];
    let mut searches: Vec<Search> = (0..request.inputs)
        .map(|input| Search::new(input, request))
        .collect();
    let mut scores = decoder.prompt()?;
    loop {
        let mut continuations = Vec::new();
        let mut next = Vec::with_capacity(searches.len());
        let mut first_row = 0;
        for mut search in searches {
            let rows = search.running.len();
            let scores = &mut scores[first_row * vocabulary..][..rows * vocabulary];
            let parents = search.advance(request, scores)?;
            match parents {
                None => {
                    let input = search.input;
                    results[input] = Some(search.into_tokens());
                }
                Some(_) if (request.cancelled)(search.input) => {}
                Some(parents) => {
                    let rows = parents.iter().zip(&search.running);
                    continuations.extend(rows.map(|(parent, running)| Continuation {
                        parent: first_row + parent,
                        token: *running.tokens.last().expect("it was just extended"),
                    }));
                    next.push(search);
                }
            }
            first_row += rows;
        }
        if next.is_empty() {
            return Ok(results);
        }
        searches = next;
        scores = decoder.step(&continuations)?;
    }
}

impl Search {
    /// Begins with one row: transformers begins with as many as there are beams,
    /// of which all but the first can contribute nothing.
    fn new(input: usize, request: &Request<'_>) -> Self {
        let tokens = request.prompt.to_vec();
        let place = Best {
            tokens: tokens.clone(),
            score: UNLIKELY,
            ended: false,
        };
        Self {
            input,
            running: vec![Running { tokens, score: 0.0 }],
            best: vec![place; request.config.num_beams],
            hopeful: true,
        }
    }

    /// Takes the scores of all running sequences one token further. Returns which
    /// of them each new running sequence continues, or `None` at the end.
    fn advance(
        &mut self,
        request: &Request<'_>,
        scores: &mut [f32],
    ) -> Result<Option<Vec<usize>>, ModelError> {
        let beams = request.config.num_beams;
        let candidates = self.candidates(request, scores)?;
        self.keep_best(request, &candidates);
        let goes_on =
            |candidate: &Candidate| candidate.score + if candidate.ends { UNLIKELY } else { 0.0 };
        let mut order: Vec<&Candidate> = candidates.iter().collect();
        order.sort_by(|a, b| goes_on(b).total_cmp(&goes_on(a)));
        order.truncate(beams);
        let parents = order.iter().map(|candidate| candidate.beam).collect();
        let running = order.iter().map(|candidate| {
            let mut tokens = self.running[candidate.beam].tokens.clone();
            tokens.push(candidate.token);
            Running {
                tokens,
                score: goes_on(candidate),
            }
        });
        self.running = running.collect();
        self.hopeful &= self.may_improve(request);
        let all_ended = self.best.iter().all(|best| best.ended);
        let over = !self.hopeful
            || (request.config.early_stopping == EarlyStopping::Yes && all_ended)
            || candidates.iter().all(|candidate| candidate.ends);
        Ok((!over).then_some(parents))
    }

    /// The likeliest continuations of all running sequences, best first: twice as
    /// many as there are beams.
    fn candidates(
        &self,
        request: &Request<'_>,
        scores: &mut [f32],
    ) -> Result<Vec<Candidate>, ModelError> {
        let wanted = 2 * request.config.num_beams;
        let vocabulary = scores.len() / self.running.len();
        let mut candidates: Vec<Candidate> = Vec::with_capacity(2 * wanted);
        let rows = scores.chunks_exact_mut(vocabulary);
        for (beam, (running, scores)) in self.running.iter().zip(rows).enumerate() {
            log_softmax(scores)?;
            processors::process(request, &running.tokens, scores);
            for (token, score) in best_of(scores, wanted) {
                candidates.push(Candidate {
                    beam,
                    token,
                    score: score + running.score,
                    ends: token == request.end || running.tokens.len() + 1 >= request.lengths.max,
                });
            }
        }
        // A stable sort: at equal scores the earlier beam comes first.
        candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
        candidates.truncate(wanted);
        Ok(candidates)
    }

    /// Takes those that end now among the best, if their scores are.
    fn keep_best(&mut self, request: &Request<'_>, candidates: &[Candidate]) {
        let config = request.config;
        let full =
            config.early_stopping == EarlyStopping::Yes && self.best.iter().all(|best| best.ended);
        if full || !self.hopeful {
            return;
        }
        for candidate in candidates.iter().take(config.num_beams) {
            if !candidate.ends {
                continue;
            }
            let mut tokens = self.running[candidate.beam].tokens.clone();
            tokens.push(candidate.token);
            let answer = tokens.len() - request.prompt.len();
            self.best.push(Best {
                tokens,
                score: candidate.score / penalty(answer, config.length_penalty),
                ended: true,
            });
        }
        self.best.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.best.truncate(config.num_beams);
    }

    /// Whether the best running sequence may become one of the best: with the
    /// length that it has now, or with the longest where a model insists.
    fn may_improve(&self, request: &Request<'_>) -> bool {
        let Some(first) = self.running.first() else {
            return false;
        };
        let config = request.config;
        let longest = config.early_stopping == EarlyStopping::Never && config.length_penalty > 0.0;
        let tokens = if longest {
            request.lengths.max
        } else {
            first.tokens.len()
        };
        let answer = tokens - request.prompt.len();
        let possible = first.score / penalty(answer, config.length_penalty);
        let worst = match self.best.iter().all(|best| best.ended) {
            true => self.best.last().map_or(UNLIKELY, |best| best.score),
            false => UNLIKELY,
        };
        possible > worst
    }

    fn into_tokens(self) -> Vec<u32> {
        self.best
            .into_iter()
            .next()
            .map_or_else(Vec::new, |best| best.tokens)
    }
}

fn penalty(length: usize, exponent: f32) -> f32 {
    (length as f64).powf(f64::from(exponent)) as f32
}

/// Logits to logarithms of probabilities.
fn log_softmax(scores: &mut [f32]) -> Result<(), ModelError> {
    if scores.iter().any(|score| score.is_nan()) {
        return Err(not_a_number());
    }
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = scores.iter().map(|score| (score - largest).exp()).sum();
    let shift = largest + sum.ln();
    for score in scores {
        *score -= shift;
    }
    Ok(())
}

/// The `count` largest scores with their tokens, largest first.
fn best_of(scores: &[f32], count: usize) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(scores.iter().copied()).collect();
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if all.len() > count {
        all.select_nth_unstable_by(count - 1, order);
        all.truncate(count);
    }
    all.sort_by(order);
    all
}

#[cfg(test)]
mod tests {
    use super::super::testing::Scripted;
    use super::*;
    use crate::generation::{
        GenerationConfig, GenerationOverrides, Lengths, StoredGenerationConfig, generate,
    };

    const END: u32 = 0;

    fn run(
        options: &GenerationOverrides,
        scores: impl Fn(usize, &[u32]) -> Vec<f32>,
        cancelled: &dyn Fn(usize) -> bool,
    ) -> Vec<Option<Vec<u32>>> {
        let config = GenerationConfig::new(&StoredGenerationConfig::default(), options).unwrap();
        let mut decoder = Scripted::new(8, &[7], 2, scores);
        let request = Request {
            config: &config,
            lengths: Lengths { max: 6, min: 0 },
            prompt: &[7],
            inputs: 2,
            end: END,
            cancelled,
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
        let greedy = run(&beams(1), garden_path, &|_| false);
        assert_eq!(greedy[0].as_deref(), Some([7, 1, 3, END].as_slice()));
        let found = run(&beams(2), garden_path, &|_| false);
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
        let short = run(&with(0.0), short_or_long, &|_| false);
        assert_eq!(short[0].as_deref(), Some([7, END].as_slice()));
        let long = run(&with(1.0), short_or_long, &|_| false);
        assert_eq!(long[0].as_deref(), Some([7, 1, 2, END].as_slice()));
    }

    #[test]
    fn a_cancelled_input_is_dropped_and_the_other_goes_on() {
        let results = run(&beams(3), garden_path, &|input| input == 0);
        assert!(results[0].is_none());
        assert_eq!(results[1].as_deref(), Some([7, 2, 5, END].as_slice()));
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
            cancelled: &|_| false,
        };
        let error = generate(&mut decoder, &request).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidOption);
    }

    #[test]
    fn the_largest_scores_come_in_order() {
        let best = best_of(&[0.0, 3.0, 1.0, 3.0, 2.0], 3);
        assert_eq!(best, [(1, 3.0), (3, 3.0), (4, 2.0)]);
    }
}
