//! Text encoders in the layout of sentence-transformers.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::bert::{BertConfig, BertEncoder, Family};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::dense::{Dense, DensePlan};
use crate::device::{GivesMemoryBack, Placement, compute_on};
use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::ops::cuda;
use crate::pooling::{Pooling, normalize};
use crate::prompts::Prompts;
use crate::tokenizer;
use crate::trace::Trace;

/// A text as token ids, prompt and special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    /// How many at the beginning are not pooled.
    unpooled: usize,
}

impl Tokens {
    /// How many tokens there are: what an embedding costs.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }
}

/// What follows from the configuration files, before any weight is read.
#[derive(Debug)]
pub(crate) struct EncoderPlan {
    config: BertConfig,
    pooling: Pooling,
    dense: Vec<DensePlan>,
    normalize: bool,
    max_tokens: usize,
    prompts: Prompts,
    tokenizer: Tokenizer,
}

/// One entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `sentence_bert_config.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

impl EncoderPlan {
    /// Reads and checks all configuration files. Errors name the file.
    pub(crate) fn read(directory: &ModelDirectory, family: Family) -> Result<Self, ModelError> {
        let modules = Modules::read(directory)?;
        let config = BertConfig::read(directory, family)?;
        let pooling_file = format!("{}/config.json", modules.pooling);
        let pooling: Value = directory.json(&pooling_file)?;
        let pooling = Pooling::parse(&pooling, &pooling_file, config.hidden_size)?;
        let mut dense: Vec<DensePlan> = Vec::new();
        for folder in &modules.dense {
            let inputs = dense.last().map_or_else(
                || pooling.dimensions(config.hidden_size),
                DensePlan::dimensions,
            );
            dense.push(DensePlan::read(directory, folder, inputs)?);
        }
        let transformer: TransformerConfig = directory
            .optional_json("sentence_bert_config.json")?
            .unwrap_or_default();
        let (mut tokenizer, tokenizer_config) = tokenizer::load(directory)?;
        if transformer.do_lower_case {
            tokenizer::lower_case(&mut tokenizer)?;
        }
        let max_tokens = transformer
            .max_seq_length
            .or(tokenizer_config.max_tokens())
            .unwrap_or(usize::MAX)
            .min(config.max_tokens());
        tokenizer::truncate(&mut tokenizer, max_tokens)?;
        let vocabulary = tokenizer.get_vocab_size(true);
        if vocabulary > config.vocab_size {
            return Err(damaged(
                "tokenizer.json",
                format!(
                    "It has {vocabulary} tokens, but config.json says {}.",
                    config.vocab_size
                ),
            ));
        }
        Ok(Self {
            config,
            pooling,
            dense,
            normalize: modules.normalize,
            max_tokens,
            prompts: Prompts::read(directory, &tokenizer)?,
            tokenizer,
        })
    }

    pub(crate) fn dimensions(&self) -> usize {
        let pooled = || self.pooling.dimensions(self.config.hidden_size);
        self.dense.last().map_or_else(pooled, DensePlan::dimensions)
    }

    /// Elements of the weights that are not in the checkpoint of the transformer.
    pub(crate) fn further_parameters(&self) -> u64 {
        self.dense.iter().map(DensePlan::parameters).sum()
    }

    pub(crate) fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        BertEncoder::specs(&self.config, checkpoint)
    }
}

/// The folders of the modules after the transformer, and whether vectors are
/// normalised at the end.
#[derive(Default)]
struct Modules {
    pooling: String,
    dense: Vec<String>,
    normalize: bool,
}

impl Modules {
    fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        const FILE: &str = "modules.json";
        let modules: Vec<Module> = directory.json(FILE)?;
        let mut read = Self::default();
        for (index, module) in modules.iter().enumerate() {
            let path = &module.path;
            if path.contains("..") || path.starts_with('/') {
                return Err(damaged(
                    FILE,
                    format!("The folder \"{path}\" is outside of the model."),
                ));
            }
            // Full names changed between versions of sentence-transformers; the last
            // part did not.
            let kind = module.kind.rsplit('.').next().unwrap_or_default();
            let known = module.kind.starts_with("sentence_transformers.");
            match kind {
                "Transformer" if known && index == 0 && path.is_empty() => {}
                "Pooling" if known && index == 1 && !path.is_empty() => {
                    read.pooling = path.clone();
                }
                "Dense" if known && index > 1 && !read.normalize && !path.is_empty() => {
                    read.dense.push(path.clone());
                }
                "Normalize" if known && index > 1 && !read.normalize => read.normalize = true,
                _ => {
                    return Err(unsupported(
                        FILE,
                        format!("Module {index} is \"{}\" in folder \"{path}\".", module.kind),
                    )
                    .with_hint(
                        "Supported are the modules Transformer, Pooling, Dense and Normalize, in this order.",
                    ));
                }
            }
        }
        if read.pooling.is_empty() {
            return Err(damaged(FILE, "It names no Pooling module."));
        }
        Ok(read)
    }
}

/// A text encoder, ready to compute. It may be used by many threads at once.
#[derive(Debug)]
pub struct TextEncoder {
    plan: Box<EncoderPlan>,
    encoder: BertEncoder,
    dense: Vec<Dense>,
    /// The last, so that the weights are gone.
    _memory: GivesMemoryBack,
}

impl TextEncoder {
    pub(crate) fn read(
        plan: Box<EncoderPlan>,
        checkpoint: &Checkpoint,
        place: &Placement,
    ) -> Result<Self, ModelError> {
        let encoder = BertEncoder::read(&plan.config, checkpoint, place)?;
        let dense = plan.dense.iter().map(|dense| dense.load(place));
        let dense = dense.collect::<Result<_, _>>()?;
        Ok(Self {
            plan,
            encoder,
            dense,
            _memory: GivesMemoryBack::to(&place.device),
        })
    }

    /// Components of an embedding.
    pub fn dimensions(&self) -> usize {
        self.plan.dimensions()
    }

    /// Tokens of a text that are used, special tokens included; the rest of a
    /// longer text is ignored.
    pub fn max_tokens(&self) -> usize {
        self.plan.max_tokens
    }

    /// Tokenizes one text, truncated to [`TextEncoder::max_tokens`], behind the
    /// model's prompt of this name or, without a name, the one that the model
    /// names as its default; mostly none. Every model has the prompts `query` and
    /// `document`: where its files have no `query`, that is empty, and `document`
    /// is `passage`, else `corpus`, else empty. An empty text gives just the prompt
    /// and the special tokens.
    ///
    /// Errors: [`ErrorKind::InvalidOption`] where there is no such prompt,
    /// [`ErrorKind::ModelInvalid`] where this leaves nothing to pool.
    pub fn tokenize(&self, text: &str, prompt_name: Option<&str>) -> Result<Tokens, ModelError> {
        let prompt = self.plan.prompts.find(prompt_name)?;
        let ids = if prompt.text.is_empty() {
            tokenizer::encode(&self.plan.tokenizer, text)?
        } else {
            tokenizer::encode(&self.plan.tokenizer, &format!("{}{text}", prompt.text))?
        };
        if ids.is_empty() {
            return Err(ModelError::new(
                ErrorKind::ModelInvalid,
                "tokenizer of the model gives no tokens",
            )
            .with_detail("Its tokenizer.json adds no special tokens to a text."));
        }
        let unpooled = if self.plan.pooling.include_prompt {
            0
        } else {
            prompt.tokens
        };
        if unpooled >= ids.len() {
            return Err(ModelError::new(
                ErrorKind::ModelInvalid,
                "prompt of the model leaves no tokens of the text",
            )
            .with_detail(format!(
                "The prompt takes {unpooled} tokens and is not pooled, but there are only {}.",
                ids.len()
            )));
        }
        Ok(Tokens { ids, unpooled })
    }

    /// Embeds a batch: a vector of [`TextEncoder::dimensions`] for each text, in
    /// the order of the input. Lengths may be mixed; sorted by length is fastest.
    pub fn encode(&self, batch: &[&Tokens]) -> Result<Vec<Vec<f32>>, ModelError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.embed(batch, None)
    }

    /// What is computed for one text: `embeddings`, `layer.N` (tokens, width),
    /// `pooled`, `dense.N` and `embedding`, (1, components) each. For comparing models with another
    /// implementation of them.
    pub fn trace(&self, tokens: &Tokens) -> Result<BTreeMap<String, Tensor>, ModelError> {
        let mut trace = Trace::default();
        let vectors = self.embed(&[tokens], Some(&mut trace))?;
        trace.add("embedding", &Tensor::new(vectors, &Device::Cpu)?);
        Ok(trace.into_tensors()?)
    }

    fn embed(
        &self,
        batch: &[&Tokens],
        mut trace: Option<&mut Trace>,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let lengths: Vec<usize> = batch.iter().map(|tokens| tokens.len()).collect();
        let ids: Vec<u32> = batch
            .iter()
            .flat_map(|tokens| tokens.ids.iter().copied())
            .collect();
        let device = self.encoder.device();
        let hidden = compute_on(device, || {
            self.encoder.forward(&ids, &lengths, trace.as_deref_mut())
        })?;
        let mut vectors = self.pool(batch, &hidden)?;
        if let Some(trace) = trace.as_deref_mut() {
            for vector in &vectors {
                trace.add("pooled", &row(vector)?);
            }
        }
        for (index, dense) in self.dense.iter().enumerate() {
            vectors = compute_on(device, || dense.forward(vectors))?;
            if let Some(trace) = trace.as_deref_mut() {
                for vector in &vectors {
                    trace.add(format!("dense.{index}"), &row(vector)?);
                }
            }
        }
        if self.plan.normalize {
            vectors.iter_mut().for_each(|vector| normalize(vector));
        }
        Ok(vectors)
    }

    /// A vector for each text out of those of its tokens, (tokens, width).
    fn pool(&self, batch: &[&Tokens], hidden: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
        let pooling = &self.plan.pooling;
        let mut start = 0;
        let ranges = batch.iter().map(|tokens| {
            let range = (start + tokens.unpooled, start + tokens.len());
            start += tokens.len();
            range
        });
        let ranges: Vec<(usize, usize)> = ranges.collect();
        if let Some(pooled) = cuda::pool(hidden, &ranges, pooling.modes())? {
            return Ok(pooled.to_vec2()?);
        }
        let width = hidden.dim(1)?;
        let hidden = hidden.flatten_all()?.to_dtype(DType::F32)?;
        let hidden = hidden.to_vec1::<f32>()?;
        let vectors = ranges.iter().map(|(first, end)| {
            let tokens = &hidden[first * width..end * width];
            pooling.pool(tokens, width)
        });
        Ok(vectors.collect())
    }
}

/// (1, components).
fn row(vector: &[f32]) -> candle_core::Result<Tensor> {
    Tensor::from_slice(vector, (1, vector.len()), &Device::Cpu)
}
