//! Models whose scores are a tensor, where they compute it.

use candle_core::{DType, Tensor};

use crate::error::ModelError;
use crate::generation::{Continuation, Decoder, likeliest, not_a_number};
use crate::ops::cuda;

/// What [`Decoder`] asks for, as logits on the device.
pub(crate) trait LogitsDecoder {
    /// Tokens there are.
    fn vocabulary(&self) -> usize;

    /// Logits after the prompt, (inputs, vocabulary).
    fn prompt(&mut self) -> Result<Tensor, ModelError>;

    /// Logits after further tokens, (rows, vocabulary).
    fn step(&mut self, rows: &[Continuation]) -> Result<Tensor, ModelError>;
}

impl<D: LogitsDecoder> Decoder for D {
    fn vocabulary(&self) -> usize {
        LogitsDecoder::vocabulary(self)
    }

    fn prompt(&mut self) -> Result<Vec<f32>, ModelError> {
        host(&LogitsDecoder::prompt(self)?)
    }

    fn step(&mut self, rows: &[Continuation]) -> Result<Vec<f32>, ModelError> {
        host(&LogitsDecoder::step(self, rows)?)
    }

    fn prompt_likeliest(&mut self, forbidden: Option<u32>) -> Result<Vec<u32>, ModelError> {
        likeliest_of(&LogitsDecoder::prompt(self)?, forbidden)
    }

    fn step_likeliest(
        &mut self,
        rows: &[Continuation],
        forbidden: Option<u32>,
    ) -> Result<Vec<u32>, ModelError> {
        likeliest_of(&LogitsDecoder::step(self, rows)?, forbidden)
    }
}

fn host(logits: &Tensor) -> Result<Vec<f32>, ModelError> {
    Ok(logits.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// The likeliest token of each row, found where the logits are.
pub(crate) fn likeliest_of(
    logits: &Tensor,
    forbidden: Option<u32>,
) -> Result<Vec<u32>, ModelError> {
    let Some(tokens) = cuda::likeliest(logits, forbidden)? else {
        return likeliest(host(logits)?, logits.dim(1)?, forbidden);
    };
    if tokens.contains(&u32::MAX) {
        return Err(not_a_number());
    }
    Ok(tokens)
}
