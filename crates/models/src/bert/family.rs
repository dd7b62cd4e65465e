//! What tells the relatives of BERT from each other: names of tensors, defaults
//! of their configuration, and how positions are counted.

use crate::checkpoint::Checkpoint;

/// A structure of the family, after `model_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Bert,
    /// No token types; shorter names.
    DistilBert,
    /// No token types; a bias by distance in all attention.
    MpNet,
    /// RoBERTa and XLM-RoBERTa: positions begin after that of the padding token.
    Roberta,
}

/// Names of the parts of a layer, below the layer's own.
#[derive(Debug)]
pub(super) struct LayerNames {
    /// What comes before the number of a layer.
    pub(super) layers: &'static str,
    /// Queries, keys, values.
    pub(super) qkv: [&'static str; 3],
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) intermediate: &'static str,
    pub(super) output: &'static str,
    pub(super) output_norm: &'static str,
}

const BERT: LayerNames = LayerNames {
    layers: "encoder.layer",
    qkv: [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    ],
    attention_output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    intermediate: "intermediate.dense",
    output: "output.dense",
    output_norm: "output.LayerNorm",
};

const MPNET: LayerNames = LayerNames {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    attention_output: "attention.attn.o",
    attention_norm: "attention.LayerNorm",
    ..BERT
};

const DISTILBERT: LayerNames = LayerNames {
    layers: "transformer.layer",
    qkv: ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
    attention_output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    intermediate: "ffn.lin1",
    output: "ffn.lin2",
    output_norm: "output_layer_norm",
};

impl Family {
    pub(super) fn layer_names(self) -> &'static LayerNames {
        match self {
            Self::Bert | Self::Roberta => &BERT,
            Self::MpNet => &MPNET,
            Self::DistilBert => &DISTILBERT,
        }
    }

    /// What the names of a checkpoint begin with: checkpoints of the bare model
    /// have plain names, those of models with heads the name of the model before,
    /// and those of wrappers "model".
    pub(super) fn prefix(self, checkpoint: &Checkpoint) -> &'static str {
        let prefix = match self {
            Self::Bert => "bert.",
            Self::DistilBert => "distilbert.",
            Self::MpNet => "mpnet.",
            Self::Roberta => "roberta.",
        };
        let words = |prefix: &str| format!("{prefix}embeddings.word_embeddings.weight");
        let mut prefixes = [prefix, "model."].into_iter();
        prefixes
            .find(|prefix| checkpoint.contains(&words(prefix)))
            .unwrap_or_default()
    }

    /// Whether tokens have types, of which texts use the first.
    pub(super) fn has_types(self) -> bool {
        matches!(self, Self::Bert | Self::Roberta)
    }
}
