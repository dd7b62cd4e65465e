//! The Q-Former: BERT's layers over a fixed number of queries and the tokens of the
//! instruction; the queries also attend to the picture.

use candle_core::{Result, Tensor};

use crate::activation::Activation;
use crate::bert::{norm_specs, read_norm};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::instructblip::config::QFormerConfig;
use crate::linear::Linear;
use crate::ops::{NormParameters, Packing, add_layer_norm, is_fused, layer_norm, packed_attention};
use crate::trace::{self, Trace};

const PREFIX: &str = "qformer";
const QUERIES: &str = "query_tokens";

#[derive(Debug)]
pub(crate) struct QFormer {
    heads: usize,
    activation: Activation,
    /// (queries, hidden).
    queries: Tensor,
    /// (vocabulary, hidden).
    words: Tensor,
    /// (positions, hidden).
    positions: Tensor,
    norm: NormParameters,
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    qkv: Linear,
    attention_output: Linear,
    attention_norm: NormParameters,
    cross: Option<CrossAttention>,
    /// What follows attention, for queries and for tokens.
    of_queries: FeedForward,
    of_tokens: FeedForward,
}

/// Attention of the queries to the picture.
#[derive(Debug)]
struct CrossAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm: NormParameters,
}

#[derive(Debug)]
struct FeedForward {
    intermediate: Linear,
    output: Linear,
    norm: NormParameters,
}

/// Names and sizes of all that is read.
struct Source<'a> {
    config: &'a QFormerConfig,
    queries: usize,
    /// Components of the vision tower's output.
    vision: usize,
}

impl Source<'_> {
    /// Queries, words and positions.
    fn tables(&self) -> [TensorSpec; 3] {
        let (config, hidden) = (self.config, self.config.hidden_size);
        let name = |part: &str| format!("{PREFIX}.embeddings.{part}_embeddings.weight");
        [
            TensorSpec::new(QUERIES, [1, self.queries, hidden]),
            TensorSpec::new(name("word"), [config.vocab_size, hidden]),
            TensorSpec::new(name("position"), [config.max_position_embeddings, hidden]),
        ]
    }

    /// Names, inputs and outputs of the linear layers below a layer's name; its
    /// attention to the picture comes last.
    fn linears(&self, index: usize) -> Vec<(&'static str, usize, usize)> {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let mut linears = vec![
            ("attention.attention.query", hidden, hidden),
            ("attention.attention.key", hidden, hidden),
            ("attention.attention.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate_query.dense", hidden, inner),
            ("output_query.dense", inner, hidden),
            ("intermediate.dense", hidden, inner),
            ("output.dense", inner, hidden),
        ];
        if self.asks(index) {
            linears.extend([
                ("crossattention.attention.query", hidden, hidden),
                ("crossattention.attention.key", self.vision, hidden),
                ("crossattention.attention.value", self.vision, hidden),
                ("crossattention.output.dense", hidden, hidden),
            ]);
        }
        linears
    }

    /// Whether this layer attends to the picture.
    fn asks(&self, index: usize) -> bool {
        index.is_multiple_of(self.config.cross_attention_frequency)
    }

    fn layer_name(index: usize) -> String {
        format!("{PREFIX}.encoder.layer.{index}")
    }

    fn specs(&self) -> Vec<TensorSpec> {
        let hidden = self.config.hidden_size;
        let mut specs = self.tables().to_vec();
        specs.extend(norm_specs(
            &format!("{PREFIX}.embeddings.layernorm"),
            hidden,
        ));
        for index in 0..self.config.num_hidden_layers {
            let name = Self::layer_name(index);
            for (part, inputs, outputs) in self.linears(index) {
                specs.extend(Linear::specs(&format!("{name}.{part}"), inputs, outputs));
            }
            let cross = self.asks(index).then_some("crossattention.output");
            let norms = ["attention.output", "output_query", "output"];
            for part in norms.into_iter().chain(cross) {
                specs.extend(norm_specs(&format!("{name}.{part}.LayerNorm"), hidden));
            }
        }
        specs
    }

    fn layer(
        &self,
        index: usize,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Layer, ModelError> {
        let (name, hidden) = (Self::layer_name(index), self.config.hidden_size);
        let linears = self.linears(index);
        let linear = |part: &str| {
            let (_, inputs, outputs) = linears
                .iter()
                .find(|(name, ..)| *name == part)
                .expect("it is one of the layer's own");
            let name = format!("{name}.{part}");
            Linear::read(checkpoint, &name, *inputs, *outputs, place)
        };
        let norm = |part: &str, bias: &Linear| {
            let name = format!("{name}.{part}.LayerNorm");
            let epsilon = self.config.layer_norm_eps;
            read_norm(checkpoint, &name, Some(bias), hidden, epsilon, place)
        };
        let feed_forward = |inner: &str, outer: &str| {
            let output = linear(&format!("{outer}.dense"))?;
            Ok::<_, ModelError>(FeedForward {
                intermediate: linear(&format!("{inner}.dense"))?,
                norm: norm(outer, &output)?,
                output,
            })
        };
        let cross = || {
            let output = linear("crossattention.output.dense")?;
            Ok::<_, ModelError>(CrossAttention {
                query: linear("crossattention.attention.query")?,
                key: linear("crossattention.attention.key")?,
                value: linear("crossattention.attention.value")?,
                norm: norm("crossattention.output", &output)?,
                output,
            })
        };
        let joined =
            ["query", "key", "value"].map(|part| format!("{name}.attention.attention.{part}"));
        let attention_output = linear("attention.output.dense")?;
        Ok(Layer {
            qkv: Linear::read_joined(checkpoint, &joined, hidden, hidden, place)?,
            attention_norm: norm("attention.output", &attention_output)?,
            attention_output,
            cross: self.asks(index).then(cross).transpose()?,
            of_queries: feed_forward("intermediate_query", "output_query")?,
            of_tokens: feed_forward("intermediate", "output")?,
        })
    }
}

impl QFormer {
    /// All tensors that [`QFormer::read`] reads; `vision` is the width of what the
    /// vision tower gives.
    pub(crate) fn specs(config: &QFormerConfig, queries: usize, vision: usize) -> Vec<TensorSpec> {
        let source = Source {
            config,
            queries,
            vision,
        };
        source.specs()
    }

    pub(crate) fn read(
        config: &QFormerConfig,
        queries: usize,
        vision: usize,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> std::result::Result<Self, ModelError> {
        let source = Source {
            config,
            queries,
            vision,
        };
        let [queries, words, positions] = source
            .tables()
            .map(|spec| checkpoint.read(&spec.name, &spec.shape, place));
        let name = format!("{PREFIX}.embeddings.layernorm");
        let (hidden, epsilon) = (config.hidden_size, config.layer_norm_eps);
        Ok(Self {
            heads: config.num_attention_heads,
            activation: config.activation()?,
            queries: queries?.squeeze(0)?,
            words: words?,
            positions: positions?,
            norm: read_norm(checkpoint, &name, None, hidden, epsilon, place)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| source.layer(index, checkpoint, place))
                .collect::<std::result::Result<_, _>>()?,
        })
    }

    /// What the queries find out about each picture: (pictures * positions, vision) to
    /// (pictures * queries, hidden). `question` are the tokens of the instruction,
    /// the same for all. A trace gets `qformer.embeddings` and `qformer.layer.N`.
    pub(crate) fn forward(
        &self,
        vision: &Tensor,
        pictures: usize,
        question: &[u32],
        mut trace: Option<&mut Trace>,
    ) -> Result<Tensor> {
        let queries = self.queries.dim(0)?;
        let lengths = vec![queries + question.len(); pictures];
        let packing = Packing::new(&lengths, self.heads, None, is_fused(vision))?;
        let mut x = self.embed(pictures, question)?;
        trace::add(&mut trace, || "qformer.embeddings", &x);
        for (index, layer) in self.layers.iter().enumerate() {
            let attended = layer.attend(&x, &packing)?;
            let (asking, reading) = split(&attended, pictures, queries)?;
            let asking = match &layer.cross {
                Some(cross) => cross.forward(&asking, vision, pictures, self.heads)?,
                None => asking,
            };
            let asking = layer.of_queries.forward(&asking, self.activation)?;
            let reading = reading
                .map(|reading| layer.of_tokens.forward(&reading, self.activation))
                .transpose()?;
            x = join(asking, reading, pictures)?;
            trace::add(&mut trace, || format!("qformer.layer.{index}"), &x);
        }
        Ok(split(&x, pictures, queries)?.0)
    }

    /// (pictures * (queries + tokens), hidden); only tokens have positions.
    fn embed(&self, pictures: usize, question: &[u32]) -> Result<Tensor> {
        let mut x = self.queries.clone();
        if !question.is_empty() {
            let ids = Tensor::new(question, self.words.device())?;
            let words = self.words.index_select(&ids, 0)?;
            let tokens = (words + self.positions.narrow(0, 0, question.len())?)?;
            x = Tensor::cat(&[&x, &tokens], 0)?;
        }
        let (rows, hidden) = x.dims2()?;
        let x = layer_norm(&x, &self.norm)?.unsqueeze(0)?;
        x.expand((pictures, rows, hidden))?
            .reshape((pictures * rows, hidden))?
            .contiguous()
    }
}

/// Parts (pictures * (queries + tokens), hidden) into queries and tokens, if any.
fn split(x: &Tensor, pictures: usize, queries: usize) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, hidden) = x.dims2()?;
    let each = rows / pictures;
    let x = x.reshape((pictures, each, hidden))?;
    let part = |first: usize, count: usize| {
        x.narrow(1, first, count)?
            .contiguous()?
            .reshape((pictures * count, hidden))
    };
    let tokens = each - queries;
    let rest = (tokens > 0).then(|| part(queries, tokens)).transpose()?;
    Ok((part(0, queries)?, rest))
}

/// The reverse of [`split`].
fn join(queries: Tensor, tokens: Option<Tensor>, pictures: usize) -> Result<Tensor> {
    let Some(tokens) = tokens else {
        return Ok(queries);
    };
    let hidden = queries.dim(1)?;
    let queries = queries.reshape((pictures, (), hidden))?;
    let tokens = tokens.reshape((pictures, (), hidden))?;
    Tensor::cat(&[queries, tokens], 1)?.reshape(((), hidden))
}

impl Layer {
    fn attend(&self, x: &Tensor, packing: &Packing<'_>) -> Result<Tensor> {
        let qkv = self.qkv.product(x)?;
        let attended = packed_attention(&qkv, self.qkv.bias(), packing)?;
        let projected = self.attention_output.product(&attended)?;
        add_layer_norm(projected, x, &self.attention_norm)
    }
}

impl CrossAttention {
    /// (pictures * queries, hidden) to the same.
    fn forward(
        &self,
        x: &Tensor,
        vision: &Tensor,
        pictures: usize,
        heads: usize,
    ) -> Result<Tensor> {
        let (rows, hidden) = x.dims2()?;
        let size = hidden / heads;
        let by_head = |x: Tensor| {
            x.reshape((pictures, (), heads, size))?
                .transpose(1, 2)?
                .contiguous()
        };
        let queries = by_head(self.query.forward(x)?)?;
        let keys = by_head(self.key.forward(vision)?)?;
        let values = by_head(self.value.forward(vision)?)?;
        let scores = (queries.matmul(&keys.t()?)? * (size as f64).powf(-0.5))?;
        let weights = candle_nn::ops::softmax_last_dim(&scores)?;
        let attended = weights.matmul(&values)?.transpose(1, 2)?;
        let attended = attended.reshape((rows, hidden))?;
        add_layer_norm(self.output.product(&attended)?, x, &self.norm)
    }
}

impl FeedForward {
    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let inner = self.intermediate.forward_activated(x, activation)?;
        add_layer_norm(self.output.product(&inner)?, x, &self.norm)
    }
}
