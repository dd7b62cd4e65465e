//! Options of a generation: the model's own, the caller's over them, and what
//! follows from both for one prompt.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::sampling::Sampling;
use crate::error::{ErrorKind, ModelError};

/// New tokens where nothing sets a length, as in transformers.
const DEFAULT_NEW_TOKENS: usize = 20;
/// Likeliest tokens to sample among where nothing sets them, as in transformers.
const DEFAULT_TOP_K: usize = 50;
/// Bounds the memory of one request.
const MAX_BEAMS: usize = 64;

/// When a beam search ends, other than by the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// `false`: when the running sequences, ended now, would be no better than the
    /// ended ones.
    #[default]
    Likely,
    /// `true`: as soon as there are as many ended sequences as beams.
    First,
    /// `"never"`: when no running sequence can become better than the ended ones.
    Never,
}

impl<'de> Deserialize<'de> for EarlyStopping {
    /// Reads what transformers writes: a boolean or `"never"`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Bool(false) => Ok(Self::Likely),
            Value::Bool(true) => Ok(Self::First),
            Value::String(word) if word == "never" => Ok(Self::Never),
            other => Err(D::Error::custom(format!(
                "early_stopping is {other}, which is neither a boolean nor \"never\""
            ))),
        }
    }
}

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
    pub early_stopping: Option<EarlyStopping>,
    /// Divides (multiplies, below 0) the logits of tokens that occurred; 1 is off.
    pub repetition_penalty: Option<f32>,
    /// Length of token sequences that may occur once only; 0 is off.
    pub no_repeat_ngram_size: Option<u32>,
    /// Sample instead of taking the likeliest token, with beams as without. The four
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
    /// Everything else in the file.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// Options of transformers that change what is generated and are not computed here, with
/// the values that change nothing beside null.
const UNSUPPORTED: [(&str, &str); 22] = [
    ("bad_words_ids", "[]"),
    ("begin_suppress_tokens", "[]"),
    ("constraints", "[]"),
    ("diversity_penalty", "0.0"),
    ("encoder_no_repeat_ngram_size", "0"),
    ("encoder_repetition_penalty", "1.0"),
    ("epsilon_cutoff", "0.0"),
    ("eta_cutoff", "0.0"),
    ("exponential_decay_length_penalty", "null"),
    ("forced_bos_token_id", "null"),
    ("forced_eos_token_id", "null"),
    ("guidance_scale", "1.0"),
    ("min_p", "0.0"),
    ("num_beam_groups", "1"),
    ("num_return_sequences", "1"),
    ("penalty_alpha", "0.0"),
    ("remove_invalid_values", "false"),
    ("renormalize_logits", "false"),
    ("sequence_bias", "null"),
    ("suppress_tokens", "[]"),
    ("top_h", "null"),
    ("typical_p", "1.0"),
];

impl StoredGenerationConfig {
    /// Refuses what would give other texts than in transformers.
    fn check(&self) -> Result<(), ModelError> {
        for (name, neutral) in UNSUPPORTED {
            let Some(value) = self.others.get(name).filter(|value| !value.is_null()) else {
                continue;
            };
            let is_neutral = match serde_json::from_str::<Value>(neutral) {
                Ok(Value::Number(number)) => value.as_f64() == number.as_f64(),
                Ok(neutral) => *value == neutral,
                Err(_) => false,
            };
            if !is_neutral {
                return Err(ModelError::new(
                    ErrorKind::NotSupported,
                    format!("generation option \"{name}\" of the model is not supported"),
                )
                .with_detail(format!("Its generation_config.json has the value {value}."))
                .with_hint("Remove it from a copy of the model to caption without it."));
            }
        }
        Ok(())
    }
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
    /// Errors: [`ErrorKind::NotSupported`] for an option of the model that is not
    /// computed, [`ErrorKind::InvalidOption`] for a value that is out of range.
    pub(crate) fn new(
        stored: &StoredGenerationConfig,
        options: &GenerationOverrides,
    ) -> Result<Self, ModelError> {
        stored.check()?;
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
                .or(stored.early_stopping)
                .unwrap_or_default(),
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
        self.sampling.as_ref().map_or(Ok(()), Sampling::check)
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
    fn what_would_be_ignored_is_refused() {
        let config = |text: &str| {
            let stored: StoredGenerationConfig = serde_json::from_str(text).unwrap();
            GenerationConfig::new(&stored, &GenerationOverrides::default())
        };
        for neutral in [
            r#"{"typical_p": 1.0, "num_beam_groups": 1, "bad_words_ids": null, "pad_token_id": 0}"#,
            r#"{"num_return_sequences": 1, "suppress_tokens": [], "transformers_version": "5"}"#,
        ] {
            config(neutral).unwrap();
        }
        for (name, value) in [
            ("typical_p", "0.9"),
            ("suppress_tokens", "[3]"),
            ("forced_eos_token_id", "2"),
            ("num_return_sequences", "3"),
        ] {
            let error = config(&format!(r#"{{"{name}": {value}}}"#)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotSupported);
            assert!(error.message.contains(name) && error.hint.is_some());
        }
    }

    #[test]
    fn early_stopping_is_read_as_transformers_writes_it() {
        let read = |text: &str| serde_json::from_str::<StoredGenerationConfig>(text);
        let stopping = |text: &str| {
            let stored = read(text).unwrap();
            let options = GenerationOverrides::default();
            GenerationConfig::new(&stored, &options)
                .unwrap()
                .early_stopping
        };
        assert_eq!(stopping("{}"), EarlyStopping::Likely);
        assert_eq!(
            stopping(r#"{"early_stopping": null}"#),
            EarlyStopping::Likely
        );
        assert_eq!(
            stopping(r#"{"early_stopping": false}"#),
            EarlyStopping::Likely
        );
        assert_eq!(
            stopping(r#"{"early_stopping": true}"#),
            EarlyStopping::First
        );
        assert_eq!(
            stopping(r#"{"early_stopping": "never"}"#),
            EarlyStopping::Never
        );
        let error = read(r#"{"early_stopping": "always"}"#).unwrap_err();
        assert!(error.to_string().contains("never"));
    }
}
