//! `config.json` of BLIP.

use serde::Deserialize;

use crate::activation::Activation;
use crate::bert::{check_heads, check_layers, check_positive};
use crate::error::ModelError;
use crate::files::damaged;

const FILE: &str = "config.json";

/// What is used of `config.json`; defaults are those of transformers.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct BlipConfig {
    #[serde(default)]
    pub(crate) text_config: TextConfig,
    #[serde(default)]
    pub(crate) vision_config: VisionConfig,
    /// See [`BlipConfig::ties_words`].
    tie_word_embeddings: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct TextConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) max_position_embeddings: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
    pub(crate) bos_token_id: u32,
    pub(crate) sep_token_id: u32,
    tie_word_embeddings: bool,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30524,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 512,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-12,
            bos_token_id: 30522,
            sep_token_id: 102,
            tie_word_embeddings: true,
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct VisionConfig {
    pub(crate) hidden_size: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) image_size: usize,
    pub(crate) patch_size: usize,
    pub(crate) hidden_act: String,
    pub(crate) layer_norm_eps: f64,
}

impl Default for VisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 384,
            patch_size: 16,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

impl TextConfig {
    pub(crate) fn activation(&self) -> Result<Activation, ModelError> {
        Activation::hidden(&self.hidden_act, FILE, "text_config.hidden_act")
    }
}

impl VisionConfig {
    pub(crate) fn activation(&self) -> Result<Activation, ModelError> {
        Activation::hidden(&self.hidden_act, FILE, "vision_config.hidden_act")
    }

    /// Refuses what is not computed, and sizes that contradict each other.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        self.activation()?;
        check_heads(self.hidden_size, self.num_attention_heads, FILE)?;
        let layers = "vision_config.num_hidden_layers";
        check_layers(layers, self.num_hidden_layers, FILE)?;
        check_positive(
            &[
                ("intermediate_size", self.intermediate_size),
                ("patch_size", self.patch_size),
                ("image_size", self.image_size),
            ],
            FILE,
        )?;
        if !self.image_size.is_multiple_of(self.patch_size) {
            return Err(damaged(
                FILE,
                format!(
                    "Its image_size {} is not a multiple of its patch_size {}.",
                    self.image_size, self.patch_size
                ),
            ));
        }
        Ok(())
    }

    /// Patches along one side.
    pub(crate) fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Vectors of one picture: the class token and the patches.
    pub(crate) fn positions(&self) -> usize {
        self.grid() * self.grid() + 1
    }
}

impl BlipConfig {
    /// Whether the output layer may have the weight of the word embeddings. Either
    /// of the two settings is enough for that, as in transformers.
    pub(crate) fn ties_words(&self) -> bool {
        self.tie_word_embeddings.unwrap_or(true) || self.text_config.tie_word_embeddings
    }

    /// Refuses what is not computed, and sizes that contradict each other.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        text.activation()?;
        check_heads(text.hidden_size, text.num_attention_heads, FILE)?;
        let layers = "text_config.num_hidden_layers";
        check_layers(layers, text.num_hidden_layers, FILE)?;
        vision.check()?;
        check_positive(
            &[
                ("vocab_size", text.vocab_size),
                ("intermediate_size", text.intermediate_size),
                ("max_position_embeddings", text.max_position_embeddings),
            ],
            FILE,
        )?;
        for (name, id) in [
            ("bos_token_id", text.bos_token_id),
            ("sep_token_id", text.sep_token_id),
        ] {
            if id as usize >= text.vocab_size {
                return Err(damaged(
                    FILE,
                    format!(
                        "Its {name} {id} is outside of the vocabulary of {}.",
                        text.vocab_size
                    ),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_empty_configuration_is_that_of_the_base_model() {
        let config: BlipConfig = serde_json::from_str("{}").unwrap();
        config.check().unwrap();
        assert_eq!(config.vision_config.positions(), 577);
    }

    #[test]
    fn contradictions_are_named() {
        let wrong = [
            (r#"{"vision_config": {"image_size": 100}}"#, "image_size"),
            (
                r#"{"text_config": {"bos_token_id": 30524}}"#,
                "bos_token_id",
            ),
            (
                r#"{"text_config": {"num_attention_heads": 7}}"#,
                "attention heads",
            ),
            (r#"{"text_config": {"vocab_size": 0}}"#, "vocab_size"),
            (
                r#"{"text_config": {"num_hidden_layers": 10001}}"#,
                "text_config.num_hidden_layers",
            ),
            (
                r#"{"vision_config": {"num_hidden_layers": 10001}}"#,
                "vision_config.num_hidden_layers",
            ),
        ];
        for (json, name) in wrong {
            let config: BlipConfig = serde_json::from_str(json).unwrap();
            let error = config.check().unwrap_err();
            assert_eq!(error.kind, ErrorKind::ModelInvalid);
            assert!(error.detail.unwrap().contains(name), "{json}");
        }
        let config: BlipConfig =
            serde_json::from_str(r#"{"vision_config": {"hidden_act": "mish"}}"#).unwrap();
        assert_eq!(config.check().unwrap_err().kind, ErrorKind::NotSupported);
    }
}
