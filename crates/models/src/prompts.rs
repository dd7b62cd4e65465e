//! What a model wants to read before a text: `config_sentence_transformers.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged};
use crate::tokenizer;

const FILE: &str = "config_sentence_transformers.json";
/// Names under which models have the prompt of documents, the first winning.
const DOCUMENT_NAMES: [&str; 3] = ["document", "passage", "corpus"];

/// What a text is for: some models want to be told, by a prompt before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PromptKind {
    /// The prompt that the model names as its default; mostly none.
    #[default]
    Default,
    /// A text to search with: the model's prompt `query`, or none.
    Query,
    /// A text to be found: the model's prompt `document`, else `passage`, else
    /// `corpus`, or none. (sentence-transformers documents this order, but in
    /// version 6 uses no prompt where the model has no `document`.)
    Document,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PromptFile {
    /// A prompt that is null is empty.
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

/// The prompt for each kind.
#[derive(Debug)]
pub(crate) struct Prompts {
    default: Prompt,
    query: Prompt,
    document: Prompt,
}

/// What comes before a text.
#[derive(Debug, Default)]
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
        let file: PromptFile = directory.optional_json(FILE)?.unwrap_or_default();
        let named = |name: &str| file.prompts.get(name).cloned();
        let query = named("query");
        let document = DOCUMENT_NAMES.iter().find_map(|name| named(name));
        let default = match file.default_prompt_name.as_deref() {
            None => None,
            // sentence-transformers always has these two, if need be empty.
            Some(name @ ("query" | "document")) => named(name),
            Some(name) => Some(named(name).ok_or_else(|| {
                damaged(
                    FILE,
                    format!(
                        "Its default_prompt_name is \"{name}\", which its prompts do not have."
                    ),
                )
            })?),
        };
        let prompt = |text: Option<Option<String>>| {
            Prompt::new(text.flatten().unwrap_or_default(), tokenizer)
        };
        Ok(Self {
            default: prompt(default)?,
            query: prompt(query)?,
            document: prompt(document)?,
        })
    }

    pub(crate) fn of(&self, kind: PromptKind) -> &Prompt {
        match kind {
            PromptKind::Default => &self.default,
            PromptKind::Query => &self.query,
            PromptKind::Document => &self.document,
        }
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
