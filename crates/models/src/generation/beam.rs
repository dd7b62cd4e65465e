//! Beam search as transformers does it: twice as many candidates as beams are
//! looked at, so that enough go on when others end, and scores of ended
//! sequences are divided by a power of their length. Where tokens are sampled, the
//! candidates are drawn, without replacement, instead of being the likeliest.

use crate::error::{ErrorKind, ModelError};
use crate::generation::sampling::Sampler;
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
    /// Draws the candidates; without it they are the likeliest.
    sampler: Option<Sampler>,
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
        .collect::<Result<_, _>>()?;
    let mut scores = decoder.prompt()?;
    loop {
        let mut continuations = Vec::new();
        let mut next = Vec::with_capacity(searches.len());
        let mut first_row = 0;
        for mut search in searches {
            let rows = search.running.len();
            let scores = &mut scores[first_row * vocabulary..][..rows * vocabulary];
            let parents = search.advance(request, scores)?;
            (request.watch.generated)(search.input);
            match parents {
                None => {
                    let input = search.input;
                    results[input] = Some(search.into_tokens());
                }
                Some(_) if (request.watch.cancelled)(search.input) => {}
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
    fn new(input: usize, request: &Request<'_>) -> Result<Self, ModelError> {
        let tokens = request.prompt.to_vec();
        let place = Best {
            tokens: tokens.clone(),
            score: UNLIKELY,
            ended: false,
        };
        let sampling = request.config.sampling.as_ref();
        Ok(Self {
            input,
            running: vec![Running { tokens, score: 0.0 }],
            best: vec![place; request.config.num_beams],
            hopeful: true,
            sampler: sampling.map(Sampler::new).transpose()?,
        })
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
            || (request.config.early_stopping == EarlyStopping::First && all_ended)
            || candidates.iter().all(|candidate| candidate.ends);
        Ok((!over).then_some(parents))
    }

    /// Continuations of the running sequences, best first, twice as many as there are
    /// beams: the likeliest of all, or those that are drawn.
    fn candidates(
        &mut self,
        request: &Request<'_>,
        scores: &mut [f32],
    ) -> Result<Vec<Candidate>, ModelError> {
        let wanted = 2 * request.config.num_beams;
        let vocabulary = scores.len() / self.running.len();
        // Each with the key that it is chosen by.
        let mut candidates: Vec<(f64, Candidate)> = Vec::with_capacity(2 * wanted);
        let rows = scores.chunks_exact_mut(vocabulary);
        for (beam, (running, scores)) in self.running.iter().zip(rows).enumerate() {
            log_softmax(scores)?;
            processors::process(request, &running.tokens, scores);
            let ends =
                |token| token == request.end || running.tokens.len() + 1 >= request.lengths.max;
            let candidate = |(token, score): (u32, f32)| Candidate {
                beam,
                token,
                score: score + running.score,
                ends: ends(token),
            };
            let Some(sampler) = &mut self.sampler else {
                let best = best_of(scores, wanted).into_iter().map(candidate);
                candidates.extend(best.map(|best| (f64::from(best.score), best)));
                continue;
            };
            let drawn = sampler.warped(scores)?.to_vec().into_iter().map(candidate);
            candidates.extend(drawn.map(|drawn| (sampler.key(drawn.score), drawn)));
        }
        // A stable sort: at equal keys the earlier beam comes first.
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(wanted);
        let mut chosen: Vec<Candidate> = candidates.into_iter().map(|(_, it)| it).collect();
        chosen.sort_by(|a, b| b.score.total_cmp(&a.score));
        Ok(chosen)
    }

    /// Takes those that end now among the best, if their scores are.
    fn keep_best(&mut self, request: &Request<'_>, candidates: &[Candidate]) {
        let config = request.config;
        let full = config.early_stopping == EarlyStopping::First
            && self.best.iter().all(|best| best.ended);
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

    /// Whether the best running sequence would be among the best, if it ended now or,
    /// for [`EarlyStopping::Never`], at the length that is best for it.
    fn may_improve(&self, request: &Request<'_>) -> bool {
        let Some(first) = self.running.first() else {
            return false;
        };
        let longest = match request.config.early_stopping {
            // A longer sequence gets a smaller division only by a positive power.
            EarlyStopping::Never if request.config.length_penalty > 0.0 => request.lengths.max,
            _ => first.tokens.len(),
        };
        let answer = longest - request.prompt.len();
        let possible = first.score / penalty(answer, request.config.length_penalty);
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
mod parity;
#[cfg(test)]
mod tests;
