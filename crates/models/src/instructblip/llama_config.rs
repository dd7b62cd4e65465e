//! The part of `config.json` that describes a Llama.

use serde::Deserialize;
use serde_json::Value;

use super::config::{FILE, check_width, end_token, parse_text};
use crate::activation::Activation;
use crate::bert::{check_layers, check_positive};
use crate::error::ModelError;
use crate::files::{damaged, unsupported};

const DEFAULT_ROPE_THETA: f64 = 10_000.0;

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct LlamaFile {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    hidden_act: String,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    /// Where transformers 4 has what 5 has in `rope_parameters`.
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    attention_bias: bool,
    mlp_bias: bool,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Value,
}

/// How positions are encoded.
#[derive(Debug, Clone, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
}

impl Default for LlamaFile {
    /// The values of transformers.
    fn default() -> Self {
        Self {
            vocab_size: 32000,
            hidden_size: 4096,
            intermediate_size: 11008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".to_owned(),
            max_position_embeddings: 2048,
            rms_norm_eps: 1e-6,
            rope_theta: None,
            rope_scaling: None,
            rope_parameters: None,
            attention_bias: false,
            mlp_bias: false,
            tie_word_embeddings: None,
            eos_token_id: Value::from(2),
        }
    }
}

/// A Llama, as far as it is computed.
#[derive(Debug, Clone)]
pub(crate) struct LlamaConfig {
    file: LlamaFile,
    pub(crate) end: u32,
    pub(crate) ties_words: bool,
    pub(crate) activation: Activation,
}

impl LlamaConfig {
    /// `tied` is what the configuration of the whole model says of the word
    /// embeddings and the output layer.
    pub(super) fn new(text: Value, tied: Option<bool>) -> Result<Self, ModelError> {
        let file: LlamaFile = parse_text(text)?;
        let config = Self {
            end: end_token(&file.eos_token_id)?,
            ties_words: file.tie_word_embeddings.or(tied).unwrap_or(false),
            activation: Activation::hidden(&file.hidden_act, FILE, "text_config.hidden_act")?,
            file,
        };
        config.check_supported()?;
        config.check_sizes()?;
        Ok(config)
    }

    fn check_supported(&self) -> Result<(), ModelError> {
        for (name, is_set) in [
            ("attention_bias", self.file.attention_bias),
            ("mlp_bias", self.file.mlp_bias),
        ] {
            if is_set {
                return Err(unsupported(
                    FILE,
                    format!("Its text_config.{name} is true."),
                ));
            }
        }
        let ropes = self
            .file
            .rope_scaling
            .iter()
            .chain(&self.file.rope_parameters);
        for kind in ropes.filter_map(|rope| rope.rope_type.as_deref()) {
            if kind != "default" {
                return Err(unsupported(
                    FILE,
                    format!("Its text_config has rotary positions of the type \"{kind}\"."),
                )
                .with_hint("Supported is the type \"default\"."));
            }
        }
        Ok(())
    }

    fn check_sizes(&self) -> Result<(), ModelError> {
        let file = &self.file;
        check_positive(
            &[
                ("text_config.vocab_size", file.vocab_size),
                ("text_config.hidden_size", file.hidden_size),
                ("text_config.intermediate_size", file.intermediate_size),
                ("text_config.num_attention_heads", file.num_attention_heads),
                ("text_config.num_key_value_heads", self.key_heads()),
                (
                    "text_config.max_position_embeddings",
                    file.max_position_embeddings,
                ),
            ],
            FILE,
        )?;
        check_layers("text_config.num_hidden_layers", self.layers(), FILE)?;
        if !self.heads().is_multiple_of(self.key_heads()) {
            return Err(damaged(
                FILE,
                format!(
                    "Its num_key_value_heads {} does not divide {} attention heads.",
                    self.key_heads(),
                    self.heads()
                ),
            ));
        }
        let head = self.head_size();
        if head == 0 || !head.is_multiple_of(2) {
            return Err(damaged(
                FILE,
                format!("Its head_dim {head} of text_config is not an even number."),
            ));
        }
        check_width("head_dim", head, self.heads())?;
        if self.end as usize >= file.vocab_size {
            return Err(damaged(
                FILE,
                format!(
                    "Its eos_token_id {} is outside of the vocabulary of {}.",
                    self.end, file.vocab_size
                ),
            ));
        }
        Ok(())
    }

    pub(crate) fn vocabulary(&self) -> usize {
        self.file.vocab_size
    }

    pub(crate) fn hidden(&self) -> usize {
        self.file.hidden_size
    }

    /// Components between the linear layers of a block.
    pub(crate) fn inner(&self) -> usize {
        self.file.intermediate_size
    }

    pub(crate) fn layers(&self) -> usize {
        self.file.num_hidden_layers
    }

    pub(crate) fn positions(&self) -> usize {
        self.file.max_position_embeddings
    }

    pub(crate) fn heads(&self) -> usize {
        self.file.num_attention_heads
    }

    /// Heads of keys and values; each serves equally many heads of queries.
    pub(crate) fn key_heads(&self) -> usize {
        self.file.num_key_value_heads.unwrap_or(self.heads())
    }

    pub(crate) fn head_size(&self) -> usize {
        let even = self.hidden() / self.heads().max(1);
        self.file.head_dim.unwrap_or(even)
    }

    pub(crate) fn epsilon(&self) -> f64 {
        self.file.rms_norm_eps
    }

    /// The base of the wave lengths of rotary positions.
    pub(crate) fn rope_theta(&self) -> f64 {
        let parameters = self.file.rope_parameters.as_ref();
        parameters
            .and_then(|rope| rope.rope_theta)
            .or(self.file.rope_theta)
            .unwrap_or(DEFAULT_ROPE_THETA)
    }
}
