//! Llama (Touvron et al. 2023): a decoder with rotary positions, RMS norms and a
//! gated activation, over a cache that belongs to the request.

use candle_core::{Device, Result, Tensor};

use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::instructblip::llama_config::LlamaConfig;
use crate::instructblip::rms_norm::RmsNorm;
use crate::kv_cache::KeysAndValues;
use crate::ops::{HistoryTable, cached_attention};
use crate::projection::{Projection, ProjectionSpec, Projections};
use crate::trace::{self, Trace};

const PREFIX: &str = "language_model.model.";
const WORDS: &str = "language_model.model.embed_tokens.weight";
const FINAL_NORM: &str = "language_model.model.norm.weight";
const OUTPUT: &str = "language_model.lm_head.weight";

#[derive(Debug)]
pub(crate) struct Llama {
    config: LlamaConfig,
    /// (vocabulary, hidden), in the numbers of the checkpoint.
    words: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    output: Projection,
    rotation: Rotation,
    place: Placement,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    qkv: Projection,
    attention_output: Projection,
    inner_norm: RmsNorm,
    /// The gate beside what it opens to.
    gate_and_up: Projection,
    down: Projection,
}

/// Several tokens that are computed together, each of any sequence and position.
pub(crate) struct Run<'a> {
    /// Where each token stands, counted from 0.
    pub(crate) positions: &'a [u32],
    /// The first row of the cache that is written; one for each token follows.
    pub(crate) cache_row: usize,
    /// The rows of the cache that each token attends to, its own last.
    pub(crate) history: &'a HistoryTable,
}

impl Llama {
    /// All tensors that [`Llama::read`] reads.
    pub(crate) fn specs(config: &LlamaConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let hidden = config.hidden();
        let mut specs = vec![
            TensorSpec::new(WORDS, [config.vocabulary(), hidden]),
            TensorSpec::new(FINAL_NORM, [hidden]),
        ];
        for index in 0..config.layers() {
            specs.extend(LayerSource { config, index }.norms());
        }
        let projections = Self::projections(config, checkpoint).into_iter();
        specs.extend(projections.flat_map(|spec| spec.parts));
        specs
    }

    /// All linear layers.
    pub(crate) fn projections(
        config: &LlamaConfig,
        checkpoint: &Checkpoint,
    ) -> Vec<ProjectionSpec> {
        let layers = 0..config.layers();
        layers
            .flat_map(|index| LayerSource { config, index }.projections())
            .chain([output_spec(config, checkpoint)])
            .collect()
    }

    pub(crate) fn read(
        config: &LlamaConfig,
        source: &Projections<'_>,
    ) -> std::result::Result<Self, ModelError> {
        let (checkpoint, place) = (source.checkpoint, source.place);
        let hidden = config.hidden();
        let layers = (0..config.layers())
            .map(|index| LayerSource { config, index }.read(source))
            .collect::<std::result::Result<_, _>>()?;
        let norm = TensorSpec::new(FINAL_NORM, [hidden]);
        let words = TensorSpec::new(WORDS, [config.vocabulary(), hidden]);
        Ok(Self {
            words: checkpoint.read_as_stored(&words, place)?,
            layers,
            norm: RmsNorm::read(&norm, config.epsilon(), checkpoint, place)?,
            output: source.read(&output_spec(config, checkpoint))?,
            rotation: Rotation::new(config, place),
            place: place.clone(),
            config: config.clone(),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.place.device
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.config.vocabulary()
    }

    /// The word embeddings of tokens, (tokens, hidden).
    pub(crate) fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let tokens = Tensor::new(tokens, self.words.device())?;
        let words = self.words.index_select(&tokens, 0)?;
        words.to_dtype(self.place.dtype)
    }

    /// Memory for the keys and values of `rows` tokens, in all layers.
    pub(crate) fn cache(&self, rows: usize) -> Result<Vec<KeysAndValues>> {
        let width = self.config.heads() * self.config.head_size();
        KeysAndValues::reserve(self.layers.len(), rows, width, &self.place)
    }

    /// (tokens, hidden) to the output of the last layer, of the same shape. A trace
    /// gets `text.layer.N`.
    pub(crate) fn forward(
        &self,
        mut x: Tensor,
        run: &Run<'_>,
        cache: &[KeysAndValues],
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor> {
        let turns = self.rotation.of(run.positions)?;
        for (index, (layer, cache)) in self.layers.iter().zip(cache).enumerate() {
            x = layer.forward(&x, run, &turns, &self.config, cache)?;
            trace::add(&mut trace, || format!("text.layer.{index}"), &x);
        }
        Ok(x)
    }

    /// Scores of all tokens of the vocabulary, (tokens, vocabulary).
    pub(crate) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.output.forward(&self.norm.forward(x)?)
    }
}

/// The output layer: one of its own where there is one, or the word embeddings
/// where the configuration allows that.
fn output_spec(config: &LlamaConfig, checkpoint: &Checkpoint) -> ProjectionSpec {
    let own = checkpoint.contains(OUTPUT) || !config.ties_words;
    let name = if own { OUTPUT } else { WORDS };
    let shape = [config.vocabulary(), config.hidden()];
    ProjectionSpec::output(TensorSpec::new(name, shape))
}

/// Where a layer is in a checkpoint, and its sizes.
struct LayerSource<'a> {
    config: &'a LlamaConfig,
    index: usize,
}

impl LayerSource<'_> {
    fn norms(&self) -> [TensorSpec; 2] {
        ["input_layernorm", "post_attention_layernorm"].map(|norm| {
            let name = format!("{PREFIX}layers.{}.{norm}.weight", self.index);
            TensorSpec::new(name, [self.config.hidden()])
        })
    }

    /// Queries, keys and values; what follows attention; gate and what it opens to;
    /// what follows them.
    fn projections(&self) -> [ProjectionSpec; 4] {
        let config = self.config;
        let (hidden, inner) = (config.hidden(), config.inner());
        let queries = config.heads() * config.head_size();
        let keys = config.key_heads() * config.head_size();
        let prefix = format!("{PREFIX}layers.{}.", self.index);
        let spec = |parts: &[(&str, usize)], inputs| ProjectionSpec::new(&prefix, parts, inputs);
        [
            spec(
                &[
                    ("self_attn.q_proj", queries),
                    ("self_attn.k_proj", keys),
                    ("self_attn.v_proj", keys),
                ],
                hidden,
            ),
            spec(&[("self_attn.o_proj", hidden)], queries),
            spec(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden),
            spec(&[("mlp.down_proj", hidden)], inner),
        ]
    }

    fn read(&self, source: &Projections<'_>) -> std::result::Result<Layer, ModelError> {
        let epsilon = self.config.epsilon();
        let norm = |spec| RmsNorm::read(spec, epsilon, source.checkpoint, source.place);
        let projection = |spec: &ProjectionSpec| source.read(spec);
        let [attention_norm, inner_norm] = &self.norms();
        let [qkv, attention_output, gate_and_up, down] = &self.projections();
        Ok(Layer {
            attention_norm: norm(attention_norm)?,
            qkv: projection(qkv)?,
            attention_output: projection(attention_output)?,
            inner_norm: norm(inner_norm)?,
            gate_and_up: projection(gate_and_up)?,
            down: projection(down)?,
        })
    }
}

impl Layer {
    fn forward(
        &self,
        x: &Tensor,
        run: &Run<'_>,
        turns: &Turns,
        config: &LlamaConfig,
        cache: &KeysAndValues,
    ) -> Result<Tensor> {
        let (heads, key_heads, size) = (config.heads(), config.key_heads(), config.head_size());
        let qkv = self.qkv.forward(&self.attention_norm.forward(x)?)?;
        let part = |first: usize, heads: usize| {
            let part = qkv.narrow(1, first * size, heads * size)?;
            part.reshape((part.dim(0)?, heads, size))
        };
        let queries = turns.apply(&part(0, heads)?)?;
        let keys = turns.apply(&part(heads, key_heads)?)?;
        let values = part(heads + key_heads, key_heads)?;
        cache.write(
            &spread(&keys, heads)?,
            &spread(&values, heads)?,
            run.cache_row,
        )?;
        let queries = queries.reshape((x.dim(0)?, heads * size))?;
        let attended = cached_attention(&queries, &cache.keys, &cache.values, run.history, heads)?;
        let x = (x + self.attention_output.forward(&attended)?)?;
        let both = self.gate_and_up.forward(&self.inner_norm.forward(&x)?)?;
        let inner = config.inner();
        let gate = config.activation.apply(&both.narrow(1, 0, inner)?)?;
        let opened = (gate * both.narrow(1, inner, inner)?)?;
        &x + self.down.forward(&opened)?
    }
}

/// (tokens, key heads, size) to (tokens, heads * size): each head of keys as often as
/// there are heads of queries that it serves. The cache holds them so, which attention
/// to it knows nothing of; the published models have as many of one as of the other.
fn spread(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (tokens, key_heads, size) = x.dims3()?;
    let x = x.unsqueeze(2)?;
    let x = x.expand((tokens, key_heads, heads / key_heads, size))?;
    x.reshape((tokens, heads * size))?.contiguous()
}

/// Rotary positions (Su et al. 2021): component i of a head and component i + size/2
/// turn together by `position / theta^(2i / size)`. Turns are computed for the positions of
/// a forward pass: a table of all would be as large as a configuration says.
#[derive(Debug)]
struct Rotation {
    /// Of a turn in each position; half as many as a head has components.
    frequencies: Vec<f32>,
    place: Placement,
}

/// The rotation of some tokens, (tokens, head size / 2) each.
struct Turns {
    cosines: Tensor,
    sines: Tensor,
}

impl Rotation {
    fn new(config: &LlamaConfig, place: &Placement) -> Self {
        let frequency = |pair: usize| {
            let exponent = 2.0 * pair as f64 / config.head_size() as f64;
            (1.0 / config.rope_theta().powf(exponent)) as f32
        };
        Self {
            frequencies: (0..config.head_size() / 2).map(frequency).collect(),
            place: place.clone(),
        }
    }

    fn of(&self, positions: &[u32]) -> Result<Turns> {
        let of_position = |position: &u32| {
            let position = *position as f32;
            let frequencies = self.frequencies.iter();
            frequencies.map(move |frequency| position * frequency)
        };
        let angles: Vec<f32> = positions.iter().flat_map(of_position).collect();
        let shape = (positions.len(), self.frequencies.len());
        let table = |function: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().map(|angle| function(*angle)).collect();
            Tensor::from_vec(values, shape, &Device::Cpu)?
                .to_dtype(self.place.dtype)?
                .to_device(&self.place.device)
        };
        Ok(Turns {
            cosines: table(f32::cos)?,
            sines: table(f32::sin)?,
        })
    }
}

impl Turns {
    /// (tokens, heads, head size) to the same.
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?.unsqueeze(0)?;
        candle_nn::rotary_emb::rope_thd(&x, &self.cosines, &self.sines)?.squeeze(0)
    }
}
