//! The part of `config.json` that describes a T5.

use serde::Deserialize;
use serde_json::Value;

use super::config::{FILE, check_width, end_token, parse_text};
use crate::activation::Activation;
use crate::bert::{check_layers, check_positive};
use crate::error::ModelError;
use crate::files::damaged;

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
struct T5File {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_decoder_layers: Option<usize>,
    num_heads: usize,
    relative_attention_num_buckets: usize,
    relative_attention_max_distance: usize,
    layer_norm_epsilon: f64,
    feed_forward_proj: String,
    tie_word_embeddings: Option<bool>,
    /// What transformers 5 writes; 4 concluded it from the setting above.
    scale_decoder_outputs: Option<bool>,
    eos_token_id: Value,
    pad_token_id: Option<u32>,
    decoder_start_token_id: Option<u32>,
}

impl Default for T5File {
    /// The values of transformers.
    fn default() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            layer_norm_epsilon: 1e-6,
            feed_forward_proj: "relu".to_owned(),
            tie_word_embeddings: None,
            scale_decoder_outputs: None,
            eos_token_id: Value::from(1),
            pad_token_id: Some(0),
            decoder_start_token_id: None,
        }
    }
}

/// A T5, as far as it is computed.
#[derive(Debug, Clone)]
pub(crate) struct T5Config {
    pub(super) vocabulary: usize,
    pub(super) hidden: usize,
    /// Components of a head.
    pub(super) head_size: usize,
    pub(super) heads: usize,
    pub(super) inner: usize,
    pub(super) encoder_layers: usize,
    pub(super) decoder_layers: usize,
    pub(super) buckets: usize,
    pub(super) max_distance: usize,
    pub(super) epsilon: f64,
    /// Whether what the activation gives opens a gate.
    pub(super) gated: bool,
    pub(super) activation: Activation,
    /// Whether the decoder's output is scaled before the output layer.
    pub(super) scales_output: bool,
    pub(super) end: u32,
    /// The token that every answer begins with.
    pub(super) begin: u32,
}

impl T5Config {
    pub(super) fn new(text: Value) -> Result<Self, ModelError> {
        let file: T5File = parse_text(text)?;
        let (gated, name) = match file.feed_forward_proj.strip_prefix("gated-") {
            // As in transformers this name stands for the other formula.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, file.feed_forward_proj.as_str()),
        };
        let config = Self {
            vocabulary: file.vocab_size,
            hidden: file.d_model,
            head_size: file.d_kv,
            heads: file.num_heads,
            inner: file.d_ff,
            encoder_layers: file.num_layers,
            decoder_layers: file.num_decoder_layers.unwrap_or(file.num_layers),
            buckets: file.relative_attention_num_buckets,
            max_distance: file.relative_attention_max_distance,
            epsilon: file.layer_norm_epsilon,
            gated,
            activation: Activation::hidden(name, FILE, "text_config.feed_forward_proj")?,
            scales_output: file
                .scale_decoder_outputs
                .unwrap_or(file.tie_word_embeddings != Some(false)),
            end: end_token(&file.eos_token_id)?,
            begin: file
                .decoder_start_token_id
                .or(file.pad_token_id)
                .unwrap_or(0),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        check_positive(
            &[
                ("text_config.vocab_size", self.vocabulary),
                ("text_config.d_model", self.hidden),
                ("text_config.d_kv", self.head_size),
                ("text_config.d_ff", self.inner),
                ("text_config.num_heads", self.heads),
                ("text_config.num_layers", self.encoder_layers),
                ("text_config.num_decoder_layers", self.decoder_layers),
            ],
            FILE,
        )?;
        check_layers("text_config.num_layers", self.encoder_layers, FILE)?;
        check_layers("text_config.num_decoder_layers", self.decoder_layers, FILE)?;
        check_width("d_kv", self.head_size, self.heads)?;
        // Half of the buckets of one direction are for single distances.
        if self.buckets < 4 || self.max_distance <= self.buckets / 2 {
            return Err(damaged(
                FILE,
                format!(
                    "Its relative_attention_num_buckets {} do not fit a relative_attention_max_distance of {}.",
                    self.buckets, self.max_distance
                ),
            ));
        }
        for (name, id) in [
            ("eos_token_id", self.end),
            ("decoder_start_token_id", self.begin),
        ] {
            if id as usize >= self.vocabulary {
                return Err(damaged(
                    FILE,
                    format!(
                        "Its {name} {id} is outside of the vocabulary of {}.",
                        self.vocabulary
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Components of all heads.
    pub(super) fn width(&self) -> usize {
        self.heads * self.head_size
    }
}
