//! What a model wants to read before a text: `config_sentence_transformers.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged};
use crate::tokenizer;

const FILE: &str = "config_sentence_transformers.json";
/// Prompts that every model has, as in sentence-transformers, if need be empty.
const QUERY: &str = "query";
const DOCUMENT: &str = "document";
/// Names under which models have the prompt of documents that is not called so,
/// the first winning. (sentence-transformers documents this order, but in
/// version 6 uses no prompt where the model has no `document`.)
const OTHER_DOCUMENT_NAMES: [&str; 2] = ["passage", "corpus"];

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptFile {
    /// A prompt that is null is empty.
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// The prompts of a model.
#[derive(Debug)]
pub(crate) struct Prompts {
    /// What texts get for which nobody chooses; mostly none.
    default: Prompt,
    named: BTreeMap<String, Prompt>,
}

/// What comes before a text.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prompt {
    /// Empty for none.
    pub(crate) text: String,
    /// Tokens that it takes at the beginning, the special one there included.
    pub(crate) tokens: usize,
}

impl Prompts {
    /// Reads the prompts of a model; one without the file has none.
    pub(crate) fn read(
        directory: &ModelDirectory,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ModelError> {
        let PromptFile {
            mut prompts,
            default_prompt_name,
        } = directory.optional_json(FILE)?.unwrap_or_default();
        prompts.entry(QUERY.to_owned()).or_default();
        if !prompts.contains_key(DOCUMENT) {
            let mut others = OTHER_DOCUMENT_NAMES.iter();
            let document = others.find_map(|name| prompts.get(*name).cloned());
            prompts.insert(DOCUMENT.to_owned(), document.flatten());
        }
        let named = prompts
            .into_iter()
            .map(|(name, text)| Ok((name, Prompt::new(text.unwrap_or_default(), tokenizer)?)))
            .collect::<Result<BTreeMap<_, _>, ModelError>>()?;
        let default = match default_prompt_name {
            None => Prompt::default(),
            Some(name) => named.get(&name).cloned().ok_or_else(|| {
                let detail = format!(
                    "Its default_prompt_name is \"{name}\", which its prompts do not have."
                );
                damaged(FILE, detail)
            })?,
        };
        Ok(Self { default, named })
    }

    /// The prompt of this name, or the default.
    ///
    /// Errors: [`ErrorKind::InvalidOption`] where the model has none of this name.
    pub(crate) fn find(&self, name: Option<&str>) -> Result<&Prompt, ModelError> {
        let Some(name) = name else {
            return Ok(&self.default);
        };
        self.named.get(name).ok_or_else(|| {
            let names: Vec<String> = self
                .named
                .keys()
                .map(|name| format!("\"{name}\""))
                .collect();
            ModelError::new(
                ErrorKind::InvalidOption,
                format!("model has no prompt \"{name}\""),
            )
            .with_hint(format!("Its prompts are {}.", names.join(", ")))
        })
    }
}

impl Prompt {
    fn new(text: String, tokenizer: &Tokenizer) -> Result<Self, ModelError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let ids = tokenizer::encode(tokenizer, &text)?;
        let ends_special = ids
            .last()
            .is_some_and(|id| tokenizer::is_special(tokenizer, *id));
        Ok(Self {
            tokens: ids.len() - usize::from(ends_special),
            text,
        })
    }
}
