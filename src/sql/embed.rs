//! `embed` and `embed_batch`.

use std::cell::RefCell;

use bytes::Bytes;
use pgrx::pg_sys;
use sight_protocol::{ModelRef, ModelTask, Request, Response, parse_embeddings};

use super::call::{Call, SqlResult, sql_function};
use super::{registry, vector};
use crate::error::{SqlError, SqlState};
use crate::gucs;
use crate::server::client;
use crate::text;

sql_function!(sight_embed, pg_finfo_sight_embed, embed);
sql_function!(sight_embed_batch, pg_finfo_sight_embed_batch, embed_batch);

/// One request carries at most so many bytes of text and so many texts.
const REQUEST_BYTES: usize = 16 << 20;
const REQUEST_TEXTS: usize = 8192;
/// The prompt of texts that are searched, which every model has.
const DOCUMENT_PROMPT: &str = "document";

/// The last embedding of one place of a query: a sequential scan evaluates
/// `ORDER BY desc_vec <#> embed('...')` for every row.
#[derive(Default)]
struct CallSite {
    last: Option<Answer>,
}

struct Answer {
    /// Name of the model, and which one that was.
    name: String,
    directory: String,
    /// What `directory` was looked up in.
    registered: registry::Version,
    prompt_name: Option<String>,
    text: String,
    embedding: Vec<f32>,
}

/// Which model embeds, with which of its prompts before each text.
struct Embedder {
    model: ModelRef,
    prompt_name: Option<String>,
}

/// The prompt a call uses: the one it names, or the setting's, if there is one.
fn prompt_name(named: Option<String>) -> Result<Option<String>, SqlError> {
    if named.is_some() {
        return Ok(named);
    }
    let setting = gucs::PROMPT_NAME.get().unwrap_or_default();
    let name = text::from_server(setting.as_bytes())?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

/// `embed(text, model text DEFAULT NULL, prompt_name text DEFAULT NULL) → vector`
fn embed(call: &Call) -> SqlResult {
    let Some(text) = call.text(0)? else {
        return Ok(None);
    };
    let name = registry::model_name(call.text(1)?, ModelTask::Embed)?;
    let prompt_name = prompt_name(call.text(2)?)?;
    let registered = registry::version();
    let mut site = call.site::<RefCell<CallSite>>().borrow_mut();
    let same =
        |last: &Answer| last.name == name && last.text == text && last.prompt_name == prompt_name;
    if let Some(last) = site.last.as_ref().filter(|last| same(last))
        && last.registered == registered
    {
        return vector::to_datum(&last.embedding).map(Some);
    }
    let model = registry::find(call.function(), &name)?;
    let last = site.last.take().filter(same);
    let embedding = match last.filter(|last| last.directory == model.directory) {
        Some(last) => last.embedding,
        None => {
            let embedder = Embedder {
                model: model.clone(),
                prompt_name: prompt_name.clone(),
            };
            embed_one(&embedder, &text)?
        }
    };
    let datum = vector::to_datum(&embedding)?;
    site.last = Some(Answer {
        name,
        directory: model.directory,
        registered,
        prompt_name,
        text,
        embedding,
    });
    Ok(Some(datum))
}

/// Embeds one text that is to be found, with the named model.
pub fn embed_document(
    function: pg_sys::Oid,
    model: &str,
    text: &str,
) -> Result<Vec<f32>, SqlError> {
    let embedder = Embedder {
        model: registry::find(function, model)?,
        prompt_name: Some(DOCUMENT_PROMPT.to_owned()),
    };
    embed_one(&embedder, text)
}

fn embed_one(embedder: &Embedder, text: &str) -> Result<Vec<f32>, SqlError> {
    let mut embeddings = embed_texts(embedder, vec![text.to_owned()])?;
    embeddings.pop().ok_or_else(client::unexpected)
}

/// `embed_batch(texts text[], model text DEFAULT NULL, prompt_name text DEFAULT NULL) →
/// vector[]`
fn embed_batch(call: &Call) -> SqlResult {
    let Some(texts) = call.texts(0)? else {
        return Ok(None);
    };
    let model = registry::model_name(call.text(1)?, ModelTask::Embed)?;
    let embedder = Embedder {
        model: registry::find(call.function(), &model)?,
        prompt_name: prompt_name(call.text(2)?)?,
    };
    let present: Vec<bool> = texts.iter().map(Option::is_some).collect();
    let mut embeddings = Vec::with_capacity(texts.len());
    for request in requests(texts.into_iter().flatten()) {
        embeddings.append(&mut embed_texts(&embedder, request)?);
    }
    let mut embeddings = embeddings.iter();
    let rows: Vec<Option<&[f32]>> = present
        .iter()
        .map(|present| {
            present
                .then(|| embeddings.next().map(Vec::as_slice))
                .flatten()
        })
        .collect();
    // SAFETY: catalogue look-ups by the identity of the running function.
    let element = unsafe { pg_sys::get_element_type(pg_sys::get_func_rettype(call.function())) };
    vector::to_array_datum(&rows, element).map(Some)
}

/// Cuts the texts into requests of bounded size.
fn requests(texts: impl Iterator<Item = String>) -> Vec<Vec<String>> {
    let mut requests = Vec::new();
    let mut request = Vec::new();
    let mut bytes = 0;
    for text in texts {
        if !request.is_empty()
            && (bytes + text.len() > REQUEST_BYTES || request.len() == REQUEST_TEXTS)
        {
            requests.push(std::mem::take(&mut request));
            bytes = 0;
        }
        bytes += text.len();
        request.push(text);
    }
    if !request.is_empty() {
        requests.push(request);
    }
    requests
}

fn embed_texts(embedder: &Embedder, texts: Vec<String>) -> Result<Vec<Vec<f32>>, SqlError> {
    // Checked here too, so that a text over the limit is not sent at all.
    if let Some(text) = texts
        .iter()
        .find(|text| text.len() as u64 > embedder.model.limits.max_text_bytes)
    {
        return Err(
            SqlError::new(SqlState::TEXT_TOO_LARGE, "text is too large to embed")
                .detail(format!(
                    "It has {} bytes, the limit is {} bytes.",
                    text.len(),
                    gucs::limits().max_text_bytes
                ))
                .hint("The limit is the setting pg_sight.max_text_size."),
        );
    }
    let count = texts.len();
    let request = Request::Embed {
        model: embedder.model.clone(),
        texts,
        prompt_name: embedder.prompt_name.clone(),
    };
    let (response, body): (Response, Bytes) = client::request(&request, &[])?;
    let Response::Embeddings(batch) = response else {
        return Err(client::unexpected());
    };
    let embeddings = parse_embeddings(batch, &body)?;
    if embeddings.len() == count {
        Ok(embeddings)
    } else {
        Err(client::unexpected())
    }
}
