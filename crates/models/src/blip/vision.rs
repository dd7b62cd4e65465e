//! The vision tower of BLIP: a vision transformer with the norm before each block.

use candle_core::{Result, Tensor};

use crate::activation::Activation;
use crate::bert::{norm_specs, read_norm};
use crate::blip::config::VisionConfig;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::linear::Linear;
use crate::ops::{NormParameters, Packing, add_to_rows, is_fused, layer_norm, packed_attention};
use crate::trace::{self, Trace};

const CHANNELS: usize = 3;
const PREFIX: &str = "vision_model";

#[derive(Debug)]
pub(crate) struct VisionTower {
    config: VisionConfig,
    activation: Activation,
    /// The convolution over whole patches, as a linear layer of their samples.
    patches: Linear,
    /// (1, hidden): class token with its position.
    class: Tensor,
    /// (patches, hidden).
    positions: Tensor,
    layers: Vec<Layer>,
    norm: NormParameters,
}

#[derive(Debug)]
struct Layer {
    attention_norm: NormParameters,
    qkv: Linear,
    projection: Linear,
    inner_norm: NormParameters,
    first: Linear,
    second: Linear,
}

impl VisionTower {
    /// All tensors that [`VisionTower::read`] reads.
    pub(crate) fn specs(config: &VisionConfig) -> Vec<TensorSpec> {
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let embeddings = format!("{PREFIX}.embeddings");
        let mut specs = vec![
            TensorSpec::new(format!("{embeddings}.class_embedding"), [1, 1, hidden]),
            TensorSpec::new(
                format!("{embeddings}.position_embedding"),
                [1, config.positions(), hidden],
            ),
            TensorSpec::new(
                format!("{embeddings}.patch_embedding.weight"),
                [hidden, CHANNELS, patch, patch],
            ),
            TensorSpec::new(format!("{embeddings}.patch_embedding.bias"), [hidden]),
        ];
        for index in 0..config.num_hidden_layers {
            specs.extend(Layer::specs(config, &Layer::name(index)));
        }
        specs.extend(norm_specs(&format!("{PREFIX}.post_layernorm"), hidden));
        specs
    }

    pub(crate) fn read(
        config: &VisionConfig,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let (hidden, patch) = (config.hidden_size, config.patch_size);
        let read = |name: &str, shape: &[usize]| {
            checkpoint.read(format!("{PREFIX}.embeddings.{name}"), shape, place)
        };
        let weight = read("patch_embedding.weight", &[hidden, CHANNELS, patch, patch])?;
        let weight = weight.reshape((hidden, CHANNELS * patch * patch))?;
        let bias = read("patch_embedding.bias", &[hidden])?;
        let class = read("class_embedding", &[1, 1, hidden])?.reshape((1, hidden))?;
        let count = config.positions();
        let positions = read("position_embedding", &[1, count, hidden])?;
        let positions = positions.reshape((count, hidden))?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::read(config, checkpoint, &Layer::name(index), place))
            .collect::<std::result::Result<_, _>>()?;
        let norm = format!("{PREFIX}.post_layernorm");
        Ok(Self {
            config: config.clone(),
            activation: config.activation()?,
            patches: Linear::new(&weight, bias)?,
            class: (class + positions.narrow(0, 0, 1)?)?,
            positions: positions.narrow(0, 1, count - 1)?,
            layers,
            norm: read_norm(
                checkpoint,
                &norm,
                None,
                hidden,
                config.layer_norm_eps,
                place,
            )?,
        })
    }

    /// (batch, 3, side, side) to (batch * positions, hidden): the vectors of each
    /// picture behind each other, the class token first. A trace gets
    /// `vision.embeddings`, `vision.layer.N` and `vision.output`.
    pub(crate) fn forward(&self, pixels: &Tensor, mut trace: Option<&mut Trace>) -> Result<Tensor> {
        let batch = pixels.dim(0)?;
        let hidden = self.config.hidden_size;
        let mut x = self.embed(pixels)?;
        let lengths = vec![self.config.positions(); batch];
        let heads = self.config.num_attention_heads;
        let packing = Packing::new(&lengths, heads, None, is_fused(pixels))?;
        trace::add(&mut trace, || "vision.embeddings", &x);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, &packing, self.activation)?;
            trace::add(&mut trace, || format!("vision.layer.{index}"), &x);
        }
        let x = layer_norm(&x, &self.norm)?.reshape((batch * self.config.positions(), hidden))?;
        trace::add(&mut trace, || "vision.output", &x);
        Ok(x)
    }

    fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let (batch, grid, patch) = (pixels.dim(0)?, self.config.grid(), self.config.patch_size);
        let hidden = self.config.hidden_size;
        let patches = pixels
            .reshape(vec![batch, CHANNELS, grid, patch, grid, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch * grid * grid, CHANNELS * patch * patch))?;
        let patches = self
            .patches
            .forward(&patches)?
            .reshape((batch, grid * grid * hidden))?;
        let positions = self.positions.reshape((1, grid * grid * hidden))?;
        let patches = add_to_rows(patches, &positions)?.reshape((batch, grid * grid, hidden))?;
        let class = self.class.unsqueeze(0)?.expand((batch, 1, hidden))?;
        Tensor::cat(&[&class.contiguous()?, &patches], 1)?
            .reshape((batch * self.config.positions(), hidden))
    }
}

impl Layer {
    fn name(index: usize) -> String {
        format!("{PREFIX}.encoder.layers.{index}")
    }

    fn specs(config: &VisionConfig, name: &str) -> Vec<TensorSpec> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut specs = Vec::new();
        specs.extend(norm_specs(&format!("{name}.layer_norm1"), hidden));
        specs.extend(norm_specs(&format!("{name}.layer_norm2"), hidden));
        for (part, inputs, outputs) in [
            ("self_attn.qkv", hidden, 3 * hidden),
            ("self_attn.projection", hidden, hidden),
            ("mlp.fc1", hidden, inner),
            ("mlp.fc2", inner, hidden),
        ] {
            specs.extend(Linear::specs(&format!("{name}.{part}"), inputs, outputs));
        }
        specs
    }

    fn read(
        config: &VisionConfig,
        checkpoint: &Checkpoint,
        name: &str,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let linear = |part: &str, inputs, outputs| {
            Linear::read(
                checkpoint,
                &format!("{name}.{part}"),
                inputs,
                outputs,
                place,
            )
        };
        let norm = |part: &str| {
            let name = format!("{name}.{part}");
            read_norm(
                checkpoint,
                &name,
                None,
                hidden,
                config.layer_norm_eps,
                place,
            )
        };
        Ok(Self {
            attention_norm: norm("layer_norm1")?,
            qkv: linear("self_attn.qkv", hidden, 3 * hidden)?,
            projection: linear("self_attn.projection", hidden, hidden)?,
            inner_norm: norm("layer_norm2")?,
            first: linear("mlp.fc1", hidden, inner)?,
            second: linear("mlp.fc2", inner, hidden)?,
        })
    }

    fn forward(&self, x: &Tensor, packing: &Packing<'_>, activation: Activation) -> Result<Tensor> {
        let normed = layer_norm(x, &self.attention_norm)?;
        let qkv = self.qkv.product(&normed)?;
        let attended = packed_attention(&qkv, self.qkv.bias(), packing)?;
        let x = self.projection.forward_added(&attended, x)?;
        let normed = layer_norm(&x, &self.inner_norm)?;
        let inner = self.first.forward_activated(&normed, activation)?;
        self.second.forward_added(&inner, &x)
    }
}
