//! A T5 at work for one request: the cache that belongs to it, and where in it the
//! tokens of each sequence are.

use candle_core::Tensor;

use crate::device::compute_on;
use crate::error::ModelError;
use crate::generation::Continuation;
use crate::instructblip::causal::{Beginning, FIRST_TOKENS};
use crate::instructblip::language::Sequences;
use crate::instructblip::t5::{T5, T5Step};
use crate::kv_cache::{KeysAndValues, TokenCache};
use crate::ops::HistoryTable;
use crate::trace::Trace;

pub(super) struct T5Sequences<'a> {
    t5: &'a T5,
    /// What the encoder made of each input, in all layers of the decoder.
    encoded: Vec<KeysAndValues>,
    inputs: usize,
    /// Vectors that the encoder read of each input.
    length: usize,
    cache: TokenCache,
    /// The next position to compute.
    position: usize,
    /// For each sequence its input, and where its tokens are in the cache.
    sources: Vec<usize>,
    rows: Vec<Vec<u32>>,
}

impl<'a> T5Sequences<'a> {
    /// Runs the encoder over what the inputs begin with. For sequences of up to
    /// `positions` tokens, up to `width` of them.
    pub(super) fn new(
        t5: &'a T5,
        beginning: &Beginning<'_>,
        width: usize,
        positions: usize,
        trace: Option<&mut Trace>,
    ) -> Result<Self, ModelError> {
        let (inputs, length) = (beginning.sequences, beginning.len()?);
        let encoded = compute_on(t5.device(), || {
            let words = t5.embed(beginning.tokens)?;
            t5.encode(beginning.embed_by_sequence(&words)?, inputs, trace)
        })?;
        let rows = positions.min(FIRST_TOKENS) * width;
        Ok(Self {
            t5,
            encoded,
            inputs,
            length,
            cache: TokenCache::new(t5.cache(rows)?, rows, positions * width),
            position: 0,
            sources: (0..inputs).collect(),
            rows: vec![Vec::new(); inputs],
        })
    }
}

impl Sequences for T5Sequences<'_> {
    /// Computes the token that answers begin with.
    fn begin(&mut self, trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        self.advance(&vec![self.t5.begin(); self.inputs], trace)
    }

    fn go_on(&mut self, rows: &[Continuation]) {
        let parents = || rows.iter().map(|row| row.parent);
        self.sources = parents().map(|parent| self.sources[parent]).collect();
        self.rows = parents().map(|parent| self.rows[parent].clone()).collect();
    }

    fn advance(&mut self, tokens: &[u32], trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        let first = self.cache.take(tokens.len(), &mut self.rows)?;
        let mut encoded = HistoryTable::default();
        for (index, (row, source)) in self.rows.iter_mut().zip(&self.sources).enumerate() {
            row.push((first + index) as u32);
            let begin = source * self.length;
            encoded.push(begin as u32..(begin + self.length) as u32);
        }
        let history = self.rows.concat();
        let step = T5Step {
            tokens,
            position: self.position,
            cache_row: first,
            history: &history,
            encoded: &encoded,
        };
        self.position += 1;
        let (t5, cache) = (self.t5, self.cache.layers());
        Ok(compute_on(t5.device(), || {
            t5.step(&step, cache, &self.encoded, trace)
        })?)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(compute_on(self.t5.device(), || self.t5.logits(hidden))?)
    }
}
