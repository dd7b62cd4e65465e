//! The language model of InstructBLIP, of either kind, and its decoder.

use candle_core::Tensor;

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::ModelError;
use crate::generation::{Continuation, LogitsDecoder};
use crate::instructblip::causal::{Beginning, CausalSequences};
use crate::instructblip::config::TextConfig;
use crate::instructblip::llama::Llama;
use crate::instructblip::t5::T5;
use crate::instructblip::t5_decoder::T5Sequences;
use crate::projection::{ProjectionSpec, Projections};
use crate::trace::Trace;

#[derive(Debug)]
pub(super) enum LanguageModel {
    Llama(Box<Llama>),
    T5(Box<T5>),
}

impl LanguageModel {
    /// All tensors that [`LanguageModel::read`] reads.
    pub(super) fn specs(config: &TextConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        match config {
            TextConfig::Llama(config) => Llama::specs(config, checkpoint),
            TextConfig::T5(config) => T5::specs(config, checkpoint),
        }
    }

    /// All linear layers.
    pub(super) fn projections(config: &TextConfig, checkpoint: &Checkpoint) -> Vec<ProjectionSpec> {
        match config {
            TextConfig::Llama(config) => Llama::projections(config, checkpoint),
            TextConfig::T5(config) => T5::projections(config, checkpoint),
        }
    }

    pub(super) fn read(config: &TextConfig, source: &Projections<'_>) -> Result<Self, ModelError> {
        match config {
            TextConfig::Llama(config) => Ok(Self::Llama(Box::new(Llama::read(config, source)?))),
            TextConfig::T5(config) => Ok(Self::T5(Box::new(T5::read(config, source)?))),
        }
    }
}

/// The sequences of one request, as a language model computes them.
pub(super) trait Sequences {
    /// Computes the beginning of all sequences; the result is of its last tokens,
    /// (sequences, hidden).
    fn begin(&mut self, trace: Option<&mut Trace>) -> Result<Tensor, ModelError>;

    /// From now on there are these sequences; the tokens are not computed yet.
    fn go_on(&mut self, rows: &[Continuation]);

    /// Computes one token for each sequence; the result is (sequences, hidden).
    fn advance(&mut self, tokens: &[u32], trace: Option<&mut Trace>) -> Result<Tensor, ModelError>;

    /// (sequences, vocabulary).
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError>;
}

/// A decoder at work for one request.
pub(crate) struct AnswerDecoder<'a> {
    vocabulary: usize,
    pub(super) sequences: Box<dyn Sequences + 'a>,
}

impl<'a> AnswerDecoder<'a> {
    /// For sequences of up to `positions` tokens, up to `width` of them. A trace gets
    /// the layers of an encoder, if there is one.
    pub(super) fn new(
        model: &'a LanguageModel,
        beginning: Beginning<'a>,
        width: usize,
        positions: usize,
        trace: Option<&mut Trace>,
    ) -> Result<Self, ModelError> {
        let (vocabulary, sequences): (usize, Box<dyn Sequences + 'a>) = match model {
            LanguageModel::Llama(llama) => {
                let sequences = CausalSequences::new(llama, beginning, width, positions)?;
                (llama.vocabulary(), Box::new(sequences))
            }
            LanguageModel::T5(t5) => {
                let sequences = T5Sequences::new(t5, &beginning, width, positions, trace)?;
                (t5.vocabulary(), Box::new(sequences))
            }
        };
        Ok(Self {
            vocabulary,
            sequences,
        })
    }
}

impl LogitsDecoder for AnswerDecoder<'_> {
    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn prompt(&mut self) -> Result<Tensor, ModelError> {
        let hidden = self.sequences.begin(None)?;
        self.sequences.logits(&hidden)
    }

    fn step(&mut self, rows: &[Continuation]) -> Result<Tensor, ModelError> {
        self.sequences.go_on(rows);
        let tokens: Vec<u32> = rows.iter().map(|row| row.token).collect();
        let hidden = self.sequences.advance(&tokens, None)?;
        self.sequences.logits(&hidden)
    }
}
