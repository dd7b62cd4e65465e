//! `config.json` of BERT.

use serde::Deserialize;

use crate::error::ModelError;
use crate::files::{damaged, unsupported};

/// What the encoder needs of `config.json`; defaults are those of transformers.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub(crate) struct BertConfig {
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) hidden_act: String,
    pub(crate) max_position_embeddings: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) layer_norm_eps: f64,
    pub(crate) position_embedding_type: Option<String>,
    pub(crate) is_decoder: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            max_position_embeddings: 512,
            type_vocab_size: 2,
            layer_norm_eps: 1e-12,
            position_embedding_type: None,
            is_decoder: false,
        }
    }
}

impl BertConfig {
    /// Refuses what the encoder does not compute, and sizes that contradict each other.
    pub(crate) fn check(&self) -> Result<(), ModelError> {
        if self.hidden_act != "gelu" {
            return Err(unsupported(
                "config.json",
                format!("Its hidden_act is \"{}\".", self.hidden_act),
            )
            .with_hint("The supported activation is \"gelu\"."));
        }
        if let Some(kind) = &self.position_embedding_type
            && kind != "absolute"
        {
            return Err(unsupported(
                "config.json",
                format!("Its position_embedding_type is \"{kind}\"."),
            )
            .with_hint("The supported position embeddings are \"absolute\"."));
        }
        if self.is_decoder {
            return Err(unsupported("config.json", "Its is_decoder is true."));
        }
        check_heads(self.hidden_size, self.num_attention_heads, "config.json")?;
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        ];
        check_positive(&sizes, "config.json")
    }
}

/// Checks that attention heads divide the hidden size.
pub(crate) fn check_heads(hidden: usize, heads: usize, file: &str) -> Result<(), ModelError> {
    if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) {
        return Err(damaged(
            file,
            format!("Its hidden_size {hidden} is not a multiple of {heads} attention heads."),
        ));
    }
    Ok(())
}

/// Checks that sizes are not zero.
pub(crate) fn check_positive(sizes: &[(&str, usize)], file: &str) -> Result<(), ModelError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((name, _)) => Err(damaged(file, format!("Its {name} is 0."))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn the_defaults_are_valid() {
        BertConfig::default().check().unwrap();
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let refused: [fn(&mut BertConfig); 3] = [
            |c| c.hidden_act = "relu".to_owned(),
            |c| c.position_embedding_type = Some("relative_key".to_owned()),
            |c| c.is_decoder = true,
        ];
        for change in refused {
            let mut config = BertConfig::default();
            change(&mut config);
            let error = config.check().unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported);
        }
    }

    #[test]
    fn contradictory_sizes_are_damage() {
        let wrong: [fn(&mut BertConfig); 3] = [
            |c| c.num_attention_heads = 7,
            |c| c.num_attention_heads = 0,
            |c| c.vocab_size = 0,
        ];
        for change in wrong {
            let mut config = BertConfig::default();
            change(&mut config);
            assert_eq!(config.check().unwrap_err().kind, ErrorKind::ModelInvalid);
        }
    }
}
