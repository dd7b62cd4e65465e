//! T5 (Raffel et al. 2020): an encoder that reads the picture's vectors and the
//! instruction, and a decoder that attends to it. Scores are not scaled by the size of
//! a head, and have a bias by how far key and query are apart, which the first layer
//! has for all.

use candle_core::{Device, Result, Tensor};

use crate::bert::distance_bucket;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::instructblip::rms_norm::RmsNorm;
use crate::instructblip::t5_config::T5Config;
use crate::kv_cache::KeysAndValues;
use crate::ops::{
    DistanceBias, HistoryTable, Packing, cached_attention, is_fused, packed_attention,
};
use crate::projection::{Projection, ProjectionSpec, Projections};
use crate::trace::{self, Trace};

const PREFIX: &str = "language_model.";
const OUTPUT: &str = "language_model.lm_head.weight";
/// Names of the word embeddings, the first that exists winning.
const WORDS: [&str; 3] = [
    "language_model.shared.weight",
    "language_model.encoder.embed_tokens.weight",
    "language_model.decoder.embed_tokens.weight",
];

#[derive(Debug)]
pub(crate) struct T5 {
    config: T5Config,
    /// (vocabulary, hidden), in the numbers of the checkpoint.
    words: Tensor,
    encoder: Stack,
    decoder: Stack,
    output: Projection,
    place: Placement,
}

/// All layers of the encoder or the decoder.
#[derive(Debug)]
struct Stack {
    blocks: Vec<Block>,
    /// (buckets, heads).
    distances: Tensor,
    norm: RmsNorm,
}

#[derive(Debug)]
struct Block {
    attention_norm: RmsNorm,
    qkv: Projection,
    attention_output: Projection,
    /// Only of the decoder.
    cross: Option<Cross>,
    inner_norm: RmsNorm,
    /// Where there is a gate, it lies beside what it opens to.
    first: Projection,
    second: Projection,
}

/// Attention of the decoder to the encoder's output.
#[derive(Debug)]
struct Cross {
    norm: RmsNorm,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
}

/// One decoder step: tokens at one position of several sequences.
pub(crate) struct T5Step<'a> {
    pub(crate) tokens: &'a [u32],
    /// Where these tokens stand, counted from 0.
    pub(crate) position: usize,
    /// The first row of the cache that this step writes; one for each token follows.
    pub(crate) cache_row: usize,
    /// The rows of the cache that each sequence attends to, its own new row last:
    /// `position + 1` of each sequence.
    pub(crate) history: &'a [u32],
    /// The rows of the encoder's output that each sequence attends to.
    pub(crate) encoded: &'a HistoryTable,
}

/// Which half of the model, with its sizes.
#[derive(Clone, Copy)]
struct Half<'a> {
    config: &'a T5Config,
    is_decoder: bool,
}

impl Half<'_> {
    fn name(self) -> String {
        let half = if self.is_decoder {
            "decoder"
        } else {
            "encoder"
        };
        format!("{PREFIX}{half}.")
    }

    fn blocks(self) -> usize {
        if self.is_decoder {
            self.config.decoder_layers
        } else {
            self.config.encoder_layers
        }
    }

    /// The place of the last part of a block.
    fn last(self) -> usize {
        if self.is_decoder { 2 } else { 1 }
    }

    fn distances(self) -> TensorSpec {
        let name = format!(
            "{}block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            self.name()
        );
        TensorSpec::new(name, [self.config.buckets, self.config.heads])
    }

    fn final_norm(self) -> TensorSpec {
        let name = format!("{}final_layer_norm.weight", self.name());
        TensorSpec::new(name, [self.config.hidden])
    }

    fn norm(self, block: usize, part: usize) -> TensorSpec {
        let name = format!(
            "{}block.{block}.layer.{part}.layer_norm.weight",
            self.name()
        );
        TensorSpec::new(name, [self.config.hidden])
    }

    /// In their order: queries with keys and values, what follows attention; the same
    /// apart for the decoder's attention to the encoder; both layers that follow.
    fn projections(self, block: usize) -> Vec<ProjectionSpec> {
        let (hidden, width, inner) = (self.config.hidden, self.config.width(), self.config.inner);
        let prefix = |part: usize| format!("{}block.{block}.layer.{part}.", self.name());
        let spec = |part: usize, parts: &[(&str, usize)], inputs| {
            ProjectionSpec::new(&prefix(part), parts, inputs)
        };
        let own = ["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"];
        let mut specs = vec![
            spec(0, &own.map(|name| (name, width)), hidden),
            spec(0, &[("SelfAttention.o", hidden)], width),
        ];
        if self.is_decoder {
            let cross = [
                "EncDecAttention.q",
                "EncDecAttention.k",
                "EncDecAttention.v",
            ];
            specs.extend(cross.map(|name| spec(1, &[(name, width)], hidden)));
            specs.push(spec(1, &[("EncDecAttention.o", hidden)], width));
        }
        let gated = [
            ("DenseReluDense.wi_0", inner),
            ("DenseReluDense.wi_1", inner),
        ];
        let first: &[(&str, usize)] = if self.config.gated {
            &gated
        } else {
            &[("DenseReluDense.wi", inner)]
        };
        specs.push(spec(self.last(), first, hidden));
        specs.push(spec(self.last(), &[("DenseReluDense.wo", hidden)], inner));
        specs
    }

    fn norms_and_distances(self) -> Vec<TensorSpec> {
        let mut specs = vec![self.distances(), self.final_norm()];
        for block in 0..self.blocks() {
            specs.extend((0..=self.last()).map(|part| self.norm(block, part)));
        }
        specs
    }

    fn read(self, source: &Projections<'_>) -> std::result::Result<Stack, ModelError> {
        let (checkpoint, place) = (source.checkpoint, source.place);
        let distances = self.distances();
        let norm = |spec: &TensorSpec| RmsNorm::read(spec, self.config.epsilon, checkpoint, place);
        let block = |index: usize| {
            let layers = self.projections(index);
            let layer = |place: usize| source.read(&layers[place]);
            let cross = || {
                Ok::<_, ModelError>(Cross {
                    norm: norm(&self.norm(index, 1))?,
                    query: layer(2)?,
                    key: layer(3)?,
                    value: layer(4)?,
                    output: layer(5)?,
                })
            };
            Ok::<_, ModelError>(Block {
                attention_norm: norm(&self.norm(index, 0))?,
                qkv: layer(0)?,
                attention_output: layer(1)?,
                cross: self.is_decoder.then(cross).transpose()?,
                inner_norm: norm(&self.norm(index, self.last()))?,
                first: layer(layers.len() - 2)?,
                second: layer(layers.len() - 1)?,
            })
        };
        Ok(Stack {
            blocks: (0..self.blocks())
                .map(block)
                .collect::<std::result::Result<_, _>>()?,
            distances: checkpoint.read(distances.name, &distances.shape, place)?,
            norm: norm(&self.final_norm())?,
        })
    }
}

fn halves(config: &T5Config) -> [Half<'_>; 2] {
    [false, true].map(|is_decoder| Half { config, is_decoder })
}

fn words_spec(config: &T5Config, checkpoint: &Checkpoint) -> TensorSpec {
    let stored = WORDS.into_iter().find(|name| checkpoint.contains(name));
    let shape = [config.vocabulary, config.hidden];
    TensorSpec::new(stored.unwrap_or(WORDS[0]), shape)
}

/// As in transformers the output layer is that of the word embeddings unless one is
/// stored.
fn output_spec(config: &T5Config, checkpoint: &Checkpoint) -> ProjectionSpec {
    let mut spec = words_spec(config, checkpoint);
    if checkpoint.contains(OUTPUT) {
        spec.name = OUTPUT.to_owned();
    }
    ProjectionSpec::output(spec)
}

impl T5 {
    /// All tensors that [`T5::read`] reads.
    pub(crate) fn specs(config: &T5Config, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let mut specs = vec![words_spec(config, checkpoint)];
        specs.extend(
            halves(config)
                .into_iter()
                .flat_map(Half::norms_and_distances),
        );
        let projections = Self::projections(config, checkpoint).into_iter();
        specs.extend(projections.flat_map(|spec| spec.parts));
        specs
    }

    /// All linear layers.
    pub(crate) fn projections(config: &T5Config, checkpoint: &Checkpoint) -> Vec<ProjectionSpec> {
        let blocks = halves(config).into_iter();
        blocks
            .flat_map(|half| (0..half.blocks()).flat_map(move |block| half.projections(block)))
            .chain([output_spec(config, checkpoint)])
            .collect()
    }

    pub(crate) fn read(
        config: &T5Config,
        source: &Projections<'_>,
    ) -> std::result::Result<Self, ModelError> {
        let (checkpoint, place) = (source.checkpoint, source.place);
        let [encoder, decoder] = halves(config).map(|half| half.read(source));
        Ok(Self {
            words: checkpoint.read_as_stored(&words_spec(config, checkpoint), place)?,
            encoder: encoder?,
            decoder: decoder?,
            output: source.read(&output_spec(config, checkpoint))?,
            place: place.clone(),
            config: config.clone(),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.place.device
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary
    }

    /// The token that every answer begins with.
    pub(crate) fn begin(&self) -> u32 {
        self.config.begin
    }

    /// The word embeddings of tokens, (tokens, hidden).
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, self.words.device())?;
        let words = self.words.index_select(&tokens, 0)?;
        words.to_dtype(self.place.dtype)
    }

    /// Memory for the keys and values of `rows` tokens, in all layers of the decoder.
    pub(crate) fn cache(&self, rows: usize) -> Result<Vec<KeysAndValues>> {
        let layers = self.decoder.blocks.len();
        KeysAndValues::reserve(layers, rows, self.config.width(), &self.place)
    }

    /// Reads `sequences` of equally many vectors, (sequences * length, hidden): the
    /// keys and values of the decoder's attention to them, in all its layers. A trace
    /// gets `encoder.layer.N`.
    pub(crate) fn encode(
        &self,
        mut x: Tensor,
        sequences: usize,
        mut trace: Option<&mut Trace>,
    ) -> Result<Vec<KeysAndValues>> {
        let (config, stack) = (&self.config, &self.encoder);
        let length = x.dim(0)? / sequences;
        let last = length as i64 - 1;
        let distances = self.biases(stack, true, -last..=last)?;
        let bias = DistanceBias::new(&distances, length)?;
        let lengths = vec![length; sequences];
        let packing = Packing::new(&lengths, config.heads, Some(&bias), is_fused(&x))?;
        let (scales, none) = self.scales()?;
        for (index, block) in stack.blocks.iter().enumerate() {
            let qkv = block.qkv.forward(&block.attention_norm.forward(&x)?)?;
            let attended = packed_attention(&qkv.broadcast_mul(&scales)?, &none, &packing)?;
            x = (x + block.attention_output.forward(&attended)?)?;
            x = block.feed_forward(&x, config)?;
            trace::add(&mut trace, || format!("encoder.layer.{index}"), &x);
        }
        let x = stack.norm.forward(&x)?;
        let crosses = self
            .decoder
            .blocks
            .iter()
            .filter_map(|block| block.cross.as_ref());
        crosses
            .map(|cross| {
                Ok(KeysAndValues {
                    keys: cross.key.forward(&x)?,
                    values: cross.value.forward(&x)?,
                })
            })
            .collect()
    }

    /// Computes one position of the decoder; the result is the hidden state after the
    /// last norm, (tokens, hidden). A trace gets `text.layer.N`.
    pub(crate) fn step(
        &self,
        step: &T5Step<'_>,
        cache: &[KeysAndValues],
        encoded: &[KeysAndValues],
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor> {
        let (config, stack) = (&self.config, &self.decoder);
        let mut x = self.embed(step.tokens)?;
        let last = step.position as i64;
        let biases = self.biases(stack, false, -last..=0)?;
        let biases = biases.reshape((1, config.heads, 1, step.position + 1))?;
        let history = Tensor::new(step.history, x.device())?;
        let unscaled = (config.head_size as f64).sqrt();
        let layers = stack.blocks.iter().zip(cache).zip(encoded);
        for (index, ((block, cache), encoded)) in layers.enumerate() {
            x = block.attend(&x, step, config, cache, &history, &biases)?;
            if let Some(cross) = &block.cross {
                let queries = cross.query.forward(&cross.norm.forward(&x)?)?;
                let queries = (queries * unscaled)?;
                let (keys, values) = (&encoded.keys, &encoded.values);
                let attended =
                    cached_attention(&queries, keys, values, step.encoded, config.heads)?;
                x = (x + cross.output.forward(&attended)?)?;
            }
            x = block.feed_forward(&x, config)?;
            trace::add(&mut trace, || format!("text.layer.{index}"), &x);
        }
        stack.norm.forward(&x)
    }

    /// Scores of all tokens of the vocabulary, (tokens, vocabulary).
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        if !self.config.scales_output {
            return self.output.forward(x);
        }
        let scale = (self.config.hidden as f64).powf(-0.5);
        self.output.forward(&(x * scale)?)
    }

    /// (heads, distances): the bias of keys that lie so far after their query.
    fn biases(
        &self,
        stack: &Stack,
        both_ways: bool,
        distances: std::ops::RangeInclusive<i64>,
    ) -> Result<Tensor> {
        let (buckets, max) = (self.config.buckets, self.config.max_distance);
        let buckets: Vec<u32> = distances
            .map(|distance| distance_bucket(distance, buckets, max, both_ways))
            .collect();
        let buckets = Tensor::new(buckets, stack.distances.device())?;
        stack.distances.index_select(&buckets, 0)?.t()?.contiguous()
    }

    /// What undoes the scaling of scores, (3 * width): factors of queries, and ones for
    /// keys and values; and a bias of zeros.
    fn scales(&self) -> Result<(Tensor, Tensor)> {
        let (width, place) = (self.config.width(), &self.place);
        let ones = Tensor::ones(2 * width, place.dtype, &place.device)?;
        let queries = (ones.narrow(0, 0, width)? * (self.config.head_size as f64).sqrt())?;
        let scales = Tensor::cat(&[&queries, &ones], 0)?;
        let zeros = scales.zeros_like()?;
        Ok((scales, zeros))
    }
}

impl Block {
    /// The decoder's attention to earlier tokens.
    fn attend(
        &self,
        x: &Tensor,
        step: &T5Step<'_>,
        config: &T5Config,
        cache: &KeysAndValues,
        history: &Tensor,
        biases: &Tensor,
    ) -> Result<Tensor> {
        let (tokens, width, length) = (x.dim(0)?, config.width(), step.position + 1);
        let qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        let part = |index: usize| qkv.narrow(1, index * width, width)?.contiguous();
        cache.write(&part(1)?, &part(2)?, step.cache_row)?;
        let gather = |source: &Tensor| {
            source
                .index_select(history, 0)?
                .reshape((tokens, length, config.heads, config.head_size))?
                .transpose(1, 2)?
                .contiguous()
        };
        let queries = part(0)?.reshape((tokens, config.heads, 1, config.head_size))?;
        let scores = queries.matmul(&gather(&cache.keys)?.t()?)?;
        let weights = candle_nn::ops::softmax_last_dim(&scores.broadcast_add(biases)?)?;
        let attended = weights.matmul(&gather(&cache.values)?)?;
        x + self
            .attention_output
            .forward(&attended.reshape((tokens, width))?)?
    }

    fn feed_forward(&self, x: &Tensor, config: &T5Config) -> Result<Tensor> {
        let first = self.first.forward(&self.inner_norm.forward(x)?)?;
        let inner = if config.gated {
            let gate = config
                .activation
                .apply(&first.narrow(1, 0, config.inner)?)?;
            (gate * first.narrow(1, config.inner, config.inner)?)?
        } else {
            config.activation.apply(&first)?
        };
        x + self.second.forward(&inner)?
    }
}
