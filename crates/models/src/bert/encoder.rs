//! The encoder of BERT and its relatives over packed sequences: the tokens of a
//! batch lie behind each other and no padding is computed.

use candle_core::{Device, Result, Tensor};

use crate::activation::Activation;
use crate::bert::BertConfig;
use crate::bert::distance::distance_bias;
use crate::bert::family::LayerNames;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::linear::Linear;
use crate::ops::{
    DistanceBias, NormParameters, Packing, add_layer_norm, is_fused, layer_norm, packed_attention,
};
use crate::trace::{self, Trace};

/// Embeddings and layers of a model, without its pooler.
#[derive(Debug)]
pub(crate) struct BertEncoder {
    /// (vocabulary, hidden).
    words: Tensor,
    /// (positions, hidden), with the embedding of token type 0 added.
    positions: Tensor,
    /// As in [`BertConfig`].
    padding: Option<u32>,
    /// What all layers add to the scores of their attention.
    distances: Option<DistanceBias>,
    norm: NormParameters,
    layers: Vec<Layer>,
    activation: Activation,
    heads: usize,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_output: Linear,
    attention_norm: NormParameters,
    intermediate: Linear,
    output: Linear,
    output_norm: NormParameters,
}

/// The tensors of a layer normalisation called `name`.
pub(crate) fn norm_specs(name: &str, hidden: usize) -> [TensorSpec; 2] {
    [
        TensorSpec::new(format!("{name}.weight"), [hidden]),
        TensorSpec::new(format!("{name}.bias"), [hidden]),
    ]
}

/// Reads a layer normalisation, to be fused with the bias of the layer before it.
pub(crate) fn read_norm(
    checkpoint: &Checkpoint,
    name: &str,
    bias: Option<&Linear>,
    hidden: usize,
    epsilon: f64,
    place: &Placement,
) -> std::result::Result<NormParameters, ModelError> {
    let [scale, shift] = norm_specs(name, hidden);
    let scale = checkpoint.read(scale.name, &scale.shape, place)?;
    let shift = checkpoint.read(shift.name, &shift.shape, place)?;
    let bias = bias.map(Linear::bias);
    Ok(NormParameters::new(&scale, &shift, bias, epsilon)?)
}

/// Names and shapes of the tables that are not part of a layer: words,
/// positions, types and distances, the last two where there are any.
struct Tables {
    words: TensorSpec,
    positions: TensorSpec,
    types: Option<TensorSpec>,
    distances: Option<TensorSpec>,
}

impl Tables {
    fn new(config: &BertConfig, prefix: &str) -> Self {
        let embedding = |name: &str, rows: usize| {
            let name = format!("{prefix}embeddings.{name}_embeddings.weight");
            TensorSpec::new(name, [rows, config.hidden_size])
        };
        Self {
            words: embedding("word", config.vocab_size),
            positions: embedding("position", config.max_position_embeddings),
            types: (config.type_vocab_size > 0)
                .then(|| embedding("token_type", config.type_vocab_size)),
            distances: (config.distance_buckets > 0).then(|| {
                let name = format!("{prefix}encoder.relative_attention_bias.weight");
                let shape = [config.distance_buckets, config.num_attention_heads];
                TensorSpec::new(name, shape)
            }),
        }
    }
}

fn embeddings_norm(prefix: &str) -> String {
    format!("{prefix}embeddings.LayerNorm")
}

impl BertEncoder {
    /// All tensors that [`BertEncoder::read`] reads.
    pub(crate) fn specs(config: &BertConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let prefix = config.family.prefix(checkpoint);
        let tables = Tables::new(config, prefix);
        let mut specs = vec![tables.words, tables.positions];
        specs.extend(tables.types);
        specs.extend(tables.distances);
        specs.extend(norm_specs(&embeddings_norm(prefix), config.hidden_size));
        for index in 0..config.num_hidden_layers {
            specs.extend(LayerSource::new(config, prefix, index).specs());
        }
        specs
    }

    pub(crate) fn read(
        config: &BertConfig,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let prefix = config.family.prefix(checkpoint);
        let tables = Tables::new(config, prefix);
        let table = |spec: TensorSpec| checkpoint.read(spec.name, &spec.shape, place);
        let mut positions = table(tables.positions)?;
        if let Some(types) = tables.types {
            positions = positions.broadcast_add(&table(types)?.narrow(0, 0, 1)?)?;
        }
        let distances = match tables.distances {
            Some(spec) => Some(distance_bias(&table(spec)?, config.max_tokens())?),
            None => None,
        };
        let layers = (0..config.num_hidden_layers)
            .map(|index| LayerSource::new(config, prefix, index).read(checkpoint, place))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            words: table(tables.words)?,
            positions,
            padding: config.padding,
            distances,
            norm: read_norm(
                checkpoint,
                &embeddings_norm(prefix),
                None,
                config.hidden_size,
                config.layer_norm_eps,
                place,
            )?,
            layers,
            activation: config.activation,
            heads: config.num_attention_heads,
            device: place.device.clone(),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The last hidden state, (tokens, hidden), of sequences behind each other.
    ///
    /// `ids` are the tokens of all sequences; `lengths` are how many each has. A
    /// trace gets `embeddings` and `layer.N`.
    pub(crate) fn forward(
        &self,
        ids: &[u32],
        lengths: &[usize],
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor> {
        let packing = Packing::new(
            lengths,
            self.heads,
            self.distances.as_ref(),
            is_fused(&self.words),
        )?;
        let mut x = self.embed(ids, lengths)?;
        trace::add(&mut trace, || "embeddings", &x);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &packing, self.activation)?;
            trace::add(&mut trace, || format!("layer.{index}"), &x);
        }
        Ok(x)
    }

    /// What the first layer gets, (tokens, hidden).
    fn embed(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let positions = Tensor::new(positions(ids, lengths, self.padding), &self.device)?;
        let ids = Tensor::new(ids, &self.device)?;
        let words = self.words.index_select(&ids, 0)?;
        let x = (words + self.positions.index_select(&positions, 0)?)?;
        layer_norm(&x, &self.norm)
    }
}

/// The positions of all tokens. With a padding token they begin after its id,
/// and one that is written out in a text has the position of its id, uncounted.
fn positions(ids: &[u32], lengths: &[usize], padding: Option<u32>) -> Vec<u32> {
    let Some(padding) = padding else {
        return lengths.iter().flat_map(|n| 0..*n as u32).collect();
    };
    let mut rest = ids;
    let mut positions = Vec::with_capacity(ids.len());
    for length in lengths {
        let (sequence, after) = rest.split_at(*length);
        rest = after;
        let mut next = padding;
        positions.extend(sequence.iter().map(|id| {
            if *id == padding {
                return padding;
            }
            next += 1;
            next
        }));
    }
    positions
}

/// Where a layer is in a checkpoint, and its sizes.
struct LayerSource<'a> {
    config: &'a BertConfig,
    names: &'static LayerNames,
    /// What the names of all its tensors begin with.
    name: String,
}

impl<'a> LayerSource<'a> {
    fn new(config: &'a BertConfig, prefix: &str, index: usize) -> Self {
        let names = config.family.layer_names();
        Self {
            config,
            names,
            name: format!("{prefix}{}.{index}", names.layers),
        }
    }

    fn part(&self, part: &str) -> String {
        format!("{}.{part}", self.name)
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let names = self.names;
        let [q, k, v] = names.qkv;
        let mut specs = Vec::new();
        for (part, inputs, outputs) in [
            (q, hidden, hidden),
            (k, hidden, hidden),
            (v, hidden, hidden),
            (names.attention_output, hidden, hidden),
            (names.intermediate, hidden, inner),
            (names.output, inner, hidden),
        ] {
            specs.extend(Linear::specs(&self.part(part), inputs, outputs));
        }
        specs.extend(norm_specs(&self.part(names.attention_norm), hidden));
        specs.extend(norm_specs(&self.part(names.output_norm), hidden));
        specs
    }

    fn read(
        &self,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Layer, ModelError> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let names = self.names;
        let linear = |part, inputs, outputs| {
            Linear::read(checkpoint, &self.part(part), inputs, outputs, place)
        };
        let norm = |part, bias: &Linear| {
            let epsilon = self.config.layer_norm_eps;
            let name = self.part(part);
            read_norm(checkpoint, &name, Some(bias), hidden, epsilon, place)
        };
        let qkv = names.qkv.map(|part| self.part(part));
        let attention_output = linear(names.attention_output, hidden, hidden)?;
        let output = linear(names.output, inner, hidden)?;
        Ok(Layer {
            qkv: Linear::read_joined(checkpoint, &qkv, hidden, hidden, place)?,
            attention_norm: norm(names.attention_norm, &attention_output)?,
            attention_output,
            intermediate: linear(names.intermediate, hidden, inner)?,
            output_norm: norm(names.output_norm, &output)?,
            output,
        })
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, packing: &Packing<'_>, activation: Activation) -> Result<Tensor> {
        let qkv = self.qkv.product(x)?;
        let attended = packed_attention(&qkv, self.qkv.bias(), packing)?;
        let projected = self.attention_output.product(&attended)?;
        let x = add_layer_norm(projected, x, &self.attention_norm)?;
        let inner = self.intermediate.forward_activated(&x, activation)?;
        add_layer_norm(self.output.product(&inner)?, &x, &self.output_norm)
    }
}

#[cfg(test)]
mod tests;
