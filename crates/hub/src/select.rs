//! Which files of a repository a model needs: its configuration, its tokenizer
//! and its weights, once, in the format that is read first.

use std::collections::BTreeMap;

use crate::error::{HubError, HubErrorKind};

/// Files besides the weights, in the folder of a model or of a module of it.
const SMALL_FILES: [&str; 19] = [
    "added_tokens.json",
    "bpe.codes",
    "chat_template.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Weights, the preferred format first: whole, or an index and its shards.
const FORMATS: [Format; 2] = [
    Format {
        whole: "model.safetensors",
        index: "model.safetensors.index.json",
        shard: ("model-", ".safetensors"),
    },
    Format {
        whole: "pytorch_model.bin",
        index: "pytorch_model.bin.index.json",
        shard: ("pytorch_model-", ".bin"),
    },
];

struct Format {
    whole: &'static str,
    index: &'static str,
    /// How the name of a shard begins and ends; between them is `00001-of-00002`.
    shard: (&'static str, &'static str),
}

impl Format {
    fn is_shard(&self, name: &str) -> bool {
        let (start, end) = self.shard;
        name.strip_prefix(start)
            .and_then(|rest| rest.strip_suffix(end))
            .and_then(|numbers| numbers.split_once("-of-"))
            .is_some_and(|(number, count)| is_number(number) && is_number(count))
    }

    /// The files of this format among those of a folder; none without a whole
    /// set of them.
    fn find<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let named = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
        if let Some(whole) = named(self.whole) {
            return vec![whole];
        }
        let Some(index) = named(self.index) else {
            return Vec::new();
        };
        let shards = names.iter().copied().filter(|name| self.is_shard(name));
        std::iter::once(index).chain(shards).collect()
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The second tokenizer of InstructBLIP.
const QUESTION_TOKENIZER: &str = "qformer_tokenizer";

/// A folder of a sentence-transformers module: `1_Pooling`, `2_Dense`.
fn is_module(folder: &str) -> bool {
    folder.split_once('_').is_some_and(|(number, name)| {
        is_number(number)
            && !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// The paths of the files that a model needs among all of a repository, sorted.
/// None of them leaves the repository's folder, whatever the listing says.
///
/// # Errors
/// They are not those of a model: no configuration or no weights.
pub(crate) fn needed<'a>(
    repository: &str,
    paths: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<String>, HubError> {
    let mut folders: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for path in paths {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if folder.is_empty() || folder == QUESTION_TOKENIZER || is_module(folder) {
            folders.entry(folder).or_default().push(name);
        }
    }
    let mut needed = Vec::new();
    let mut has_config = false;
    let mut has_weights = false;
    for (folder, names) in &folders {
        let weights = FORMATS
            .iter()
            .map(|format| format.find(names))
            .find(|found| !found.is_empty())
            .unwrap_or_default();
        has_weights |= !weights.is_empty();
        has_config |= names.contains(&"config.json");
        let small = names.iter().filter(|name| is_small_file(name));
        for name in small.chain(&weights) {
            needed.push(match *folder {
                "" => (*name).to_owned(),
                folder => format!("{folder}/{name}"),
            });
        }
    }
    needed.sort();
    needed.dedup();
    if has_config && has_weights {
        return Ok(needed);
    }
    let lacks = if has_config {
        "weights (model.safetensors or pytorch_model.bin)"
    } else {
        "config.json"
    };
    Err(HubError::new(
        HubErrorKind::Download,
        format!("repository \"{repository}\" holds no model that can be used"),
    )
    .detail(format!("It has no {lacks}."))
    .hint("Models in Hugging Face's or sentence-transformers' layout can be used; the README lists some."))
}

/// Some encoders name their sentence-transformers file after themselves:
/// `sentence_roberta_config.json`.
fn is_small_file(name: &str) -> bool {
    SMALL_FILES.contains(&name)
        || name
            .strip_prefix("sentence_")
            .and_then(|rest| rest.strip_suffix("_config.json"))
            .is_some_and(|family| {
                let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
                !family.is_empty() && family.bytes().all(is_word)
            })
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn a_sentence_transformers_model_without_the_rest() {
        let needed = needed(
            "x/y",
            [
                ".gitattributes",
                "README.md",
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors",
                "2_Dense/pytorch_model.bin",
                "config.json",
                "flax_model.msgpack",
                "model.fp16.safetensors",
                "model.safetensors",
                "modules.json",
                "onnx/config.json",
                "onnx/model.onnx",
                "openvino/openvino_model.bin",
                "pytorch_model.bin",
                "rust_model.ot",
                "sentence_bert_config.json",
                "tf_model.h5",
                "tokenizer.json",
                "vocab.txt",
            ],
        );
        assert_eq!(
            needed.unwrap(),
            [
                "1_Pooling/config.json",
                "2_Dense/config.json",
                "2_Dense/model.safetensors",
                "config.json",
                "model.safetensors",
                "modules.json",
                "sentence_bert_config.json",
                "tokenizer.json",
                "vocab.txt",
            ]
        );
    }

    #[test]
    fn the_second_tokenizer_of_instructblip_comes_with_it() {
        let needed = needed(
            "x/y",
            [
                "config.json",
                "model.safetensors",
                "qformer_tokenizer/README.md",
                "qformer_tokenizer/tokenizer.json",
                "qformer_tokenizer/tokenizer_config.json",
                "qformer_tokenizer/old/tokenizer.json",
                "tokenizer.json",
            ],
        );
        assert_eq!(
            needed.unwrap(),
            [
                "config.json",
                "model.safetensors",
                "qformer_tokenizer/tokenizer.json",
                "qformer_tokenizer/tokenizer_config.json",
                "tokenizer.json",
            ]
        );
    }

    #[test]
    fn weights_come_in_the_first_format_that_is_whole() {
        let weights = |paths: &[&'static str]| {
            let paths = paths.iter().copied().chain(["config.json"]);
            let needed = needed("x/y", paths).unwrap_or_default();
            needed
                .into_iter()
                .filter(|path| path != "config.json")
                .collect::<Vec<_>>()
        };
        assert_eq!(
            weights(&[
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model-x-of-y.safetensors",
                "model.safetensors.index.json",
                "pytorch_model.bin",
            ]),
            [
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
                "model.safetensors.index.json",
            ]
        );
        // Shards without an index cannot be read.
        assert_eq!(
            weights(&["model-00001-of-00002.safetensors", "pytorch_model.bin"]),
            ["pytorch_model.bin"]
        );
        assert_eq!(weights(&["tf_model.h5"]), Vec::<String>::new());
    }

    #[test]
    fn no_path_leaves_the_repository() {
        let needed = needed(
            "x/y",
            [
                "../config.json",
                "/config.json",
                "config.json",
                "1_../config.json",
                "1_a/../config.json",
                "model.safetensors",
                "sentence_../x_config.json",
            ],
        );
        // "/config.json" is the root's, which is where it is put.
        assert_eq!(needed.unwrap(), ["config.json", "model.safetensors"]);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        assert!(needed("x/y", ["model.safetensors"]).is_err());
        assert!(needed("x/y", ["config.json", "model.gguf"]).is_err());
        assert!(needed("x/y", []).is_err());
    }
}
