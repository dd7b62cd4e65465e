//! Options of generation as the goldens have them.

use serde_json::Value;
use sight_models::GenerationOverrides;

/// Of an object with the names of `GenerationConfig`.
pub fn overrides(options: &Value) -> GenerationOverrides {
    let count = |key: &str| options[key].as_u64().map(|value| value as u32);
    let number = |key: &str| options[key].as_f64().map(|value| value as f32);
    GenerationOverrides {
        max_length: count("max_length"),
        max_new_tokens: count("max_new_tokens"),
        min_length: count("min_length"),
        min_new_tokens: count("min_new_tokens"),
        num_beams: count("num_beams"),
        no_repeat_ngram_size: count("no_repeat_ngram_size"),
        repetition_penalty: number("repetition_penalty"),
        length_penalty: number("length_penalty"),
        early_stopping: serde_json::from_value(options["early_stopping"].clone()).unwrap(),
        ..GenerationOverrides::default()
    }
}
