//! InstructBLIP (Dai et al. 2023): the vision tower of BLIP, a Q-Former that reads
//! the instruction and asks the picture, and a language model that continues what
//! both gave, in the layout of Salesforce/instructblip-vicuna-7b.

mod captioner;
mod causal;
mod config;
mod language;
mod llama;
mod llama_config;
mod qformer;
mod rms_norm;
mod t5;
mod t5_config;
mod t5_decoder;

pub(crate) use captioner::{InstructCaptioner, InstructPlan};
