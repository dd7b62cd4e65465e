//! Generation of text, independent of the model.

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

/// A checked configuration of one generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationConfig {
    max_length: usize,
}
