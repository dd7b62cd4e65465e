//! A Llama at work for one request: the cache that belongs to it, and where in it
//! the tokens of each sequence are.

use candle_core::Tensor;

use crate::device::compute_on;
use crate::error::ModelError;
use crate::generation::Continuation;
use crate::instructblip::language::Sequences;
use crate::instructblip::llama::{Llama, Run};
use crate::kv_cache::TokenCache;
use crate::ops::HistoryTable;
use crate::trace::Trace;

/// Tokens after the beginning for which memory is taken at once.
pub(super) const FIRST_TOKENS: usize = 32;

/// What all sequences of a request begin with: vectors that are no tokens, and then
/// tokens.
pub(super) struct Beginning<'a> {
    /// (sequences * vectors, hidden): those of each sequence behind each other.
    pub(super) vectors: Tensor,
    pub(super) sequences: usize,
    pub(super) tokens: &'a [u32],
}

impl Beginning<'_> {
    /// Vectors and tokens of one sequence.
    pub(super) fn len(&self) -> Result<usize, ModelError> {
        Ok(self.vectors.dim(0)? / self.sequences + self.tokens.len())
    }

    /// (sequences * length, hidden): all of the first sequence, then all of the second;
    /// `words` are the embeddings of the tokens.
    pub(super) fn embed_by_sequence(&self, words: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = words.dim(1)?;
        let vectors = self.vectors.reshape((self.sequences, (), hidden))?;
        let tokens = self.tokens.len();
        let words = words
            .unsqueeze(0)?
            .expand((self.sequences, tokens, hidden))?;
        Tensor::cat(&[&vectors, &words], 1)?.reshape(((), hidden))
    }

    /// (length * sequences, hidden): the first of all sequences, then the second.
    fn embed(&self, llama: &Llama) -> candle_core::Result<Tensor> {
        let (rows, hidden) = self.vectors.dims2()?;
        let (sequences, vectors) = (self.sequences, rows / self.sequences);
        let vectors = self.vectors.reshape((sequences, vectors, hidden))?;
        let tokens = self.tokens.len();
        let words = llama.embed(self.tokens)?.reshape((tokens, 1, hidden))?;
        let words = words.expand((tokens, sequences, hidden))?;
        Tensor::cat(&[&vectors.transpose(0, 1)?, &words], 0)?.reshape(((), hidden))
    }
}

pub(super) struct CausalSequences<'a> {
    llama: &'a Llama,
    beginning: Beginning<'a>,
    cache: TokenCache,
    /// The next position to compute.
    position: usize,
    /// For each sequence where its tokens are in the cache.
    rows: Vec<Vec<u32>>,
}

impl<'a> CausalSequences<'a> {
    /// For sequences of up to `positions` tokens, up to `width` of them.
    pub(super) fn new(
        llama: &'a Llama,
        beginning: Beginning<'a>,
        width: usize,
        positions: usize,
    ) -> Result<Self, ModelError> {
        let length = beginning.len()?;
        // What all begin with is there once for each input, not for each beam.
        let begun = length * beginning.sequences;
        let further = positions.saturating_sub(length);
        let rows = begun + further.min(FIRST_TOKENS) * width;
        Ok(Self {
            cache: TokenCache::new(llama.cache(rows)?, rows, begun + further * width),
            llama,
            beginning,
            position: 0,
            rows: Vec::new(),
        })
    }

    fn run(
        &mut self,
        x: Tensor,
        positions: &[u32],
        cache_row: usize,
        history: &HistoryTable,
        trace: Option<&mut Trace>,
    ) -> Result<Tensor, ModelError> {
        let run = Run {
            positions,
            cache_row,
            history,
        };
        let (llama, cache) = (self.llama, self.cache.layers());
        Ok(compute_on(llama.device(), || {
            llama.forward(x, &run, cache, trace)
        })?)
    }
}

impl Sequences for CausalSequences<'_> {
    fn begin(&mut self, trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        let (count, length) = (self.beginning.sequences, self.beginning.len()?);
        let x = compute_on(self.llama.device(), || self.beginning.embed(self.llama))?;
        self.rows = vec![Vec::with_capacity(length); count];
        let mut history = HistoryTable::default();
        let mut positions = Vec::with_capacity(count * length);
        for position in 0..length {
            for (sequence, row) in self.rows.iter_mut().enumerate() {
                row.push((position * count + sequence) as u32);
                history.push(row.iter().copied());
                positions.push(position as u32);
            }
        }
        let first = self.cache.take(count * length, &mut [])?;
        let hidden = self.run(x, &positions, first, &history, trace)?;
        self.position = length;
        Ok(hidden.narrow(0, (length - 1) * count, count)?)
    }

    fn go_on(&mut self, rows: &[Continuation]) {
        let parents = rows.iter().map(|row| row.parent);
        self.rows = parents.map(|parent| self.rows[parent].clone()).collect();
    }

    fn advance(&mut self, tokens: &[u32], trace: Option<&mut Trace>) -> Result<Tensor, ModelError> {
        let first = self.cache.take(tokens.len(), &mut self.rows)?;
        let mut history = HistoryTable::default();
        for (index, row) in self.rows.iter_mut().enumerate() {
            row.push((first + index) as u32);
            history.push(row.iter().copied());
        }
        let positions = vec![self.position as u32; tokens.len()];
        self.position += 1;
        let x = self.llama.embed(tokens)?;
        self.run(x, &positions, first, &history, trace)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        Ok(compute_on(self.llama.device(), || {
            self.llama.logits(hidden)
        })?)
    }
}
