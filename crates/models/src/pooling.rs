//! From the vectors of tokens to the vector of a text.

use serde_json::Value;

use crate::error::ModelError;
use crate::files::{damaged, unsupported};

/// One way of pooling. Kernels of devices have them by their numbers (`pool` in
/// ops/cuda/rows.cuh).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PoolingMode {
    /// The vector of the first token.
    Cls,
    /// The largest value of each component.
    Max,
    /// The mean of all tokens.
    Mean,
    /// The sum of all tokens over the square root of their number.
    MeanSqrtLength,
    /// The vector of the last token.
    LastToken,
}

/// The pooling of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pooling {
    /// Their results lie beside each other.
    modes: Vec<PoolingMode>,
    /// Whether the tokens of a prompt are pooled too.
    pub(crate) include_prompt: bool,
}

/// Names as in `pooling_mode`, the older flag of each, and the mode; in the
/// order in which sentence-transformers joins the results of several flags.
const MODES: [(&str, &str, Option<PoolingMode>); 6] = [
    ("cls", "pooling_mode_cls_token", Some(PoolingMode::Cls)),
    ("max", "pooling_mode_max_tokens", Some(PoolingMode::Max)),
    ("mean", "pooling_mode_mean_tokens", Some(PoolingMode::Mean)),
    (
        "mean_sqrt_len_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        Some(PoolingMode::MeanSqrtLength),
    ),
    ("weightedmean", "pooling_mode_weightedmean_tokens", None),
    (
        "lasttoken",
        "pooling_mode_lasttoken",
        Some(PoolingMode::LastToken),
    ),
];

impl Pooling {
    /// Reads the configuration of a pooling module; `hidden_size` is what the
    /// transformer before it gives.
    pub(crate) fn parse(
        config: &Value,
        file: &str,
        hidden_size: usize,
    ) -> Result<Self, ModelError> {
        let declared = ["embedding_dimension", "word_embedding_dimension"]
            .iter()
            .find_map(|key| config.get(key));
        if let Some(declared) = declared
            && declared.as_u64() != Some(hidden_size as u64)
        {
            return Err(damaged(
                file,
                format!(
                    "Its vectors have {declared} components, but config.json says {hidden_size}."
                ),
            ));
        }
        let names: Vec<String> = match config.get("pooling_mode") {
            Some(Value::String(name)) => vec![name.clone()],
            Some(Value::Array(names)) => names
                .iter()
                .map(|name| name.as_str().unwrap_or_default().to_owned())
                .collect(),
            Some(other) => {
                return Err(damaged(file, format!("Its pooling_mode is {other}.")));
            }
            None => MODES
                .iter()
                .filter(|(_, flag, _)| config.get(flag) == Some(&Value::Bool(true)))
                .map(|(name, _, _)| (*name).to_owned())
                .collect(),
        };
        let modes = names
            .iter()
            .map(|name| find(name, file))
            .collect::<Result<Vec<_>, _>>()?;
        // No mode at all is the mean, as in sentence-transformers.
        let modes = if modes.is_empty() {
            vec![PoolingMode::Mean]
        } else {
            modes
        };
        let include_prompt = match config.get("include_prompt") {
            None => true,
            Some(Value::Bool(include)) => *include,
            Some(other) => return Err(damaged(file, format!("Its include_prompt is {other}."))),
        };
        Ok(Self {
            modes,
            include_prompt,
        })
    }

    pub(crate) fn dimensions(&self, hidden_size: usize) -> usize {
        self.modes.len() * hidden_size
    }

    pub(crate) fn modes(&self) -> &[PoolingMode] {
        &self.modes
    }

    /// Pools the vectors of one text: `tokens` is (tokens, width), with at least one.
    pub(crate) fn pool(&self, tokens: &[f32], width: usize) -> Vec<f32> {
        let mut vector = Vec::with_capacity(self.dimensions(width));
        for mode in &self.modes {
            vector.extend(mode.pool(tokens, width));
        }
        vector
    }
}

fn find(name: &str, file: &str) -> Result<PoolingMode, ModelError> {
    MODES
        .iter()
        .find(|(known, _, _)| *known == name)
        .and_then(|(_, _, mode)| *mode)
        .ok_or_else(|| {
            unsupported(file, format!("Its pooling mode is \"{name}\".")).with_hint(
                "Supported modes are cls, max, mean, mean_sqrt_len_tokens and lasttoken.",
            )
        })
}

impl PoolingMode {
    pub(crate) fn pool(self, tokens: &[f32], width: usize) -> Vec<f32> {
        let count = (tokens.len() / width) as f32;
        match self {
            Self::Cls => tokens[..width].to_vec(),
            Self::LastToken => tokens[tokens.len() - width..].to_vec(),
            Self::Max => {
                let mut vector = tokens[..width].to_vec();
                for token in tokens.chunks_exact(width) {
                    for (largest, value) in vector.iter_mut().zip(token) {
                        *largest = largest.max(*value);
                    }
                }
                vector
            }
            Self::Mean => sum_over(tokens, width, count),
            Self::MeanSqrtLength => sum_over(tokens, width, count.sqrt()),
        }
    }
}

fn sum_over(tokens: &[f32], width: usize, divisor: f32) -> Vec<f32> {
    let mut vector = vec![0.0; width];
    for token in tokens.chunks_exact(width) {
        for (sum, value) in vector.iter_mut().zip(token) {
            *sum += value;
        }
    }
    for sum in &mut vector {
        *sum /= divisor;
    }
    vector
}

/// Scales a vector to length 1; a zero vector stays as it is. The least length
/// is that of PyTorch's `normalize`.
pub(crate) fn normalize(vector: &mut [f32]) {
    let squares: f32 = vector.iter().map(|value| value * value).sum();
    let length = squares.sqrt().max(1e-12);
    for value in vector {
        *value /= length;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;

    const TOKENS: [f32; 6] = [1.0, -4.0, 3.0, 2.0, -1.0, -1.0];

    fn pool(config: Value) -> Vec<f32> {
        Pooling::parse(&config, "1_Pooling/config.json", 2)
            .unwrap()
            .pool(&TOKENS, 2)
    }

    #[test]
    fn each_mode_pools() {
        assert_eq!(pool(json!({"pooling_mode": "cls"})), [1.0, -4.0]);
        assert_eq!(pool(json!({"pooling_mode": "max"})), [3.0, 2.0]);
        assert_eq!(pool(json!({"pooling_mode": "mean"})), [1.0, -1.0]);
        assert_eq!(pool(json!({"pooling_mode": "lasttoken"})), [-1.0, -1.0]);
        let root = 3.0_f32.sqrt();
        assert_eq!(
            pool(json!({"pooling_mode": "mean_sqrt_len_tokens"})),
            [3.0 / root, -3.0 / root]
        );
        assert_eq!(pool(json!({})), [1.0, -1.0]);
    }

    #[test]
    fn several_modes_lie_beside_each_other() {
        let flags = json!({
            "word_embedding_dimension": 2,
            "pooling_mode_cls_token": true,
            "pooling_mode_max_tokens": false,
            "pooling_mode_mean_tokens": true,
        });
        assert_eq!(pool(flags), [1.0, -4.0, 1.0, -1.0]);
        assert_eq!(
            pool(json!({"pooling_mode": ["mean", "cls"]})),
            [1.0, -1.0, 1.0, -4.0]
        );
    }

    #[test]
    fn what_is_unknown_or_contradicts_is_an_error() {
        let kind = |config: Value| {
            Pooling::parse(&config, "1_Pooling/config.json", 2)
                .unwrap_err()
                .kind
        };
        let weighted = json!({"pooling_mode_weightedmean_tokens": true});
        assert_eq!(kind(weighted), ErrorKind::NotSupported);
        assert_eq!(
            kind(json!({"pooling_mode": "median"})),
            ErrorKind::NotSupported
        );
        assert_eq!(kind(json!({"pooling_mode": 3})), ErrorKind::ModelInvalid);
        assert_eq!(kind(json!({"include_prompt": 1})), ErrorKind::ModelInvalid);
        let wrong = json!({"word_embedding_dimension": 3});
        assert_eq!(kind(wrong), ErrorKind::ModelInvalid);
    }

    #[test]
    fn normalised_vectors_have_length_one() {
        let mut vector = [3.0, 4.0];
        normalize(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
        let mut zero = [0.0, 0.0];
        normalize(&mut zero);
        assert_eq!(zero, [0.0, 0.0]);
    }
}
