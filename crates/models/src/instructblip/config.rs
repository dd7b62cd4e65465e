//! `config.json` of InstructBLIP.

use serde::Deserialize;
use serde_json::Value;

use crate::activation::Activation;
use crate::bert::{check_heads, check_layers, check_positive};
use crate::blip::VisionConfig;
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::instructblip::llama_config::LlamaConfig;
use crate::instructblip::t5_config::T5Config;

pub(super) const FILE: &str = "config.json";
/// Tokens of the longest answer of a T5. It knows distances only, and so has no limit of its
/// own: this is as many as Vicuna has.
const T5_POSITIONS: usize = 2048;

/// What is used of `config.json`.
#[derive(Debug)]
pub(crate) struct InstructConfig {
    pub(crate) vision: VisionConfig,
    pub(crate) qformer: QFormerConfig,
    pub(crate) text: TextConfig,
    /// Vectors that the Q-Former makes of a picture.
    pub(crate) queries: usize,
    /// The token that stands for one of them; checkpoints made before transformers
    /// 4.46 do not name one.
    pub(crate) image_token: Option<u32>,
}

/// The language model.
#[derive(Debug)]
pub(crate) enum TextConfig {
    Llama(LlamaConfig),
    T5(T5Config),
}

impl TextConfig {
    fn new(text: Value, tied: Option<bool>) -> Result<Self, ModelError> {
        match text.get("model_type").and_then(Value::as_str) {
            Some("llama") => LlamaConfig::new(text, tied).map(Self::Llama),
            Some("t5") => T5Config::new(text).map(Self::T5),
            kind => {
                // The default of transformers.
                let kind = kind.unwrap_or("opt");
                let detail = format!("Its text_config.model_type is \"{kind}\".");
                Err(unsupported(FILE, detail).with_hint(
                    "Supported language models of InstructBLIP are \"llama\" and \"t5\".",
                ))
            }
        }
    }

    pub(crate) fn vocabulary(&self) -> usize {
        match self {
            Self::Llama(config) => config.vocabulary(),
            Self::T5(config) => config.vocabulary,
        }
    }

    pub(crate) fn hidden(&self) -> usize {
        match self {
            Self::Llama(config) => config.hidden(),
            Self::T5(config) => config.hidden,
        }
    }

    /// The token that ends an answer.
    pub(crate) fn end(&self) -> u32 {
        match self {
            Self::Llama(config) => config.end,
            Self::T5(config) => config.end,
        }
    }

    /// Tokens of the longest sequence.
    pub(crate) fn positions(&self) -> usize {
        match self {
            Self::Llama(config) => config.positions(),
            Self::T5(_) => T5_POSITIONS,
        }
    }
}

/// What a language model's part of the file says.
pub(super) fn parse_text<T: serde::de::DeserializeOwned>(text: Value) -> Result<T, ModelError> {
    serde_json::from_value(text)
        .map_err(|error| damaged(FILE, format!("Its text_config is wrong: {error}.")))
}

/// Checks that a number has room for the components of all heads, queries beside keys and
/// values.
pub(super) fn check_width(name: &str, head: usize, heads: usize) -> Result<(), ModelError> {
    let all = heads
        .checked_mul(head)
        .and_then(|width| width.checked_mul(3));
    all.map(drop).ok_or_else(|| {
        let detail = format!("Its text_config.{name} {head} is too much for {heads} heads.");
        damaged(FILE, detail)
    })
}

/// The token that ends an answer: a number, or a list of one.
pub(super) fn end_token(value: &Value) -> Result<u32, ModelError> {
    let ids = match value {
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    };
    match ids {
        [id] => id.as_u64().and_then(|id| u32::try_from(id).ok()),
        _ => None,
    }
    .ok_or_else(|| {
        unsupported(FILE, format!("Its text_config.eos_token_id is {value}."))
            .with_hint("It must be one token.")
    })
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    vision_config: VisionFile,
    #[serde(default)]
    qformer_config: QFormerConfig,
    text_config: Option<Value>,
    #[serde(default = "default_queries")]
    num_query_tokens: usize,
    image_token_index: Option<u32>,
    tie_word_embeddings: Option<bool>,
}

fn default_queries() -> usize {
    32
}

/// The vision tower with the defaults of transformers' InstructBLIP, which are not
/// those of its BLIP.
#[derive(Deserialize)]
#[serde(default)]
struct VisionFile {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    qkv_bias: bool,
}

impl Default for VisionFile {
    fn default() -> Self {
        Self {
            hidden_size: 1408,
            intermediate_size: 6144,
            num_hidden_layers: 39,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 14,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
        }
    }
}

impl VisionFile {
    fn config(self) -> Result<VisionConfig, ModelError> {
        if !self.qkv_bias {
            return Err(unsupported(FILE, "Its vision_config.qkv_bias is false."));
        }
        let config = VisionConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            image_size: self.image_size,
            patch_size: self.patch_size,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        };
        config.check()?;
        Ok(config)
    }
}

/// The Q-Former; defaults are those of transformers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct QFormerConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
    /// Every so many layers, the first included, attend to the picture.
    pub(crate) cross_attention_frequency: usize,
}

impl Default for QFormerConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            cross_attention_frequency: 2,
        }
    }
}

impl QFormerConfig {
    pub(crate) fn activation(&self) -> Result<Activation, ModelError> {
        Activation::hidden(&self.hidden_act, FILE, "qformer_config.hidden_act")
    }

    fn check(&self) -> Result<(), ModelError> {
        self.activation()?;
        check_heads(self.hidden_size, self.num_attention_heads, FILE)?;
        let layers = "qformer_config.num_hidden_layers";
        check_layers(layers, self.num_hidden_layers, FILE)?;
        check_positive(
            &[
                ("qformer_config.vocab_size", self.vocab_size),
                ("qformer_config.intermediate_size", self.intermediate_size),
                (
                    "qformer_config.cross_attention_frequency",
                    self.cross_attention_frequency,
                ),
                (
                    "qformer_config.max_position_embeddings",
                    self.max_position_embeddings,
                ),
            ],
            FILE,
        )
    }
}

impl InstructConfig {
    /// Reads and checks the file.
    ///
    /// Errors: [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported) for a
    /// language model of another kind, or what else is not computed;
    /// [`ErrorKind::ModelInvalid`](crate::ErrorKind::ModelInvalid) for sizes that
    /// contradict each other.
    pub(crate) fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        Self::new(directory.json(FILE)?)
    }

    fn new(file: ConfigFile) -> Result<Self, ModelError> {
        let Some(text) = file.text_config else {
            return Err(damaged(FILE, "It has no text_config."));
        };
        let config = Self {
            vision: file.vision_config.config()?,
            qformer: file.qformer_config,
            text: TextConfig::new(text, file.tie_word_embeddings)?,
            queries: file.num_query_tokens,
            image_token: file.image_token_index,
        };
        config.qformer.check()?;
        check_positive(&[("num_query_tokens", config.queries)], FILE)?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn read(json: &str) -> Result<InstructConfig, ModelError> {
        InstructConfig::new(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn defaults_are_those_of_the_published_models() {
        let config = read(r#"{"text_config": {"model_type": "llama"}}"#).unwrap();
        assert_eq!(config.vision.positions(), 257);
        assert_eq!((config.queries, config.image_token), (32, None));
        let TextConfig::Llama(llama) = config.text else {
            panic!("this is no Llama");
        };
        assert_eq!(llama.head_size(), 128);
        let config = read(r#"{"text_config": {"model_type": "t5"}}"#).unwrap();
        assert_eq!((config.text.end(), config.text.hidden()), (1, 512));
    }

    /// Reads files whose text_config and whose other parts are these, and expects an error
    /// of this kind that has this name.
    fn assert_refused(kind: ErrorKind, files: &[(&str, &str, &str)]) {
        for (text, others, name) in files {
            let json = format!(r#"{{"text_config": {{{text}}}{others}}}"#);
            let error = read(&json).unwrap_err();
            assert_eq!(error.kind, kind, "{json}");
            let detail = error.detail.unwrap();
            assert!(detail.contains(name), "{json}: {detail}");
        }
    }

    const LLAMA: &str = r#""model_type": "llama""#;

    /// A text_config of this kind with this key.
    fn with(kind: &str, key: &str) -> String {
        format!(r#""model_type": "{kind}", {key}"#)
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let llama = |key| with("llama", key);
        assert_refused(
            ErrorKind::NotSupported,
            &[
                ("", "", r#""opt""#),
                (r#""model_type": "opt""#, "", r#""opt""#),
                (
                    LLAMA,
                    r#", "vision_config": {"qkv_bias": false}"#,
                    "qkv_bias",
                ),
                (&llama(r#""attention_bias": true"#), "", "attention_bias"),
                (&llama(r#""eos_token_id": [1, 2]"#), "", "eos_token_id"),
                (
                    &llama(r#""rope_scaling": {"type": "linear", "factor": 2}"#),
                    "",
                    "linear",
                ),
                (
                    &llama(r#""rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}"#),
                    "",
                    "yarn",
                ),
                (
                    &with("t5", r#""feed_forward_proj": "gated-mish""#),
                    "",
                    r#""mish""#,
                ),
            ],
        );
    }

    #[test]
    fn contradictions_are_named() {
        assert_eq!(read("{}").unwrap_err().kind, ErrorKind::ModelInvalid);
        let (llama, t5) = (|key| with("llama", key), |key| with("t5", key));
        assert_refused(
            ErrorKind::ModelInvalid,
            &[
                (LLAMA, r#", "num_query_tokens": 0"#, "num_query_tokens"),
                (
                    LLAMA,
                    r#", "vision_config": {"image_size": 100}"#,
                    "image_size",
                ),
                (
                    LLAMA,
                    r#", "vision_config": {"num_hidden_layers": 10001}"#,
                    "vision_config",
                ),
                (
                    LLAMA,
                    r#", "qformer_config": {"num_hidden_layers": 10001}"#,
                    "qformer_config",
                ),
                (
                    LLAMA,
                    r#", "qformer_config": {"cross_attention_frequency": 0}"#,
                    "frequency",
                ),
                (
                    &llama(r#""num_key_value_heads": 5"#),
                    "",
                    "num_key_value_heads",
                ),
                (&llama(r#""head_dim": 7"#), "", "head_dim"),
                (&llama(r#""head_dim": 1152921504606846976"#), "", "head_dim"),
                (&llama(r#""eos_token_id": 32000"#), "", "eos_token_id"),
                (&llama(r#""hidden_size": "large""#), "", "text_config"),
                (
                    &llama(r#""num_hidden_layers": 10001"#),
                    "",
                    "num_hidden_layers",
                ),
                (&t5(r#""d_kv": 4611686018427387904"#), "", "d_kv"),
                (&t5(r#""num_layers": 10001"#), "", "num_layers"),
                (
                    &t5(r#""num_decoder_layers": 10001"#),
                    "",
                    "num_decoder_layers",
                ),
                (
                    &t5(r#""relative_attention_max_distance": 16"#),
                    "",
                    "relative_attention",
                ),
                (
                    &t5(r#""decoder_start_token_id": 40000"#),
                    "",
                    "decoder_start_token_id",
                ),
            ],
        );
    }
}
