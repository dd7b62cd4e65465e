//! `config.json` of BERT and its relatives.

use serde::Deserialize;

use crate::activation::Activation;
use crate::bert::Family;
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};

const FILE: &str = "config.json";
/// Buckets of distances of MPNet; transformers computes with this number
/// whatever the configuration says.
pub(super) const DISTANCE_BUCKETS: usize = 32;
/// The id of the padding token of MPNet, fixed in transformers too.
const MPNET_PADDING: u32 = 1;
/// More layers than any model has. The tensors of all are named before it turns out which
/// of them are there.
const MAX_LAYERS: usize = 10_000;

/// What the encoder needs of `config.json`.
#[derive(Debug, Clone)]
pub(crate) struct BertConfig {
    pub(crate) family: Family,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) activation: Activation,
    pub(crate) max_position_embeddings: usize,
    /// Rows of the table of token types; 0 where there is none.
    pub(crate) type_vocab_size: usize,
    /// Rows of the table of the bias by distance; 0 where there is none.
    pub(crate) distance_buckets: usize,
    pub(crate) layer_norm_eps: f64,
    /// The token that stays at the position of its own id, after which the
    /// positions of all others begin; `None` where they begin at 0.
    pub(crate) padding: Option<u32>,
}

/// The file of all but DistilBERT. What is absent has the default that
/// transformers gives it in all of them, but for the vocabulary's size.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct BertFile {
    vocab_size: Option<usize>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: String,
    max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    is_decoder: bool,
    pad_token_id: Option<u32>,
    relative_attention_num_buckets: usize,
}

impl Default for BertFile {
    fn default() -> Self {
        Self {
            vocab_size: None,
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
            pad_token_id: Some(1),
            relative_attention_num_buckets: DISTANCE_BUCKETS,
        }
    }
}

/// The file of DistilBERT, which has names of its own.
#[derive(Debug, Deserialize)]
#[serde(default)]
struct DistilBertFile {
    vocab_size: Option<usize>,
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    activation: String,
    max_position_embeddings: usize,
}

impl Default for DistilBertFile {
    fn default() -> Self {
        let bert = BertFile::default();
        Self {
            vocab_size: bert.vocab_size,
            dim: bert.hidden_size,
            n_layers: 6,
            n_heads: bert.num_attention_heads,
            hidden_dim: bert.intermediate_size,
            activation: bert.hidden_act,
            max_position_embeddings: bert.max_position_embeddings,
        }
    }
}

impl From<DistilBertFile> for BertFile {
    fn from(file: DistilBertFile) -> Self {
        Self {
            vocab_size: file.vocab_size,
            hidden_size: file.dim,
            num_hidden_layers: file.n_layers,
            num_attention_heads: file.n_heads,
            intermediate_size: file.hidden_dim,
            hidden_act: file.activation,
            max_position_embeddings: file.max_position_embeddings,
            ..Self::default()
        }
    }
}

impl BertConfig {
    /// Reads `config.json` of a model of this family.
    ///
    /// Errors: [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported) for what
    /// the encoder does not compute,
    /// [`ErrorKind::ModelInvalid`](crate::ErrorKind::ModelInvalid) for sizes that
    /// contradict each other.
    pub(crate) fn read(directory: &ModelDirectory, family: Family) -> Result<Self, ModelError> {
        let file = match family {
            Family::DistilBert => directory.json::<DistilBertFile>(FILE)?.into(),
            Family::Bert | Family::MpNet | Family::Roberta => directory.json(FILE)?,
        };
        Self::new(family, file)
    }

    fn new(family: Family, file: BertFile) -> Result<Self, ModelError> {
        check_supported(&file)?;
        let activation = Activation::hidden(&file.hidden_act, FILE, "hidden_act")?;
        let padding = match family {
            Family::Bert | Family::DistilBert => None,
            Family::MpNet => Some(MPNET_PADDING),
            Family::Roberta => match file.pad_token_id {
                None => return Err(damaged(FILE, "Its pad_token_id is null.")),
                padding => padding,
            },
        };
        let config = Self {
            family,
            vocab_size: file.vocab_size.unwrap_or(match family {
                Family::Bert | Family::DistilBert => 30_522,
                Family::MpNet => 30_527,
                Family::Roberta => 50_265,
            }),
            hidden_size: file.hidden_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            intermediate_size: file.intermediate_size,
            activation,
            max_position_embeddings: file.max_position_embeddings,
            type_vocab_size: if family.has_types() {
                file.type_vocab_size
            } else {
                0
            },
            distance_buckets: if family == Family::MpNet {
                file.relative_attention_num_buckets
            } else {
                0
            },
            layer_norm_eps: file.layer_norm_eps,
            padding,
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        check_heads(self.hidden_size, self.num_attention_heads, FILE)?;
        check_layers("num_hidden_layers", self.num_hidden_layers, FILE)?;
        let mut sizes = vec![
            ("vocab_size", self.vocab_size),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        if self.family.has_types() {
            sizes.push(("type_vocab_size", self.type_vocab_size));
        }
        check_positive(&sizes, FILE)?;
        if self.max_tokens() == 0 {
            return Err(damaged(
                FILE,
                format!(
                    "Its max_position_embeddings {} leaves no position after that of the padding.",
                    self.max_position_embeddings
                ),
            ));
        }
        if self.family == Family::MpNet && self.distance_buckets < DISTANCE_BUCKETS {
            return Err(damaged(
                FILE,
                format!(
                    "Its relative_attention_num_buckets is {}, less than {DISTANCE_BUCKETS}.",
                    self.distance_buckets
                ),
            ));
        }
        Ok(())
    }

    /// Tokens of the longest text that has positions.
    pub(crate) fn max_tokens(&self) -> usize {
        let unused = self.padding.map_or(0, |padding| padding as usize + 1);
        self.max_position_embeddings.saturating_sub(unused)
    }
}

/// Refuses what the encoder does not compute.
fn check_supported(file: &BertFile) -> Result<(), ModelError> {
    if let Some(kind) = &file.position_embedding_type
        && kind != "absolute"
    {
        return Err(
            unsupported(FILE, format!("Its position_embedding_type is \"{kind}\"."))
                .with_hint("The supported position embeddings are \"absolute\"."),
        );
    }
    if file.is_decoder {
        return Err(unsupported(FILE, "Its is_decoder is true."));
    }
    Ok(())
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

/// Checks that there are not too many layers.
pub(crate) fn check_layers(name: &str, layers: usize, file: &str) -> Result<(), ModelError> {
    if layers > MAX_LAYERS {
        return Err(damaged(
            file,
            format!("Its {name} is {layers}, more than {MAX_LAYERS}."),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const FAMILIES: [Family; 4] = [
        Family::Bert,
        Family::DistilBert,
        Family::MpNet,
        Family::Roberta,
    ];

    type Change = fn(&mut BertFile);

    fn changed(family: Family, change: impl Fn(&mut BertFile)) -> Result<BertConfig, ModelError> {
        let mut file = BertFile::default();
        change(&mut file);
        BertConfig::new(family, file)
    }

    #[test]
    fn the_defaults_are_valid() {
        let tokens = FAMILIES.map(|family| changed(family, |_| {}).unwrap().max_tokens());
        assert_eq!(tokens, [512, 512, 510, 510]);
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        let refused: [Change; 3] = [
            |c| c.hidden_act = "mish".to_owned(),
            |c| c.position_embedding_type = Some("relative_key".to_owned()),
            |c| c.is_decoder = true,
        ];
        for change in refused {
            let error = changed(Family::Bert, change).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported);
        }
        let file = DistilBertFile {
            activation: "mish".to_owned(),
            ..DistilBertFile::default()
        };
        let error = BertConfig::new(Family::DistilBert, file.into()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
    }

    #[test]
    fn contradictory_sizes_are_damage() {
        let wrong: [(Family, Change); 8] = [
            (Family::Bert, |c| c.num_attention_heads = 7),
            (Family::Bert, |c| c.num_attention_heads = 0),
            (Family::Bert, |c| c.vocab_size = Some(0)),
            (Family::Bert, |c| c.num_hidden_layers = 10_001),
            (Family::Roberta, |c| c.type_vocab_size = 0),
            (Family::Roberta, |c| c.pad_token_id = None),
            (Family::Roberta, |c| c.pad_token_id = Some(511)),
            (Family::MpNet, |c| c.relative_attention_num_buckets = 31),
        ];
        for (family, change) in wrong {
            let error = changed(family, change).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ModelInvalid);
        }
        // What a family does not have does not matter.
        changed(Family::MpNet, |c| c.type_vocab_size = 0).unwrap();
        changed(Family::MpNet, |c| c.pad_token_id = None).unwrap();
        changed(Family::Bert, |c| c.relative_attention_num_buckets = 0).unwrap();
    }
}
