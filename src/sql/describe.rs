//! `blip_describe` and `blip_describe_batch`.

use pgrx::{Array, pg_sys};
use sight_protocol::{GenerationOptions, ModelRef, ModelTask, Request, Response};

use super::call::{Call, SqlResult, sql_function, varlena_array};
use super::registry;
use crate::error::{SqlError, SqlState};
use crate::server::client;
use crate::text;

sql_function!(sight_describe, pg_finfo_sight_describe, describe);
sql_function!(
    sight_describe_prompts,
    pg_finfo_sight_describe_prompts,
    describe_prompts
);
sql_function!(
    sight_describe_batch,
    pg_finfo_sight_describe_batch,
    describe_batch
);

/// One request carries at most so many bytes of pictures and so many pictures.
const REQUEST_BYTES: usize = 64 << 20;
const REQUEST_IMAGES: usize = 256;

/// `blip_describe(image bytea, prompt text, model text, options jsonb) → text`
fn describe(call: &Call) -> SqlResult {
    let prompts = call.text(1)?.into_iter().collect();
    describe_one(call, prompts)
}

/// `blip_describe(image bytea, prompts text[], model text, options jsonb) → text`
fn describe_prompts(call: &Call) -> SqlResult {
    let prompts = call.texts(1)?.unwrap_or_default();
    let prompts: Option<Vec<String>> = prompts.into_iter().collect();
    match prompts {
        Some(prompts) if !prompts.is_empty() => describe_one(call, prompts),
        Some(_) => Err(SqlError::new(
            SqlState::INVALID_PARAMETER_VALUE,
            "array of prompts must not be empty",
        )
        .hint("Leave the argument out to describe a picture without a prompt.")),
        None => Err(SqlError::new(
            SqlState::NULL_NOT_ALLOWED,
            "array of prompts must not contain nulls",
        )),
    }
}

fn describe_one(call: &Call, prompts: Vec<String>) -> SqlResult {
    let Some(image) = call.argument::<&[u8]>(0) else {
        return Ok(None);
    };
    let options = options(call)?;
    let name = registry::model_name(call.text(2)?, ModelTask::Describe)?;
    let model = registry::find(call.function(), &name)?;
    let mut captions = describe_images(&model, &[image], &prompts, &options)?;
    let caption = captions.pop().ok_or_else(client::unexpected)?;
    Ok(Some(text::to_datum(&caption)))
}

/// Describes one picture with the named model and no prompt.
pub fn describe_image(
    function: pg_sys::Oid,
    model: &str,
    image: &[u8],
) -> Result<String, SqlError> {
    let model = registry::find(function, model)?;
    let mut captions = describe_images(&model, &[image], &[], &GenerationOptions::default())?;
    captions.pop().ok_or_else(client::unexpected)
}

/// `blip_describe_batch(images bytea[], prompt text, model text, options jsonb) → text[]`
fn describe_batch(call: &Call) -> SqlResult {
    let Some(images) = call.argument::<Array<&[u8]>>(0) else {
        return Ok(None);
    };
    let prompts: Vec<String> = call.text(1)?.into_iter().collect();
    let options = options(call)?;
    let name = registry::model_name(call.text(2)?, ModelTask::Describe)?;
    let model = registry::find(call.function(), &name)?;
    let present: Vec<&[u8]> = images.iter().flatten().collect();
    let mut captions = Vec::with_capacity(present.len());
    let mut rest = present.as_slice();
    while !rest.is_empty() {
        let (request, after) = rest.split_at(request_length(rest));
        captions.append(&mut describe_images(&model, request, &prompts, &options)?);
        rest = after;
    }
    let mut captions = captions.into_iter();
    let rows: Vec<Option<pg_sys::Datum>> = images
        .iter()
        .map(|image| {
            let caption = image.and_then(|_| captions.next());
            caption.map(|caption| text::to_datum(&caption))
        })
        .collect();
    // SAFETY: the values are texts.
    Ok(Some(unsafe { varlena_array(&rows, pg_sys::TEXTOID) }))
}

/// How many of the pictures fit into one request; at least one.
fn request_length(images: &[&[u8]]) -> usize {
    let mut bytes = 0;
    let fitting = images.iter().take(REQUEST_IMAGES).take_while(|image| {
        bytes += image.len();
        bytes <= REQUEST_BYTES
    });
    fitting.count().max(1)
}

fn options(call: &Call) -> Result<GenerationOptions, SqlError> {
    match call.json(3)? {
        Some(value) => Ok(GenerationOptions::from_json(&value)?),
        None => Ok(GenerationOptions::default()),
    }
}

/// The seed of samples for which nobody gives one: another for each statement, but
/// the same throughout, in parallel workers too, as a STABLE function must be.
fn statement_seed() -> u64 {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() as u64 }
}

fn describe_images(
    model: &ModelRef,
    images: &[&[u8]],
    prompts: &[String],
    options: &GenerationOptions,
) -> Result<Vec<String>, SqlError> {
    let limit = model.limits.max_image_bytes;
    if let Some(image) = images.iter().find(|image| image.len() as u64 > limit) {
        return Err(
            SqlError::new(SqlState::IMAGE_TOO_LARGE, "image is too large")
                .detail(format!(
                    "It has {} bytes, the limit is {limit} bytes.",
                    image.len()
                ))
                .hint("The limit is the setting pg_sight.max_image_size."),
        );
    }
    let request = Request::Describe {
        model: model.clone(),
        image_bytes: images.iter().map(|image| image.len() as u32).collect(),
        prompts: prompts.to_vec(),
        options: GenerationOptions {
            seed: options.seed.or_else(|| Some(statement_seed())),
            ..options.clone()
        },
    };
    match client::request(&request, images)?.0 {
        Response::Captions(captions) if captions.len() == images.len() => Ok(captions),
        _ => Err(client::unexpected()),
    }
}
