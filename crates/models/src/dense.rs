//! The Dense module of sentence-transformers: a linear layer over pooled vectors.

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::activation::Activation;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::device::Placement;
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::linear::Linear;

const WEIGHT: &str = "linear.weight";
const BIAS: &str = "linear.bias";

/// `config.json` of the module.
#[derive(Debug, Deserialize)]
struct Config {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    /// The full name of a class of PyTorch; tanh where it is absent.
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

/// Classes of PyTorch, without their modules, that are activations.
const CLASSES: [(&str, Activation); 6] = [
    ("Tanh", Activation::Tanh),
    ("Identity", Activation::Identity),
    ("ReLU", Activation::Relu),
    ("GELU", Activation::Gelu),
    ("SiLU", Activation::Silu),
    ("Sigmoid", Activation::Sigmoid),
];

/// A module with its files checked and its weights not read yet.
#[derive(Debug)]
pub(crate) struct DensePlan {
    config: Config,
    activation: Activation,
    checkpoint: Checkpoint,
}

impl DensePlan {
    /// Reads the configuration in `folder`, and checks the weights there.
    /// `inputs` is what the module before gives.
    pub(crate) fn read(
        directory: &ModelDirectory,
        folder: &str,
        inputs: usize,
    ) -> Result<Self, ModelError> {
        let file = format!("{folder}/config.json");
        let config: Config = directory.json(&file)?;
        if config.in_features != inputs {
            return Err(damaged(
                &file,
                format!(
                    "Its in_features is {}, but the module before gives {inputs} components.",
                    config.in_features
                ),
            ));
        }
        if config.out_features == 0 {
            return Err(damaged(&file, "Its out_features is 0."));
        }
        let activation = match &config.activation_function {
            None => Activation::Tanh,
            Some(class) => activation(class, &file)?,
        };
        let checkpoint = Checkpoint::open_in(directory, &format!("{folder}/"))?;
        let mut specs = vec![TensorSpec::new(WEIGHT, [config.out_features, inputs])];
        if config.bias {
            specs.push(TensorSpec::new(BIAS, [config.out_features]));
        }
        checkpoint.check(&specs)?;
        Ok(Self {
            config,
            activation,
            checkpoint,
        })
    }

    /// Components of a vector that the module gives.
    pub(crate) fn dimensions(&self) -> usize {
        self.config.out_features
    }

    pub(crate) fn parameters(&self) -> u64 {
        self.checkpoint.parameters()
    }

    /// Reads the weights.
    pub(crate) fn load(&self, place: &Placement) -> Result<Dense, ModelError> {
        let (inputs, outputs) = (self.config.in_features, self.config.out_features);
        let weight = self.checkpoint.read(WEIGHT, &[outputs, inputs], place)?;
        let bias = if self.config.bias {
            self.checkpoint.read(BIAS, &[outputs], place)?
        } else {
            Tensor::zeros(outputs, place.dtype, &place.device)?
        };
        Ok(Dense {
            linear: Linear::new(&weight, bias)?,
            activation: self.activation,
            place: place.clone(),
        })
    }
}

fn activation(class: &str, file: &str) -> Result<Activation, ModelError> {
    let name = class.rsplit('.').next().unwrap_or_default();
    let known = CLASSES.iter().find(|(known, _)| *known == name);
    known.map(|(_, activation)| *activation).ok_or_else(|| {
        let names: Vec<&str> = CLASSES.iter().map(|(name, _)| *name).collect();
        unsupported(file, format!("Its activation_function is \"{class}\"."))
            .with_hint(format!("Supported activations are {}.", names.join(", ")))
    })
}

/// The module, ready to compute.
#[derive(Debug)]
pub(crate) struct Dense {
    linear: Linear,
    activation: Activation,
    place: Placement,
}

impl Dense {
    /// Vectors of in_features components to vectors of out_features.
    pub(crate) fn forward(&self, vectors: Vec<Vec<f32>>) -> candle_core::Result<Vec<Vec<f32>>> {
        let x = Tensor::new(vectors, &Device::Cpu)?
            .to_dtype(self.place.dtype)?
            .to_device(&self.place.device)?;
        self.linear
            .forward_activated(&x, self.activation)?
            .to_dtype(DType::F32)?
            .to_vec2()
    }
}
