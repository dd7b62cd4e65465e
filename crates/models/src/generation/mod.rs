//! Generation of text with the semantics of transformers' `generate`,
//! independent of the model: a model is a [`Decoder`], a search asks it for
//! scores, and the options of a caller are a [`GenerationConfig`].

mod beam;
mod config;
mod logits;
mod processors;
mod sampling;
mod single;

pub use config::{EarlyStopping, GenerationConfig, GenerationOverrides};
pub(crate) use config::{Lengths, StoredGenerationConfig};
pub(crate) use logits::LogitsDecoder;
#[cfg(test)]
pub(crate) use logits::likeliest_of;

use crate::error::{ErrorKind, ModelError};

/// A sequence goes on: with `token` after row `parent` of the decoder's last call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Continuation {
    pub(crate) parent: usize,
    pub(crate) token: u32,
}

/// What a search needs of a model: scores of the next token, by row.
pub(crate) trait Decoder {
    /// Tokens there are.
    fn vocabulary(&self) -> usize;

    /// Scores after the prompt, (inputs, vocabulary): one row for each input.
    fn prompt(&mut self) -> Result<Vec<f32>, ModelError>;

    /// Scores after further tokens, (rows, vocabulary). A row of the last call
    /// that no continuation names is forgotten; one may be named several times.
    fn step(&mut self, rows: &[Continuation]) -> Result<Vec<f32>, ModelError>;

    /// The likeliest token of each row after the prompt, but for the token `forbidden`: for
    /// a search that wants no more. A device need not hand out all scores for it.
    fn prompt_likeliest(&mut self, forbidden: Option<u32>) -> Result<Vec<u32>, ModelError> {
        let scores = self.prompt()?;
        likeliest(scores, self.vocabulary(), forbidden)
    }

    /// The same after further tokens, as [`Decoder::step`].
    fn step_likeliest(
        &mut self,
        rows: &[Continuation],
        forbidden: Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        let scores = self.step(rows)?;
        likeliest(scores, self.vocabulary(), forbidden)
    }
}

/// Who waits for what is generated. Both are called with the number of an input.
pub struct Watch<'a> {
    /// Asked before each step: whether the answer for the input is no longer wanted.
    pub cancelled: &'a dyn Fn(usize) -> bool,
    /// Told of each token by which an answer grows, the end token too. All beams of an input
    /// grow together.
    pub generated: &'a dyn Fn(usize),
}

impl Default for Watch<'_> {
    /// All is wanted, and nobody looks on.
    fn default() -> Self {
        Self {
            cancelled: &|_| false,
            generated: &|_| {},
        }
    }
}

/// What is the same for all inputs of a generation.
pub(crate) struct Request<'a> {
    pub(crate) config: &'a GenerationConfig,
    pub(crate) lengths: Lengths,
    /// The tokens that every sequence begins with.
    pub(crate) prompt: &'a [u32],
    pub(crate) inputs: usize,
    /// The token that ends a sequence.
    pub(crate) end: u32,
    pub(crate) watch: &'a Watch<'a>,
}

/// Generates a sequence for each input: the prompt, the answer, and the end
/// token unless the sequence ended by its length. `None` where it was cancelled.
pub(crate) fn generate(
    decoder: &mut dyn Decoder,
    request: &Request<'_>,
) -> Result<Vec<Option<Vec<u32>>>, ModelError> {
    if request.config.num_beams > 1 {
        beam::search(decoder, request)
    } else {
        single::search(decoder, request)
    }
}

/// The likeliest token of each row of (rows, vocabulary), but for the token `forbidden`.
fn likeliest(
    mut scores: Vec<f32>,
    vocabulary: usize,
    forbidden: Option<u32>,
) -> Result<Vec<u32>, ModelError> {
    let rows = scores.chunks_exact_mut(vocabulary);
    rows.map(|row| {
        if let Some(score) = forbidden.and_then(|token| row.get_mut(token as usize)) {
            *score = f32::NEG_INFINITY;
        }
        argmax(row)
    })
    .collect()
}

/// The first of the largest scores.
fn argmax(scores: &[f32]) -> Result<u32, ModelError> {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, score) in scores.iter().enumerate() {
        if score.is_nan() {
            return Err(not_a_number());
        }
        if *score > best.1 {
            best = (token, *score);
        }
    }
    Ok(best.0 as u32)
}

fn not_a_number() -> ModelError {
    ModelError::new(ErrorKind::Internal, "model computation failed")
        .with_detail("The scores of the next token are not numbers.")
        .with_hint("The weights of the model may be damaged.")
}

#[cfg(test)]
mod testing {
    use super::{Continuation, Decoder};
    use crate::error::ModelError;

    /// A model whose scores depend on the whole sequence of a row, so that a
    /// search that loses or mixes rows is found out.
    pub(super) struct Scripted<F> {
        pub(super) vocabulary: usize,
        pub(super) rows: Vec<(usize, Vec<u32>)>,
        pub(super) scores: F,
    }

    impl<F: Fn(usize, &[u32]) -> Vec<f32>> Scripted<F> {
        pub(super) fn new(vocabulary: usize, prompt: &[u32], inputs: usize, scores: F) -> Self {
            Self {
                vocabulary,
                rows: (0..inputs).map(|input| (input, prompt.to_vec())).collect(),
                scores,
            }
        }

        fn all(&self) -> Vec<f32> {
            let score = |(input, tokens): &(usize, Vec<u32>)| (self.scores)(*input, tokens);
            self.rows.iter().flat_map(score).collect()
        }
    }

    impl<F: Fn(usize, &[u32]) -> Vec<f32>> Decoder for Scripted<F> {
        fn vocabulary(&self) -> usize {
            self.vocabulary
        }

        fn prompt(&mut self) -> Result<Vec<f32>, ModelError> {
            Ok(self.all())
        }

        fn step(&mut self, rows: &[Continuation]) -> Result<Vec<f32>, ModelError> {
            self.rows = rows
                .iter()
                .map(|row| {
                    let (input, mut tokens) = self.rows[row.parent].clone();
                    tokens.push(row.token);
                    (input, tokens)
                })
                .collect();
            Ok(self.all())
        }
    }
}
