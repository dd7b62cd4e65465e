//! Options of a generation: the model's own, the caller's over them, and what
//! follows from both for one prompt.

use serde::Deserialize;

use super::sampling::Sampling;
use crate::error::{ErrorKind, ModelError};

/// New tokens where nothing sets a length, as in transformers.
const DEFAULT_NEW_TOKENS: usize = 20;
/// Likeliest tokens to sample among where nothing sets them, as in transformers.
const DEFAULT_TOP_K: usize = 50;
/// Bounds the memory of one request.
const MAX_BEAMS: usize = 64;

/// Options of a caller, under the names of Hugging Face's `GenerationConfig`;
/// `None` takes the model's own value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationOverrides {
    /// Longest sequence in tokens, the prompt included.
    pub max_length: Option<u32>,
    /// Longest answer in tokens, the prompt not included; wins over `max_length`.
    pub max_new_tokens: Option<u32>,
    /// Shortest sequence in tokens, the prompt included.
    pub min_length: Option<u32>,
    /// Shortest answer in tokens; wins over `min_length`.
    pub min_new_tokens: Option<u32>,
    /// Beams of beam search; 1 searches greedily.
    pub num_beams: Option<u32>,
    /// Exponent of the length by which beam scores are divided.
    pub length_penalty: Option<f32>,
    /// When a beam search ends.
    pub early_stopping: Option<bool>,
    /// Divides (multiplies, below 0) the logits of tokens that occurred; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Length of token sequences that may occur once only; 0 is off.
    pub no_repeat_ngram_size: Option<u32>,
    /// Sample instead of taking the likeliest token; needs `num_beams` 1. The four
    /// options below matter only then.
    pub do_sample: Option<bool>,
    /// Divides the logits before sampling.
    pub temperature: Option<f32>,
    /// Sample among so many of the likeliest tokens; 0 is all of them.
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens that have this probability together.
    pub top_p: Option<f32>,
    /// Seed of sampling, the same for each input; without it every run differs.
    pub seed: Option<u64>,
}

/// When a beam search ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub(crate) enum EarlyStopping {
    /// As soon as there are as many ended sequences as beams.
    Yes,
    /// When the best that goes on, ended now, would not be among the best.
    No,
    /// When nothing that goes on can become one of the best.
    Never,
}

impl TryFrom<serde_json::Value> for EarlyStopping {
    type Error = String;

    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        match value {
            serde_json::Value::Bool(stop) => Ok(stop.into()),
            serde_json::Value::String(text) if text == "never" => Ok(Self::Never),
            other => Err(format!(
                "early_stopping is {other}, not true, false or \"never\""
            )),
        }
    }
}

impl From<bool> for EarlyStopping {
    fn from(stop: bool) -> Self {
        if stop { Self::Yes } else { Self::No }
    }
}

/// `generation_config.json`: the model's own values.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct StoredGenerationConfig {
    max_length: Option<usize>,
    max_new_tokens: Option<usize>,
    min_length: Option<usize>,
    min_new_tokens: Option<usize>,
    num_beams: Option<usize>,
    length_penalty: Option<f32>,
    early_stopping: Option<EarlyStopping>,
    repetition_penalty: Option<f32>,
    no_repeat_ngram_size: Option<usize>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
}

/// A checked configuration of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    max_length: Option<usize>,
    max_new_tokens: Option<usize>,
    min_length: usize,
    min_new_tokens: Option<usize>,
    pub(crate) num_beams: usize,
    pub(crate) length_penalty: f32,
    pub(crate) early_stopping: EarlyStopping,
    pub(crate) repetition_penalty: f32,
    pub(crate) no_repeat_ngram_size: usize,
    /// How tokens are sampled, if they are.
    pub(crate) sampling: Option<Sampling>,
}

/// Bounds of a sequence in tokens, the prompt included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) max: usize,
    pub(crate) min: usize,
}

impl GenerationConfig {
    /// Puts the caller's options over the model's and checks the result.
    ///
    /// Errors: [`ErrorKind::NotSupported`] for sampling with beams,
    /// [`ErrorKind::InvalidOption`] for a value that is out of range.
    pub(crate) fn new(
        stored: &StoredGenerationConfig,
        options: &GenerationOverrides,
    ) -> Result<Self, ModelError> {
        let count = |option: Option<u32>| option.map(|value| value as usize);
        // The option of one pair that a caller gives also wins over what the
        // model stores for the other of the pair.
        let lengths = |total: Option<u32>, new: Option<u32>, stored: [Option<usize>; 2]| match (
            count(total),
            count(new),
        ) {
            (None, None) => stored,
            (total, new) => [total, new],
        };
        let [max_length, max_new_tokens] = lengths(
            options.max_length,
            options.max_new_tokens,
            [stored.max_length, stored.max_new_tokens],
        );
        let [min_length, min_new_tokens] = lengths(
            options.min_length,
            options.min_new_tokens,
            [stored.min_length, stored.min_new_tokens],
        );
        let config = Self {
            max_length,
            max_new_tokens,
            min_length: min_length.unwrap_or(0),
            min_new_tokens,
            num_beams: count(options.num_beams).or(stored.num_beams).unwrap_or(1),
            length_penalty: options
                .length_penalty
                .or(stored.length_penalty)
                .unwrap_or(1.0),
            early_stopping: options
                .early_stopping
                .map(EarlyStopping::from)
                .or(stored.early_stopping)
                .unwrap_or(EarlyStopping::No),
            repetition_penalty: options
                .repetition_penalty
                .or(stored.repetition_penalty)
                .unwrap_or(1.0),
            no_repeat_ngram_size: count(options.no_repeat_ngram_size)
                .or(stored.no_repeat_ngram_size)
                .unwrap_or(0),
            sampling: (options.do_sample.or(stored.do_sample) == Some(true)).then(|| Sampling {
                temperature: options.temperature.or(stored.temperature).unwrap_or(1.0),
                top_k: count(options.top_k)
                    .or(stored.top_k)
                    .unwrap_or(DEFAULT_TOP_K),
                top_p: options.top_p.or(stored.top_p).unwrap_or(1.0),
                seed: options.seed,
            }),
        };
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ModelError> {
        if self.num_beams == 0 || self.num_beams > MAX_BEAMS {
            return Err(invalid(
                "num_beams",
                self.num_beams,
                format!("It must be between 1 and {MAX_BEAMS}."),
            ));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            return Err(invalid(
                "repetition_penalty",
                self.repetition_penalty,
                "It must be a number greater than 0.",
            ));
        }
        if !self.length_penalty.is_finite() {
            return Err(invalid(
                "length_penalty",
                self.length_penalty,
                "It must be a finite number.",
            ));
        }
        if self.max_new_tokens == Some(0) {
            return Err(invalid("max_new_tokens", 0, "It must be at least 1."));
        }
        match &self.sampling {
            Some(_) if self.num_beams > 1 => Err(ModelError::new(
                ErrorKind::NotSupported,
                "generation option \"do_sample\" is not supported with beams",
            )
            .with_detail(format!("The option \"num_beams\" is {}.", self.num_beams))
            .with_hint("Set num_beams to 1, or do_sample to false.")),
            Some(sampling) => sampling.check(),
            None => Ok(()),
        }
    }

    /// Bounds for a prompt of `prompt` tokens and a model that has `positions`.
    ///
    /// Where no length is set, 20 new tokens are generated, but never more than
    /// the model has positions; a length that is set must fit. A minimum above
    /// the maximum is of no effect, as in transformers.
    pub(crate) fn lengths(&self, prompt: usize, positions: usize) -> Result<Lengths, ModelError> {
        let (max, option) = match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => (prompt.saturating_add(new), "max_new_tokens"),
            (None, Some(max)) => (max, "max_length"),
            (None, None) => ((prompt + DEFAULT_NEW_TOKENS).min(positions), "max_length"),
        };
        if max > positions {
            let value = self.max_new_tokens.unwrap_or(max);
            return Err(invalid(
                option,
                value,
                format!("The model has {positions} positions, the prompt takes {prompt} of them."),
            ));
        }
        if max <= prompt {
            return Err(invalid(
                option,
                max,
                format!("The prompt alone has {prompt} tokens."),
            )
            .with_hint("Shorten the prompt, or set max_new_tokens."));
        }
        let min = self
            .min_new_tokens
            .map_or(self.min_length, |new| prompt.saturating_add(new));
        Ok(Lengths { max, min })
    }
}

pub(super) fn invalid(
    option: &str,
    value: impl std::fmt::Display,
    detail: impl Into<String>,
) -> ModelError {
    ModelError::new(
        ErrorKind::InvalidOption,
        format!("invalid value for generation option \"{option}\": {value}"),
    )
    .with_detail(detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(options: GenerationOverrides) -> GenerationConfig {
        GenerationConfig::new(&StoredGenerationConfig::default(), &options).unwrap()
    }

    #[test]
    fn the_default_is_twenty_new_tokens() {
        let config = configured(GenerationOverrides::default());
        assert_eq!(config.lengths(1, 512).unwrap(), Lengths { max: 21, min: 0 });
        assert_eq!(config.lengths(4, 512).unwrap().max, 24);
        assert_eq!(config.lengths(4, 12).unwrap().max, 12);
    }

    #[test]
    fn new_tokens_win_over_lengths() {
        let config = configured(GenerationOverrides {
            max_length: Some(100),
            max_new_tokens: Some(5),
            min_length: Some(12),
            min_new_tokens: Some(3),
            ..GenerationOverrides::default()
        });
        assert_eq!(config.lengths(4, 512).unwrap(), Lengths { max: 9, min: 7 });
    }

    #[test]
    fn the_caller_wins_over_the_model() {
        let stored: StoredGenerationConfig =
            serde_json::from_str(r#"{"max_new_tokens": 50, "num_beams": 3, "top_k": 5}"#).unwrap();
        let own = GenerationConfig::new(&stored, &GenerationOverrides::default()).unwrap();
        assert_eq!((own.lengths(1, 512).unwrap().max, own.num_beams), (51, 3));
        let options = GenerationOverrides {
            max_length: Some(30),
            num_beams: Some(1),
            ..GenerationOverrides::default()
        };
        let config = GenerationConfig::new(&stored, &options).unwrap();
        assert_eq!(
            (config.lengths(1, 512).unwrap().max, config.num_beams),
            (30, 1)
        );
    }

    #[test]
    fn lengths_that_do_not_fit_are_invalid() {
        let max = |max_length| {
            configured(GenerationOverrides {
                max_length: Some(max_length),
                ..GenerationOverrides::default()
            })
        };
        assert_eq!(max(5).lengths(4, 512).unwrap().max, 5);
        for (config, prompt) in [(max(4), 4), (max(513), 4), (max(20), 600)] {
            let error = config.lengths(prompt, 512).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidOption);
            assert!(error.message.contains("max_length"));
        }
        let config = configured(GenerationOverrides::default());
        assert!(config.lengths(512, 512).is_err());
    }

    #[test]
    fn values_out_of_range_are_invalid() {
        let wrong: [fn(&mut GenerationOverrides); 6] = [
            |o| o.num_beams = Some(0),
            |o| o.num_beams = Some(65),
            |o| o.repetition_penalty = Some(0.0),
            |o| o.repetition_penalty = Some(f32::NAN),
            |o| o.length_penalty = Some(f32::INFINITY),
            |o| o.max_new_tokens = Some(0),
        ];
        for change in wrong {
            let mut options = GenerationOverrides::default();
            change(&mut options);
            let error =
                GenerationConfig::new(&StoredGenerationConfig::default(), &options).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidOption);
        }
    }

    #[test]
    fn sampling_has_the_defaults_of_transformers_and_of_the_model() {
        assert_eq!(configured(GenerationOverrides::default()).sampling, None);
        let sampled = GenerationOverrides {
            do_sample: Some(true),
            seed: Some(3),
            ..GenerationOverrides::default()
        };
        let expected = Sampling {
            temperature: 1.0,
            top_k: 50,
            top_p: 1.0,
            seed: Some(3),
        };
        assert_eq!(configured(sampled).sampling, Some(expected));
        let stored = r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.9}"#;
        let stored: StoredGenerationConfig = serde_json::from_str(stored).unwrap();
        let options = GenerationOverrides {
            top_k: Some(0),
            ..GenerationOverrides::default()
        };
        let expected = Sampling {
            temperature: 0.6,
            top_k: 0,
            top_p: 0.9,
            seed: None,
        };
        let config = GenerationConfig::new(&stored, &options).unwrap();
        assert_eq!(config.sampling, Some(expected));
        let greedy = GenerationOverrides {
            do_sample: Some(false),
            ..GenerationOverrides::default()
        };
        let config = GenerationConfig::new(&stored, &greedy).unwrap();
        assert_eq!(config.sampling, None);
    }

    #[test]
    fn sampling_options_are_checked() {
        let wrong: [fn(&mut GenerationOverrides); 6] = [
            |o| o.temperature = Some(0.0),
            |o| o.temperature = Some(-1.0),
            |o| o.temperature = Some(f32::NAN),
            |o| o.top_p = Some(1.1),
            |o| o.top_p = Some(-0.1),
            |o| o.top_p = Some(f32::NAN),
        ];
        for change in wrong {
            let mut options = GenerationOverrides {
                do_sample: Some(true),
                ..GenerationOverrides::default()
            };
            change(&mut options);
            let error =
                GenerationConfig::new(&StoredGenerationConfig::default(), &options).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidOption);
        }
    }

    #[test]
    fn sampling_with_beams_is_not_supported() {
        let options = GenerationOverrides {
            do_sample: Some(true),
            num_beams: Some(2),
            ..GenerationOverrides::default()
        };
        let error =
            GenerationConfig::new(&StoredGenerationConfig::default(), &options).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
        assert!(error.message.contains("do_sample") && error.hint.is_some());
    }
}
