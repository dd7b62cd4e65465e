//! The text decoder of BLIP: BERT's layers with a causal self-attention over a
//! cache and an attention to the picture.

use candle_core::{Result, Tensor};

use crate::activation::Activation;
use crate::bert::{norm_specs, read_norm};
use crate::blip::config::{BlipConfig, TextConfig};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::kv_cache::KeysAndValues;
use crate::linear::Linear;
use crate::ops::{
    HistoryTable, NormParameters, add_layer_norm, add_to_rows, appending_attention, layer_norm,
    projected_attention,
};
use crate::trace::{self, Trace};

const PREFIX: &str = "text_decoder";

#[derive(Debug)]
pub(crate) struct TextDecoder {
    config: TextConfig,
    activation: Activation,
    /// (vocabulary, hidden), where the output layer has a weight of its own.
    words: Option<Tensor>,
    positions: Tensor,
    norm: NormParameters,
    layers: Vec<Layer>,
    transform: Linear,
    transform_norm: NormParameters,
    /// Unless there are `words`, its weight is that of the word embeddings, for
    /// which it serves too.
    output: Linear,
    place: Placement,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    self_output: Linear,
    self_norm: NormParameters,
    cross_query: Linear,
    cross_key: Linear,
    cross_value: Linear,
    cross_output: Linear,
    cross_norm: NormParameters,
    intermediate: Linear,
    output: Linear,
    output_norm: NormParameters,
}

/// One decoder step: tokens at one position of several sequences.
pub(crate) struct Step<'a> {
    /// The token of each sequence.
    pub(crate) tokens: &'a [u32],
    /// Where these tokens stand, counted from 0.
    pub(crate) position: usize,
    /// The first row of the cache that this step writes; one for each token follows.
    pub(crate) cache_row: usize,
    /// The rows of the cache that each sequence attends to, its own new row last.
    pub(crate) history: &'a HistoryTable,
    /// The rows of the picture that each sequence attends to.
    pub(crate) pictures: &'a HistoryTable,
}

const OUTPUT_WEIGHT: &str = "text_decoder.cls.predictions.decoder.weight";
const OUTPUT_BIAS: &str = "text_decoder.cls.predictions.decoder.bias";
/// Another name of the bias: where both are stored, transformers uses the former.
const TIED_BIAS: &str = "text_decoder.cls.predictions.bias";

/// The tensors of the output layer that are looked for: the weight, unless the
/// word embeddings are meant, and the bias.
fn output_names(ties_words: bool, checkpoint: &Checkpoint) -> (Option<&'static str>, &'static str) {
    let stored = |name| !ties_words || checkpoint.contains(name);
    let bias = if stored(OUTPUT_BIAS) {
        OUTPUT_BIAS
    } else {
        TIED_BIAS
    };
    (stored(OUTPUT_WEIGHT).then_some(OUTPUT_WEIGHT), bias)
}

impl TextDecoder {
    /// All tensors that [`TextDecoder::read`] reads.
    pub(crate) fn specs(whole: &BlipConfig, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        let (config, vision) = (&whole.text_config, whole.vision_config.hidden_size);
        let hidden = config.hidden_size;
        let (weight, bias) = output_names(whole.ties_words(), checkpoint);
        let embeddings = format!("{PREFIX}.bert.embeddings");
        let transform = format!("{PREFIX}.cls.predictions.transform");
        let mut specs = vec![
            TensorSpec::new(
                format!("{embeddings}.word_embeddings.weight"),
                [config.vocab_size, hidden],
            ),
            TensorSpec::new(
                format!("{embeddings}.position_embeddings.weight"),
                [config.max_position_embeddings, hidden],
            ),
            TensorSpec::new(bias, [config.vocab_size]),
        ];
        specs.extend(weight.map(|weight| TensorSpec::new(weight, [config.vocab_size, hidden])));
        specs.extend(norm_specs(&format!("{embeddings}.LayerNorm"), hidden));
        specs.extend(Linear::specs(&format!("{transform}.dense"), hidden, hidden));
        specs.extend(norm_specs(&format!("{transform}.LayerNorm"), hidden));
        for index in 0..config.num_hidden_layers {
            specs.extend(Layer::specs(config, vision, &Layer::name(index)));
        }
        specs
    }

    pub(crate) fn read(
        whole: &BlipConfig,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let (config, vision) = (&whole.text_config, whole.vision_config.hidden_size);
        let (hidden, epsilon) = (config.hidden_size, config.layer_norm_eps);
        let embeddings = format!("{PREFIX}.bert.embeddings");
        let transform = format!("{PREFIX}.cls.predictions.transform");
        let table = |name: &str, rows: usize| {
            let name = format!("{embeddings}.{name}.weight");
            checkpoint.read(name, &[rows, hidden], place)
        };
        let norm = |name: &str| {
            let name = format!("{name}.LayerNorm");
            read_norm(checkpoint, &name, None, hidden, epsilon, place)
        };
        let words = table("word_embeddings", config.vocab_size)?;
        let (output, own_output) = read_output(whole, &words, checkpoint, place)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::read(config, vision, checkpoint, &Layer::name(index), place))
            .collect::<std::result::Result<_, _>>()?;
        let dense = format!("{transform}.dense");
        Ok(Self {
            config: config.clone(),
            activation: config.activation()?,
            words: own_output.then_some(words),
            output,
            place: place.clone(),
            positions: table("position_embeddings", config.max_position_embeddings)?,
            norm: norm(&embeddings)?,
            layers,
            transform: Linear::read(checkpoint, &dense, hidden, hidden, place)?,
            transform_norm: norm(&transform)?,
        })
    }

    /// Cross-attention keys and values of all layers for `pictures`, (rows, vision).
    pub(crate) fn picture_keys(&self, pictures: &Tensor) -> Result<Vec<KeysAndValues>> {
        self.layers
            .iter()
            .map(|layer| {
                Ok(KeysAndValues {
                    keys: layer.cross_key.forward(pictures)?,
                    values: layer.cross_value.forward(pictures)?,
                })
            })
            .collect()
    }

    /// Memory for the keys and values of `rows` tokens, in all layers.
    pub(crate) fn cache(&self, rows: usize) -> Result<Vec<KeysAndValues>> {
        let (layers, hidden) = (self.layers.len(), self.config.hidden_size);
        KeysAndValues::reserve(layers, rows, hidden, &self.place)
    }

    /// Computes one position; the result is the hidden state, (tokens, hidden). A
    /// trace gets `text.embeddings` and `text.layer.N`.
    pub(crate) fn step(
        &self,
        step: &Step<'_>,
        cache: &[KeysAndValues],
        pictures: &[KeysAndValues],
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor> {
        let words = match &self.words {
            Some(words) => words.index_select(&Tensor::new(step.tokens, words.device())?, 0)?,
            None => self.output.rows(step.tokens)?,
        };
        let position = self.positions.narrow(0, step.position, 1)?;
        let mut x = layer_norm(&add_to_rows(words, &position)?, &self.norm)?;
        trace::add(&mut trace, || "text.embeddings", &x);
        let layers = self.layers.iter().zip(cache).zip(pictures);
        for (index, ((layer, cache), picture)) in layers.enumerate() {
            x = layer.forward(&x, step, self, cache, picture)?;
            trace::add(&mut trace, || format!("text.layer.{index}"), &x);
        }
        Ok(x)
    }

    /// Scores of all tokens of the vocabulary, (tokens, vocabulary).
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let x = self.transform.forward_activated(hidden, self.activation)?;
        self.output.forward(&layer_norm(&x, &self.transform_norm)?)
    }
}

/// The output layer, and whether it has a weight of its own. transformers ties it
/// to the word embeddings unless a checkpoint has both and they differ.
fn read_output(
    config: &BlipConfig,
    words: &Tensor,
    checkpoint: &Checkpoint,
    place: &Placement,
) -> std::result::Result<(Linear, bool), ModelError> {
    let (name, bias) = output_names(config.ties_words(), checkpoint);
    let (vocabulary, hidden) = words.dims2()?;
    let bias = checkpoint.read(bias, &[vocabulary], place)?;
    let weight = name
        .map(|name| checkpoint.read(name, &[vocabulary, hidden], place))
        .transpose()?;
    let own = match &weight {
        Some(_) if !config.ties_words() => weight,
        Some(weight) if weight.ne(words)?.flatten_all()?.max(0)?.to_scalar::<u8>()? > 0 => {
            Some(weight.clone())
        }
        _ => None,
    };
    let output = Linear::new(own.as_ref().unwrap_or(words), bias)?;
    Ok((output, own.is_some()))
}

impl Layer {
    fn name(index: usize) -> String {
        format!("{PREFIX}.bert.encoder.layer.{index}")
    }

    fn qkv_names(name: &str) -> [String; 3] {
        ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"))
    }

    /// Names, inputs and outputs of the linear layers that are not joined.
    fn linears(config: &TextConfig, vision: usize) -> [(&'static str, usize, usize); 7] {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        [
            ("attention.output.dense", hidden, hidden),
            ("crossattention.self.query", hidden, hidden),
            ("crossattention.self.key", vision, hidden),
            ("crossattention.self.value", vision, hidden),
            ("crossattention.output.dense", hidden, hidden),
            ("intermediate.dense", hidden, inner),
            ("output.dense", inner, hidden),
        ]
    }

    fn specs(config: &TextConfig, vision: usize, name: &str) -> Vec<TensorSpec> {
        let hidden = config.hidden_size;
        let mut specs = Vec::new();
        for part in Self::qkv_names(name) {
            specs.extend(Linear::specs(&part, hidden, hidden));
        }
        for (part, inputs, outputs) in Self::linears(config, vision) {
            specs.extend(Linear::specs(&format!("{name}.{part}"), inputs, outputs));
        }
        for part in ["attention.output", "crossattention.output", "output"] {
            specs.extend(norm_specs(&format!("{name}.{part}.LayerNorm"), hidden));
        }
        specs
    }

    fn read(
        config: &TextConfig,
        vision: usize,
        checkpoint: &Checkpoint,
        name: &str,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let hidden = config.hidden_size;
        let [
            self_output,
            query,
            key,
            value,
            cross_output,
            intermediate,
            output,
        ] = Self::linears(config, vision).map(|(part, inputs, outputs)| {
            Linear::read(
                checkpoint,
                &format!("{name}.{part}"),
                inputs,
                outputs,
                place,
            )
        });
        let (self_output, cross_output, output) = (self_output?, cross_output?, output?);
        let norm = |part: &str, bias: &Linear| {
            let name = format!("{name}.{part}.LayerNorm");
            let epsilon = config.layer_norm_eps;
            read_norm(checkpoint, &name, Some(bias), hidden, epsilon, place)
        };
        Ok(Self {
            qkv: Linear::read_joined(checkpoint, &Self::qkv_names(name), hidden, hidden, place)?,
            self_norm: norm("attention.output", &self_output)?,
            self_output,
            cross_query: query?,
            cross_key: key?,
            cross_value: value?,
            cross_norm: norm("crossattention.output", &cross_output)?,
            cross_output,
            intermediate: intermediate?,
            output_norm: norm("output", &output)?,
            output,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        step: &Step<'_>,
        decoder: &TextDecoder,
        cache: &KeysAndValues,
        picture: &KeysAndValues,
    ) -> Result<Tensor> {
        let heads = decoder.config.num_attention_heads;
        let (keys, values) = (&cache.keys, &cache.values);
        let history = (step.cache_row, step.history);
        let attended = appending_attention(x, &self.qkv, keys, values, history, heads)?;
        let x = add_layer_norm(self.self_output.product(&attended)?, x, &self.self_norm)?;
        let (keys, values) = (&picture.keys, &picture.values);
        let attended =
            projected_attention(&x, &self.cross_query, keys, values, step.pictures, heads)?;
        let x = add_layer_norm(self.cross_output.product(&attended)?, &x, &self.cross_norm)?;
        let inner = self
            .intermediate
            .forward_activated(&x, decoder.activation)?;
        add_layer_norm(self.output.product(&inner)?, &x, &self.output_norm)
    }
}
