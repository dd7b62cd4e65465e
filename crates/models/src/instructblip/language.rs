//! The language model of InstructBLIP, of either kind, and its decoder.

use candle_core::Tensor;

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::ModelError;
use crate::generation::{Continuation, Decoder};
use crate::instructblip::causal::{Beginning, CausalDecoder};
use crate::instructblip::config::TextConfig;
use crate::instructblip::llama::Llama;
use crate::instructblip::t5::T5;
use crate::instructblip::t5_decoder::T5Decoder;
use crate::projection::{ProjectionSpec, Projections};
use crate::trace::Trace;

#[derive(Debug)]
pub(super) enum LanguageModel {
    Llama(Llama),
    T5(T5),
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
            TextConfig::Llama(config) => Llama::read(config, source).map(Self::Llama),
            TextConfig::T5(config) => T5::read(config, source).map(Self::T5),
        }
    }
}

/// A decoder at work for one request.
pub(super) enum AnswerDecoder<'a> {
    Causal(CausalDecoder<'a>),
    T5(T5Decoder<'a>),
}

impl<'a> AnswerDecoder<'a> {
    /// For sequences of up to `positions` tokens, up to `width` of them. A trace gets
    /// the layers of an encoder, if there is one.
    pub(super) fn new(
        model: &'a LanguageModel,
        config: &TextConfig,
        beginning: Beginning<'a>,
        width: usize,
        positions: usize,
        trace: Option<&mut Trace>,
    ) -> Result<Self, ModelError> {
        let vocabulary = config.vocabulary();
        match (model, config) {
            (LanguageModel::Llama(llama), _) => {
                CausalDecoder::new(llama, vocabulary, beginning, width, positions).map(Self::Causal)
            }
            (LanguageModel::T5(t5), TextConfig::T5(config)) => {
                let tokens = (vocabulary, config.begin);
                T5Decoder::new(t5, tokens, &beginning, width, positions, trace).map(Self::T5)
            }
            (LanguageModel::T5(_), TextConfig::Llama(_)) => Err(ModelError::new(
                crate::ErrorKind::Internal,
                "language model and configuration are of different kinds",
            )),
        }
    }

    /// Computes the beginning of all sequences; the result is of its last tokens,
    /// (sequences, hidden).
    pub(super) fn begin(&mut self, trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        match self {
            Self::Causal(decoder) => decoder.begin(trace),
            Self::T5(decoder) => decoder.begin(trace),
        }
    }

    /// Computes one token for each sequence; the result is (sequences, hidden).
    pub(super) fn advance(
        &mut self,
        tokens: &[u32],
        trace: Option<&mut Trace>,
    ) -> Result<Tensor, ModelError> {
        match self {
            Self::Causal(decoder) => decoder.advance(tokens, trace),
            Self::T5(decoder) => decoder.advance(tokens, trace),
        }
    }

    /// (sequences, vocabulary).
    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        match self {
            Self::Causal(decoder) => decoder.logits(hidden),
            Self::T5(decoder) => decoder.logits(hidden),
        }
    }
}

impl Decoder for AnswerDecoder<'_> {
    fn vocabulary(&self) -> usize {
        match self {
            Self::Causal(decoder) => decoder.vocabulary(),
            Self::T5(decoder) => decoder.vocabulary(),
        }
    }

    fn prompt(&mut self) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Causal(decoder) => decoder.prompt(),
            Self::T5(decoder) => decoder.prompt(),
        }
    }

    fn step(&mut self, rows: &[Continuation]) -> Result<Vec<f32>, ModelError> {
        match self {
            Self::Causal(decoder) => decoder.step(rows),
            Self::T5(decoder) => decoder.step(rows),
        }
    }
}
