//! The encoder of BERT over packed sequences: the tokens of a batch lie behind
//! each other and no padding is computed.

use candle_core::{Device, Result, Tensor};

use crate::bert::BertConfig;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::ModelError;
use crate::linear::Linear;
use crate::ops::{NormParameters, add_layer_norm, bias_gelu, layer_norm, packed_attention};

/// Embeddings and layers of a BERT model, without its pooler.
#[derive(Debug)]
pub(crate) struct BertEncoder {
    /// (vocabulary, hidden).
    words: Tensor,
    /// (positions, hidden), with the embedding of token type 0 added.
    positions: Tensor,
    norm: NormParameters,
    layers: Vec<Layer>,
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

/// Checkpoints of `BertModel` have plain names; those of heads have this prefix.
fn prefix(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.contains("bert.embeddings.word_embeddings.weight") {
        "bert."
    } else {
        ""
    }
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
    device: &Device,
) -> std::result::Result<NormParameters, ModelError> {
    let [scale, shift] = norm_specs(name, hidden);
    let scale = checkpoint.read(scale.name, &scale.shape, device)?;
    let shift = checkpoint.read(shift.name, &shift.shape, device)?;
    let bias = bias.map(Linear::bias);
    Ok(NormParameters::new(&scale, &shift, bias, epsilon)?)
}

impl BertEncoder {
    /// All tensors that [`BertEncoder::read`] reads.
    pub(crate) fn specs(config: &BertConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let prefix = prefix(checkpoint);
        let hidden = config.hidden_size;
        let tables = [
            ("word_embeddings", config.vocab_size),
            ("position_embeddings", config.max_position_embeddings),
            ("token_type_embeddings", config.type_vocab_size),
        ];
        let mut specs: Vec<TensorSpec> = tables
            .into_iter()
            .map(|(name, rows)| {
                TensorSpec::new(format!("{prefix}embeddings.{name}.weight"), [rows, hidden])
            })
            .collect();
        specs.extend(norm_specs(&format!("{prefix}embeddings.LayerNorm"), hidden));
        for index in 0..config.num_hidden_layers {
            specs.extend(Layer::specs(config, &Layer::name(prefix, index)));
        }
        specs
    }

    pub(crate) fn read(
        config: &BertConfig,
        checkpoint: &Checkpoint,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let prefix = prefix(checkpoint);
        let hidden = config.hidden_size;
        let table = |name: &str, rows: usize| {
            let name = format!("{prefix}embeddings.{name}.weight");
            checkpoint.read(name, &[rows, hidden], device)
        };
        let types = table("token_type_embeddings", config.type_vocab_size)?;
        let positions = table("position_embeddings", config.max_position_embeddings)?;
        let norm = format!("{prefix}embeddings.LayerNorm");
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::read(config, checkpoint, &Layer::name(prefix, index), device))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: positions.broadcast_add(&types.narrow(0, 0, 1)?)?,
            norm: read_norm(
                checkpoint,
                &norm,
                None,
                hidden,
                config.layer_norm_eps,
                device,
            )?,
            layers,
            heads: config.num_attention_heads,
            device: device.clone(),
        })
    }

    /// The last hidden state, (tokens, hidden), of sequences behind each other.
    ///
    /// `ids` are the tokens of all sequences; `lengths` are how many each has.
    pub(crate) fn forward(&self, ids: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let positions: Vec<u32> = lengths
            .iter()
            .flat_map(|length| 0..*length as u32)
            .collect();
        let ids = Tensor::new(ids, &self.device)?;
        let positions = Tensor::new(positions, &self.device)?;
        let words = self.words.index_select(&ids, 0)?;
        let x = (words + self.positions.index_select(&positions, 0)?)?;
        let mut x = layer_norm(&x, &self.norm)?;
        for layer in &self.layers {
            x = layer.forward(&x, lengths, self.heads)?;
        }
        Ok(x)
    }
}

impl Layer {
    fn name(prefix: &str, index: usize) -> String {
        format!("{prefix}encoder.layer.{index}")
    }

    fn qkv_names(name: &str) -> [String; 3] {
        ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"))
    }

    fn specs(config: &BertConfig, name: &str) -> Vec<TensorSpec> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut specs = Vec::new();
        for part in Self::qkv_names(name) {
            specs.extend(Linear::specs(&part, hidden, hidden));
        }
        let attention = format!("{name}.attention.output");
        specs.extend(Linear::specs(&format!("{attention}.dense"), hidden, hidden));
        specs.extend(norm_specs(&format!("{attention}.LayerNorm"), hidden));
        specs.extend(Linear::specs(
            &format!("{name}.intermediate.dense"),
            hidden,
            inner,
        ));
        specs.extend(Linear::specs(
            &format!("{name}.output.dense"),
            inner,
            hidden,
        ));
        specs.extend(norm_specs(&format!("{name}.output.LayerNorm"), hidden));
        specs
    }

    fn read(
        config: &BertConfig,
        checkpoint: &Checkpoint,
        name: &str,
        device: &Device,
    ) -> std::result::Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, inputs, outputs| {
            Linear::read(
                checkpoint,
                &format!("{name}.{part}.dense"),
                inputs,
                outputs,
                device,
            )
        };
        let norm = |part: &str, bias: &Linear| {
            let name = format!("{name}.{part}.LayerNorm");
            let epsilon = config.layer_norm_eps;
            read_norm(checkpoint, &name, Some(bias), hidden, epsilon, device)
        };
        let attention_output = linear("attention.output", hidden, hidden)?;
        let output = linear("output", inner, hidden)?;
        Ok(Self {
            qkv: Linear::read_joined(checkpoint, &Self::qkv_names(name), hidden, hidden, device)?,
            attention_norm: norm("attention.output", &attention_output)?,
            attention_output,
            intermediate: linear("intermediate", hidden, inner)?,
            output_norm: norm("output", &output)?,
            output,
        })
    }

    fn forward(&self, x: &Tensor, lengths: &[usize], heads: usize) -> Result<Tensor> {
        let qkv = self.qkv.product(x)?;
        let attended = packed_attention(&qkv, self.qkv.bias(), lengths, heads)?;
        let projected = self.attention_output.product(&attended)?;
        let x = add_layer_norm(projected, x, &self.attention_norm)?;
        let inner = bias_gelu(self.intermediate.product(&x)?, self.intermediate.bias())?;
        add_layer_norm(self.output.product(&inner)?, &x, &self.output_norm)
    }
}
