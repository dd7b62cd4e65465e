//! Loading of `tokenizer.json` with the settings of `tokenizer_config.json`.

use serde::Deserialize;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NormalizerWrapper, Sequence};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

use crate::error::{ErrorKind, ModelError};
use crate::files::{ModelDirectory, damaged};

const TOKENIZER_FILE: &str = "tokenizer.json";
const CONFIG_FILE: &str = "tokenizer_config.json";

/// What is used of `tokenizer_config.json`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct TokenizerConfig {
    do_lower_case: Option<bool>,
    strip_accents: Option<bool>,
    tokenize_chinese_chars: Option<bool>,
    /// A float where transformers wrote "no limit" as 1e30.
    model_max_length: Option<f64>,
    pub(crate) clean_up_tokenization_spaces: Option<bool>,
}

/// What of `tokenizer_config.json` says which tokens are put around a text.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Surroundings {
    add_bos_token: Option<bool>,
    add_eos_token: Option<bool>,
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
}

/// A token by its text, or with its properties, as transformers 4 writes it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Added { content: String },
}

impl SpecialToken {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

impl TokenizerConfig {
    /// The longest input in tokens, where one is set.
    pub(crate) fn max_tokens(&self) -> Option<usize> {
        self.model_max_length
            .filter(|length| *length >= 1.0 && *length < 1e9)
            .map(|length| length as usize)
    }
}

/// Reads the tokenizer without its stored padding and truncation: both are for
/// the caller to decide. The options of `tokenizer_config.json` win over the
/// normaliser stored in `tokenizer.json`, as they do in transformers.
pub(crate) fn load(directory: &ModelDirectory) -> Result<(Tokenizer, TokenizerConfig), ModelError> {
    load_from(directory, "")
}

/// The same for a tokenizer in a folder of the model; it ends with a slash.
pub(crate) fn load_from(
    directory: &ModelDirectory,
    folder: &str,
) -> Result<(Tokenizer, TokenizerConfig), ModelError> {
    let file = format!("{folder}{TOKENIZER_FILE}");
    let bytes = directory.read(&file)?;
    let mut tokenizer = Tokenizer::from_bytes(&bytes)
        .map_err(|error| damaged(&file, format!("It cannot be read: {error}.")))?;
    let config: TokenizerConfig = directory
        .optional_json(&format!("{folder}{CONFIG_FILE}"))?
        .unwrap_or_default();
    tokenizer.with_padding(None);
    tokenizer
        .with_truncation(None)
        .map_err(|error| failed(&error.to_string()))?;
    if let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() {
        let normalizer = BertNormalizer::new(
            normalizer.clean_text,
            config
                .tokenize_chinese_chars
                .unwrap_or(normalizer.handle_chinese_chars),
            config.strip_accents.or(normalizer.strip_accents),
            config.do_lower_case.unwrap_or(normalizer.lowercase),
        );
        tokenizer
            .with_normalizer(Some(normalizer))
            .map_err(|error| failed(&error.to_string()))?;
    }
    Ok((tokenizer, config))
}

/// Puts the tokens around a text that `tokenizer_config.json` asks for, where it has
/// add_bos_token or add_eos_token: as in transformers they win over those that are
/// stored in `tokenizer.json`, and where only one of the two is set the other is off.
/// (That is of transformers 5. In 4 the tokenizer of Llama put the first token there
/// unless add_bos_token was false.)
pub(crate) fn set_begin_and_end(
    directory: &ModelDirectory,
    tokenizer: &mut Tokenizer,
) -> Result<(), ModelError> {
    let config: Surroundings = directory.optional_json(CONFIG_FILE)?.unwrap_or_default();
    if config.add_bos_token.is_none() && config.add_eos_token.is_none() {
        return Ok(());
    }
    // Where there is no such token there is nothing to add, as in transformers.
    type Found = Result<Option<(String, u32)>, ModelError>;
    let find = |wanted: Option<bool>, token: Option<SpecialToken>| -> Found {
        let Some(text) = token
            .filter(|_| wanted == Some(true))
            .map(SpecialToken::text)
        else {
            return Ok(None);
        };
        let id = tokenizer.token_to_id(&text).ok_or_else(|| {
            let detail = format!("Its token \"{text}\" is not in {TOKENIZER_FILE}.");
            damaged(CONFIG_FILE, detail)
        })?;
        Ok(Some((text, id)))
    };
    let begin = find(config.add_bos_token, config.bos_token)?;
    let end = find(config.add_eos_token, config.eos_token)?;
    let piece = |token: &Option<(String, u32)>| token.as_ref().map(|(text, _)| format!("{text}:0"));
    let template: Vec<String> = piece(&begin)
        .into_iter()
        .chain(["$A:0".to_owned()])
        .chain(piece(&end))
        .collect();
    let tokens: Vec<(String, u32)> = begin.into_iter().chain(end).collect();
    let template = TemplateProcessing::builder()
        .try_single(template)
        .map_err(|error| damaged(CONFIG_FILE, format!("Its tokens cannot be used: {error}.")))?
        .special_tokens(tokens)
        .build()
        .map_err(|error| failed(&error.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

/// Lower-cases all text first, unless the tokenizer does so already.
pub(crate) fn lower_case(tokenizer: &mut Tokenizer) -> Result<(), ModelError> {
    let mut normalizers: Vec<NormalizerWrapper> = vec![Lowercase.into()];
    match tokenizer.get_normalizer() {
        Some(NormalizerWrapper::BertNormalizer(normalizer)) if normalizer.lowercase => {
            return Ok(());
        }
        Some(NormalizerWrapper::Lowercase(_)) => return Ok(()),
        Some(normalizer) => normalizers.push(normalizer.clone()),
        None => {}
    }
    tokenizer
        .with_normalizer(Some(Sequence::new(normalizers)))
        .map_err(|error| failed(&error.to_string()))?;
    Ok(())
}

/// Cuts every input after `max_tokens` tokens, the special ones included.
pub(crate) fn truncate(tokenizer: &mut Tokenizer, max_tokens: usize) -> Result<(), ModelError> {
    let special = tokenizer
        .get_post_processor()
        .map_or(0, |processor| processor.added_tokens(false));
    if max_tokens <= special {
        return Err(damaged(
            TOKENIZER_FILE,
            format!("{special} special tokens leave no room in {max_tokens} tokens of input."),
        ));
    }
    tokenizer
        .with_truncation(Some(TruncationParams {
            max_length: max_tokens,
            ..TruncationParams::default()
        }))
        .map_err(|error| failed(&error.to_string()))?;
    Ok(())
}

/// Token ids of a text, with the special tokens.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, ModelError> {
    let encoding = tokenizer
        .encode_fast(text, true)
        .map_err(|error| failed(&error.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// Whether a token is none of the text's own, such as the one that ends it.
pub(crate) fn is_special(tokenizer: &Tokenizer, id: u32) -> bool {
    let added = tokenizer.get_added_tokens_decoder();
    added.get(&id).is_some_and(|token| token.special)
}

/// The text of token ids without the special tokens, as `decode` of
/// transformers gives it.
pub(crate) fn decode(
    tokenizer: &Tokenizer,
    clean_up_spaces: bool,
    ids: &[u32],
) -> Result<String, ModelError> {
    let text = tokenizer
        .decode(ids, true)
        .map_err(|error| failed(&error.to_string()))?;
    Ok(if clean_up_spaces {
        clean_up(&text)
    } else {
        text
    })
}

/// Closes the spaces that word pieces leave before punctuation, in the order of
/// `clean_up_tokenization` of transformers.
fn clean_up(text: &str) -> String {
    const REPLACEMENTS: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    REPLACEMENTS
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn failed(reason: &str) -> ModelError {
    ModelError::new(ErrorKind::Internal, "text cannot be tokenized")
        .with_detail(format!("The tokenizer says: {reason}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_before_punctuation_are_closed() {
        assert_eq!(clean_up("a cat , a dog ."), "a cat, a dog.");
        assert_eq!(clean_up("it is n't the dog 's"), "it isn't the dog's");
        assert_eq!(clean_up("t - shirt"), "t - shirt");
    }

    #[test]
    fn no_limit_is_no_limit() {
        let config = |json: &str| serde_json::from_str::<TokenizerConfig>(json).unwrap();
        let none = config(r#"{"model_max_length": 1000000000000000019884624838656}"#);
        assert_eq!(none.max_tokens(), None);
        assert_eq!(
            config(r#"{"model_max_length": 512}"#).max_tokens(),
            Some(512)
        );
        assert_eq!(config("{}").max_tokens(), None);
    }
}
