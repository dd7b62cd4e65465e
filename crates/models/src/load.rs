//! Finding out what a directory holds, and loading it.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::bert::Family;
use crate::captioner::{Captioner, CaptionerPlan};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::quantized::FourBits;
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
    DistilBert,
    InstructBlip,
    MpNet,
    Roberta,
    XlmRoberta,
}

/// Every architecture with its `model_type` in `config.json`.
const MODEL_TYPES: [(&str, Architecture); 7] = [
    ("bert", Architecture::Bert),
    ("blip", Architecture::Blip),
    ("distilbert", Architecture::DistilBert),
    ("instructblip", Architecture::InstructBlip),
    ("mpnet", Architecture::MpNet),
    ("roberta", Architecture::Roberta),
    ("xlm-roberta", Architecture::XlmRoberta),
];

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

impl Architecture {
    /// The architecture that `config.json` names.
    fn read(directory: &ModelDirectory) -> Result<Self, ModelError> {
        const FILE: &str = "config.json";
        let config: AnyConfig = directory.json(FILE)?;
        let Some(model_type) = config.model_type else {
            return Err(damaged(FILE, "It has no model_type."));
        };
        let known = MODEL_TYPES.iter().find(|(name, _)| *name == model_type);
        known.map(|(_, architecture)| *architecture).ok_or_else(|| {
            let names: Vec<String> = MODEL_TYPES
                .iter()
                .map(|(name, _)| format!("\"{name}\""))
                .collect();
            unsupported(FILE, format!("Its model_type is \"{model_type}\"."))
                .with_hint(format!("Supported model types are {}.", names.join(", ")))
        })
    }
}

impl Plan {
    fn read(directory: &ModelDirectory, architecture: Architecture) -> Result<Self, ModelError> {
        let family = match architecture {
            Architecture::Blip => {
                return Ok(Self::Captioner(Box::new(CaptionerPlan::blip(directory)?)));
            }
            Architecture::InstructBlip => {
                let plan = CaptionerPlan::instruct_blip(directory)?;
                return Ok(Self::Captioner(Box::new(plan)));
            }
            Architecture::Bert => Family::Bert,
            Architecture::DistilBert => Family::DistilBert,
            Architecture::MpNet => Family::MpNet,
            Architecture::Roberta | Architecture::XlmRoberta => Family::Roberta,
        };
        let plan = EncoderPlan::read(directory, family)?;
        Ok(Self::Encoder(Box::new(plan)))
    }

    fn specs(&self, checkpoint: &Checkpoint) -> Vec<TensorSpec> {
        match self {
            Self::Encoder(plan) => plan.specs(checkpoint),
            Self::Captioner(plan) => plan.specs(checkpoint),
        }
    }
}

/// A model's files, read and checked but for the weights.
pub struct OpenedModel {
    directory: ModelDirectory,
    architecture: Architecture,
    plan: Plan,
    checkpoint: Checkpoint,
}

impl OpenedModel {
    fn new(directory: &Path) -> Result<Self, ModelError> {
        let directory = ModelDirectory::open(directory)?;
        let architecture = Architecture::read(&directory)?;
        let plan = Plan::read(&directory, architecture)?;
        let checkpoint = Checkpoint::open(&directory)?;
        checkpoint.check(&plan.specs(&checkpoint))?;
        Ok(Self {
            directory,
            architecture,
            plan,
            checkpoint,
        })
    }

    /// Elements of all weights.
    fn parameters(&self) -> u64 {
        let further = match &self.plan {
            Plan::Encoder(plan) => plan.further_parameters(),
            Plan::Captioner(_) => 0,
        };
        self.checkpoint.parameters() + further
    }

    /// What is known of the model.
    ///
    /// Errors: [`ErrorKind::ModelMissing`](crate::ErrorKind::ModelMissing).
    pub fn summary(&self) -> Result<ModelSummary, ModelError> {
        let (task, dimensions) = match &self.plan {
            Plan::Encoder(plan) => (Task::Embed, Some(plan.dimensions())),
            Plan::Captioner(_) => (Task::Describe, None),
        };
        Ok(ModelSummary {
            task,
            architecture: self.architecture,
            dimensions,
            parameters: self.parameters(),
            revision: self.directory.revision()?,
        })
    }

    /// Elements of weights that are in memory twice: an output layer that has the word
    /// embeddings' weight, of which a language model keeps a copy for itself.
    fn repeated(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let specs = self.plan.specs(&self.checkpoint).into_iter();
        let elements = |spec: TensorSpec| {
            let elements = spec.shape.iter().product::<usize>() as u64;
            (!seen.insert(spec.name)).then_some(elements)
        };
        specs.filter_map(elements).sum()
    }

    /// The memory that its weights take where they are used, in bytes.
    pub fn memory_bytes(&self, place: &Placement) -> u64 {
        (self.parameters() + self.repeated()) * place.dtype.size_in_bytes() as u64
    }

    /// The same where it is loaded in 4 bits.
    pub fn memory_bytes_in_4_bits(&self, place: &Placement) -> u64 {
        let layers = match &self.plan {
            Plan::Captioner(plan) => plan.language_layers(&self.checkpoint),
            Plan::Encoder(_) => Vec::new(),
        };
        let number = place.dtype.size_in_bytes() as u64;
        let saved = layers.iter().map(|layer| {
            let whole = (layer.outputs() * layer.inputs()) as u64 * number;
            whole - layer.quantized_bytes().unwrap_or(whole)
        });
        self.memory_bytes(place).saturating_sub(saved.sum())
    }

    /// Reads the weights. Errors as [`open`], and
    /// [`ErrorKind::OutOfDeviceMemory`](crate::ErrorKind::OutOfDeviceMemory).
    pub fn load(self, place: &Placement) -> Result<Model, ModelError> {
        self.load_as(place, None)
    }

    /// The same with the linear layers of a language model in 4 bits; of other models
    /// nothing changes. Where they were not quantized before, this takes minutes for
    /// billions of parameters; the result is kept in a file. Errors as
    /// [`OpenedModel::load`].
    pub fn load_in_4_bits(
        self,
        place: &Placement,
        options: &FourBits<'_>,
    ) -> Result<Model, ModelError> {
        self.load_as(place, Some(options))
    }

    fn load_as(
        self,
        place: &Placement,
        four_bits: Option<&FourBits<'_>>,
    ) -> Result<Model, ModelError> {
        let checkpoint = &self.checkpoint;
        Ok(match self.plan {
            Plan::Encoder(plan) => Model::Encoder(TextEncoder::read(plan, checkpoint, place)?),
            Plan::Captioner(plan) => {
                Model::Captioner(Captioner::read(*plan, checkpoint, place, four_bits)?)
            }
        })
    }
}

/// Reads the configuration and checks that all files are present and whole and
/// that every tensor has its shape, without loading the weights.
///
/// Errors: [`ErrorKind::ModelMissing`](crate::ErrorKind::ModelMissing) for the
/// directory or a file, [`ErrorKind::ModelInvalid`](crate::ErrorKind::ModelInvalid)
/// for damage, [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported) for
/// models of other kinds.
pub fn open(directory: &Path) -> Result<OpenedModel, ModelError> {
    OpenedModel::new(directory)
}

/// What a directory holds. Errors as [`open`].
pub fn inspect(directory: &Path) -> Result<ModelSummary, ModelError> {
    open(directory)?.summary()
}

/// The revision of a model's files as they are now, as in
/// [`ModelSummary::revision`]. Cheap: it reads names, sizes and times only.
///
/// Errors: [`ErrorKind::ModelMissing`](crate::ErrorKind::ModelMissing).
pub fn revision(directory: &Path) -> Result<String, ModelError> {
    ModelDirectory::open(directory)?.revision()
}

/// Loads a model to where it is used. Errors as [`open`].
pub fn load(directory: &Path, place: &Placement) -> Result<Model, ModelError> {
    open(directory)?.load(place)
}
