//! BERT and its descendants of the same structure (`model_type` "bert").

mod config;
mod encoder;

pub(crate) use config::{BertConfig, check_heads, check_positive};
pub(crate) use encoder::{BertEncoder, norm_specs, read_norm};
