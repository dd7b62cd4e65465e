//! Activation functions, under the names that configurations have for them.

use candle_core::{Result, Tensor};

use crate::error::ModelError;
use crate::files::unsupported;

/// What is applied to each component between two linear layers. Kernels of devices have
/// them by their numbers (`activate` in ops/cuda/rows.cuh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `x Φ(x)`, with the distribution function of the normal distribution.
    Gelu,
    /// The same with tanh in place of Φ (Hendrycks and Gimpel 2016).
    GeluTanh,
    /// `x σ(1.702 x)`.
    QuickGelu,
    Relu,
    /// `x σ(x)`.
    Silu,
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// `x`.
    Identity,
}

/// Names as in transformers' `hidden_act`. Several mean the same formula.
const HIDDEN: [(&str, Activation); 10] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

impl Activation {
    /// The activation that `hidden_act` of `config.json` names; `setting` is what
    /// the caller calls it in messages.
    ///
    /// Errors: [`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported).
    pub(crate) fn hidden(
        name: &str,
        file: &str,
        setting: &str,
    ) -> std::result::Result<Self, ModelError> {
        let known = HIDDEN.iter().find(|(known, _)| *known == name);
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            let names: Vec<&str> = HIDDEN.iter().map(|(name, _)| *name).collect();
            unsupported(file, format!("Its {setting} is \"{name}\"."))
                .with_hint(format!("Supported activations are {}.", names.join(", ")))
        })
    }

    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            // candle's `gelu` is the form with tanh.
            Self::GeluTanh => x.gelu(),
            Self::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            Self::Relu => x.relu(),
            Self::Silu => x.silu(),
            Self::Tanh => x.tanh(),
            Self::Sigmoid => candle_nn::ops::sigmoid(x),
            Self::Identity => Ok(x.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn formulas_are_those_of_pytorch() {
        // torch 2.15: the functions of transformers' ACT2FN and of torch.nn at these points.
        const AT: [f32; 5] = [-3.0, -0.5, 0.0, 0.7, 2.0];
        let expected: [(Activation, [f32; 5]); 8] = [
            (
                Activation::Gelu,
                [-0.0040498674, -0.15426879, 0.0, 0.53062546, 1.9545],
            ),
            (
                Activation::GeluTanh,
                [-0.003_637_433, -0.154286, 0.0, 0.53057015, 1.9545977],
            ),
            (
                Activation::QuickGelu,
                [-0.018_071_31, -0.14961156, 0.0, 0.53689396, 1.9356586],
            ),
            (Activation::Relu, [0.0, 0.0, 0.0, 0.7, 2.0]),
            (
                Activation::Silu,
                [-0.14227761, -0.18877034, 0.0, 0.46773142, 1.761_594],
            ),
            (
                Activation::Tanh,
                [-0.995_054_8, -0.46211717, 0.0, 0.604_367_8, 0.964_027_6],
            ),
            (
                Activation::Sigmoid,
                [0.047425874, 0.37754068, 0.5, 0.66818774, 0.880_797],
            ),
            (Activation::Identity, AT),
        ];
        for (activation, values) in expected {
            let x = Tensor::new(&AT, &Device::Cpu).unwrap();
            let actual: Vec<f32> = activation.apply(&x).unwrap().to_vec1().unwrap();
            for (actual, expected) in actual.iter().zip(values) {
                assert!(
                    (actual - expected).abs() < 1e-6,
                    "{activation:?}: {actual} {expected}"
                );
            }
        }
    }

    #[test]
    fn unknown_names_are_refused() {
        let error = Activation::hidden("mish", "config.json", "hidden_act").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
        assert!(error.detail.unwrap().contains("\"mish\""));
        assert!(error.hint.unwrap().contains("quick_gelu"));
    }
}
