//! BERT and its relatives, which differ from it in names and in how positions
//! come in: DistilBERT, MPNet, RoBERTa and XLM-RoBERTa.

mod config;
mod distance;
mod encoder;
mod family;

pub(crate) use config::{BertConfig, check_heads, check_layers, check_positive};
pub(crate) use distance::distance_bucket;
pub(crate) use encoder::{BertEncoder, norm_specs, read_norm};
pub(crate) use family::Family;
