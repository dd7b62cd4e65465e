//! Finding out what a directory holds, and loading it.

use std::path::Path;

use candle_core::Device;
use serde::Deserialize;

use crate::blip::{Captioner, CaptionerPlan};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::text_encoder::{EncoderPlan, TextEncoder};

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Texts to vectors.
    Embed,
    /// Pictures to captions.
    Describe,
}

/// The structure of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    Bert,
    Blip,
}

/// What is known of a model without loading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSummary {
    pub task: Task,
    pub architecture: Architecture,
    /// Components of an embedding; `None` for captioners.
    pub dimensions: Option<usize>,
    /// Elements of all weights in the files.
    pub parameters: u64,
    /// A hash over the files: it changes when one of them is replaced.
    pub revision: String,
}

/// A loaded model.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a process has a handful of models, and each stays where it is"
)]
pub enum Model {
    Encoder(TextEncoder),
    Captioner(Captioner),
}

/// The configuration of a model of any kind.
enum Plan {
    Encoder(Box<EncoderPlan>),
    Captioner(Box<CaptionerPlan>),
}

#[derive(Deserialize)]
struct AnyConfig {
    model_type: Option<String>,
}

impl Plan {
    fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        const FILE: &str = "config.json";
        let config: AnyConfig = directory.json(FILE)?;
        match config.model_type.as_deref() {
            Some("bert") => Ok(Self::Encoder(Box::new(EncoderPlan::read(directory)?))),
            Some("blip") => Ok(Self::Captioner(Box::new(CaptionerPlan::read(directory)?))),
            Some(other) => Err(unsupported(FILE, format!("Its model_type is \"{other}\"."))
                .with_hint("Supported model types are \"bert\" and \"blip\".")),
            None => Err(damaged(FILE, "It has no model_type.")),
        }
    }

    fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        match self {
            Self::Encoder(plan) => plan.specs(checkpoint),
            Self::Captioner(plan) => plan.specs(checkpoint),
        }
    }
}

fn open(directory: &Path) -> Result<(ModelDirectory, Plan, Checkpoint), ModelError> {
    let directory = ModelDirectory::open(directory)?;
    let plan = Plan::read(&directory)?;
    let checkpoint = Checkpoint::open(&directory)?;
    checkpoint.check(&plan.specs(&checkpoint))?;
    Ok((directory, plan, checkpoint))
}

/// Reads the configuration and checks that all files are present and whole and
/// that every tensor has its shape, without loading the weights.
///
/// Errors: [`ErrorKind::ModelMissing`](crate::ErrorKind::ModelMissing) for the
/// directory or a file, [`ErrorKind::ModelInvalid`](crate::ErrorKind::ModelInvalid)
/// for damage, [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported) for
/// models of other kinds.
pub fn inspect(directory: &Path) -> Result<ModelSummary, ModelError> {
    let (directory, plan, checkpoint) = open(directory)?;
    let (task, architecture, dimensions) = match &plan {
        Plan::Encoder(plan) => (Task::Embed, Architecture::Bert, Some(plan.dimensions())),
        Plan::Captioner(_) => (Task::Describe, Architecture::Blip, None),
    };
    Ok(ModelSummary {
        task,
        architecture,
        dimensions,
        parameters: checkpoint.parameters(),
        revision: directory.revision()?,
    })
}

/// The revision of a model's files as they are now, as in
/// [`ModelSummary::revision`]. Cheap: it reads names, sizes and times only.
///
/// Errors: [`ErrorKind::ModelMissing`](crate::ErrorKind::ModelMissing).
pub fn revision(directory: &Path) -> Result<String, ModelError> {
    ModelDirectory::open(directory)?.revision()
}

/// Loads a model onto a device, in 32-bit floats. Errors as [`inspect`].
pub fn load(directory: &Path, device: &Device) -> Result<Model, ModelError> {
    let (_, plan, checkpoint) = open(directory)?;
    Ok(match plan {
        Plan::Encoder(plan) => Model::Encoder(TextEncoder::read(plan, &checkpoint, device)?),
        Plan::Captioner(plan) => Model::Captioner(Captioner::read(plan, &checkpoint, device)?),
    })
}
