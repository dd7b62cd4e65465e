//! Options of text generation, under the names of Hugging Face's
//! `GenerationConfig`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// When a beam search ends, other than by the length: `false`, `true` and `"never"`
/// of Hugging Face's `early_stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EarlyStopping {
    /// When it is not likely that the result becomes better.
    Likely,
    /// As soon as there are as many ended sequences as beams.
    First,
    /// When the result cannot become better.
    Never,
}

impl EarlyStopping {
    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Bool(false) => Some(Self::Likely),
            Value::Bool(true) => Some(Self::First),
            Value::String(word) if word == "never" => Some(Self::Never),
            _ => None,
        }
    }
}

/// Options as a caller gave them; `None` takes the model's own value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GenerationOptions {
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
    /// Sample instead of taking the likeliest token.
    pub do_sample: Option<bool>,
    /// Divides the logits before sampling.
    pub temperature: Option<f32>,
    /// Sample among so many of the likeliest tokens.
    pub top_k: Option<u32>,
    /// Sample among the likeliest tokens that have this probability together.
    pub top_p: Option<f32>,
    /// Seed of sampling.
    pub seed: Option<u64>,
}

/// Why options were refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    #[error("options must be a JSON object, not {0}")]
    NotAnObject(&'static str),
    #[error("unrecognized generation option \"{0}\"")]
    Unknown(String),
    #[error("invalid value for generation option \"{name}\": {value}")]
    Value {
        name: String,
        value: String,
        expected: &'static str,
    },
}

impl OptionsError {
    /// What would have been right, for the DETAIL of an error.
    pub fn detail(&self) -> Option<String> {
        match self {
            Self::Value { expected, .. } => Some(format!("It must be {expected}.")),
            Self::NotAnObject(_) | Self::Unknown(_) => None,
        }
    }

    /// The names there are, for the HINT of an error.
    pub fn hint(&self) -> String {
        let names: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
        format!("Valid options are {}.", names.join(", "))
    }
}

/// Takes a value into its field; false when it is of the wrong kind or range.
type Setter = fn(&mut GenerationOptions, &Value) -> bool;

struct OptionKind {
    name: &'static str,
    expected: &'static str,
    set: Setter,
}

fn count(value: &Value, least: u64) -> Option<u32> {
    value
        .as_u64()
        .filter(|n| *n >= least)
        .and_then(|n| u32::try_from(n).ok())
}

fn positive(value: &Value) -> Option<f32> {
    finite(value).filter(|x| *x > 0.0)
}

fn finite(value: &Value) -> Option<f32> {
    value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

fn fraction(value: &Value) -> Option<f32> {
    positive(value).filter(|x| *x <= 1.0)
}

/// Stores what was read; false when nothing was.
fn store<T>(field: &mut Option<T>, value: Option<T>) -> bool {
    *field = value;
    field.is_some()
}

const COUNT: &str = "an integer of at least 1";
const COUNT_OR_ZERO: &str = "an integer of at least 0";
const POSITIVE: &str = "a number greater than 0";

const OPTIONS: &[OptionKind] = &[
    OptionKind {
        name: "max_length",
        expected: COUNT,
        set: |o, v| store(&mut o.max_length, count(v, 1)),
    },
    OptionKind {
        name: "max_new_tokens",
        expected: COUNT,
        set: |o, v| store(&mut o.max_new_tokens, count(v, 1)),
    },
    OptionKind {
        name: "min_length",
        expected: COUNT_OR_ZERO,
        set: |o, v| store(&mut o.min_length, count(v, 0)),
    },
    OptionKind {
        name: "min_new_tokens",
        expected: COUNT_OR_ZERO,
        set: |o, v| store(&mut o.min_new_tokens, count(v, 0)),
    },
    OptionKind {
        name: "num_beams",
        expected: COUNT,
        set: |o, v| store(&mut o.num_beams, count(v, 1)),
    },
    OptionKind {
        name: "length_penalty",
        expected: "a number",
        set: |o, v| store(&mut o.length_penalty, finite(v)),
    },
    OptionKind {
        name: "early_stopping",
        expected: "true, false or \"never\"",
        set: |o, v| store(&mut o.early_stopping, EarlyStopping::from_json(v)),
    },
    OptionKind {
        name: "repetition_penalty",
        expected: POSITIVE,
        set: |o, v| store(&mut o.repetition_penalty, positive(v)),
    },
    OptionKind {
        name: "no_repeat_ngram_size",
        expected: COUNT_OR_ZERO,
        set: |o, v| store(&mut o.no_repeat_ngram_size, count(v, 0)),
    },
    OptionKind {
        name: "do_sample",
        expected: "true or false",
        set: |o, v| store(&mut o.do_sample, v.as_bool()),
    },
    OptionKind {
        name: "temperature",
        expected: POSITIVE,
        set: |o, v| store(&mut o.temperature, positive(v)),
    },
    OptionKind {
        name: "top_k",
        expected: COUNT_OR_ZERO,
        set: |o, v| store(&mut o.top_k, count(v, 0)),
    },
    OptionKind {
        name: "top_p",
        expected: "a number greater than 0 and at most 1",
        set: |o, v| store(&mut o.top_p, fraction(v)),
    },
    OptionKind {
        name: "seed",
        expected: COUNT_OR_ZERO,
        set: |o, v| store(&mut o.seed, v.as_u64()),
    },
];

impl GenerationOptions {
    /// Reads a JSON object of options.
    ///
    /// # Errors
    /// Anything but an object, an unknown name, a value of the wrong kind.
    pub fn from_json(value: &Value) -> Result<Self, OptionsError> {
        let object: &Map<String, Value> = match value {
            Value::Object(object) => object,
            Value::Null => return Err(OptionsError::NotAnObject("null")),
            Value::Bool(_) => return Err(OptionsError::NotAnObject("a boolean")),
            Value::Number(_) => return Err(OptionsError::NotAnObject("a number")),
            Value::String(_) => return Err(OptionsError::NotAnObject("a string")),
            Value::Array(_) => return Err(OptionsError::NotAnObject("an array")),
        };
        let mut options = Self::default();
        for (name, value) in object {
            let kind = OPTIONS
                .iter()
                .find(|kind| kind.name == name)
                .ok_or_else(|| OptionsError::Unknown(name.clone()))?;
            if !(kind.set)(&mut options, value) {
                return Err(OptionsError::Value {
                    name: name.clone(),
                    value: value.to_string(),
                    expected: kind.expected,
                });
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::{GenerationOptions, OPTIONS, OptionsError};
    use serde_json::{Map, Value, json};

    #[test]
    fn every_field_has_a_name_in_json() {
        let fields = serde_json::to_value(GenerationOptions::default()).unwrap();
        let fields: Vec<&String> = fields.as_object().unwrap().keys().collect();
        assert_eq!(fields.len(), OPTIONS.len());
        for option in OPTIONS {
            assert!(
                fields.iter().any(|field| *field == option.name),
                "{}",
                option.name
            );
            let mut object = Map::new();
            let value = if option.expected.starts_with("true") {
                json!(true)
            } else {
                json!(1)
            };
            object.insert(option.name.into(), value);
            let parsed = GenerationOptions::from_json(&Value::Object(object)).unwrap();
            let parsed = serde_json::to_value(parsed).unwrap();
            assert!(
                !parsed[option.name].is_null(),
                "{} is stored elsewhere",
                option.name
            );
        }
    }

    #[test]
    fn wrong_options_say_what_is_right() {
        let error = GenerationOptions::from_json(&json!({"beams": 3})).unwrap_err();
        assert_eq!(error, OptionsError::Unknown("beams".into()));
        assert!(error.hint().contains("num_beams"));
        for wrong in [
            json!({"num_beams": 0}),
            json!({"num_beams": "3"}),
            json!({"num_beams": 2.5}),
            json!({"max_length": -1}),
            json!({"max_length": 1u64 << 40}),
            json!({"top_p": 1.5}),
            json!({"temperature": 0}),
            json!({"repetition_penalty": 1e300}),
            json!({"do_sample": 1}),
            json!({"early_stopping": "always"}),
            json!({"seed": null}),
        ] {
            let error = GenerationOptions::from_json(&wrong).unwrap_err();
            assert!(error.detail().is_some(), "{wrong}");
        }
        for wrong in [json!(null), json!([]), json!("x"), json!(1), json!(true)] {
            assert!(matches!(
                GenerationOptions::from_json(&wrong),
                Err(OptionsError::NotAnObject(_))
            ));
        }
    }
}
