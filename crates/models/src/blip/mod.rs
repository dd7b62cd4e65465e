//! BLIP image captioning: a vision tower and a text decoder that attends to it,
//! in the layout of Salesforce/blip-image-captioning-base.

mod captioner;
mod config;
mod text;
mod vision;

pub(crate) use captioner::BlipCaptioner;
pub(crate) use config::{BlipConfig, VisionConfig};
pub(crate) use vision::VisionTower;
