//! Requests to describe pictures.

use std::sync::Arc;

use bytes::Bytes;
use sight_models::{Captioner, GenerationOverrides, ImageLimits};
use sight_protocol::{
    EarlyStopping, ErrorReply, GenerationOptions, Limits, ModelRef, ModelTask, Response,
};

use crate::activity::Ticket;
use crate::engine::DescribeOptions;
use crate::error;
use crate::models::{LoadedModel, on_blocking_thread};
use crate::pipeline::{Cut, Pipeline};
use crate::service::{Answer, Service, check_text};

impl Service {
    pub async fn describe(
        &self,
        ticket: &Arc<Ticket>,
        model: &ModelRef,
        pictures: Vec<Bytes>,
        prompts: Vec<String>,
        options: GenerationOptions,
    ) -> Result<Answer, ErrorReply> {
        check_prompts(&prompts, model.limits)?;
        let loaded = self.models.get(model).await?;
        let LoadedModel::Captioner(captioner) = &*loaded else {
            return Err(error::wrong_task(&model.name, ModelTask::Embed));
        };
        let engine = Arc::clone(&captioner.engine);
        let options =
            on_blocking_thread(move || describe_options(&engine, &prompts, &options)).await?;
        let pipeline = Pipeline {
            model: captioner,
            ticket,
            options: Arc::new(options),
            cut: Cut {
                window: self.models.max_images(),
                piece: 1,
            },
            preparing: &self.preparing,
        };
        let limits = ImageLimits {
            max_bytes: model.limits.max_image_bytes,
            max_pixels: model.limits.max_image_pixels,
        };
        let captions = pipeline
            .run(pictures, move |captioner, picture| {
                captioner
                    .preprocess(picture, &limits)
                    .map_err(error::from_model)
            })
            .await?;
        Ok(Response::Captions(captions).into())
    }
}

fn describe_options(
    captioner: &Captioner,
    prompts: &[String],
    options: &GenerationOptions,
) -> Result<DescribeOptions, ErrorReply> {
    let prompts = if prompts.is_empty() {
        captioner.prompt(None).map(|prompt| vec![prompt])
    } else {
        let prompts = prompts.iter();
        prompts.map(|text| captioner.prompt(Some(text))).collect()
    };
    Ok(DescribeOptions {
        prompts: prompts.map_err(error::from_model)?,
        generation: captioner
            .generation(&overrides(options))
            .map_err(error::from_model)?,
    })
}

fn overrides(options: &GenerationOptions) -> GenerationOverrides {
    GenerationOverrides {
        max_length: options.max_length,
        max_new_tokens: options.max_new_tokens,
        min_length: options.min_length,
        min_new_tokens: options.min_new_tokens,
        num_beams: options.num_beams,
        length_penalty: options.length_penalty,
        early_stopping: options.early_stopping.map(|stopping| match stopping {
            EarlyStopping::Likely => sight_models::EarlyStopping::Likely,
            EarlyStopping::First => sight_models::EarlyStopping::First,
            EarlyStopping::Never => sight_models::EarlyStopping::Never,
        }),
        repetition_penalty: options.repetition_penalty,
        no_repeat_ngram_size: options.no_repeat_ngram_size,
        do_sample: options.do_sample,
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        seed: options.seed,
    }
}

/// Cuts a request's body into its pictures, without a copy.
pub fn cut_pictures(mut body: Bytes, lengths: &[u32]) -> Result<Vec<Bytes>, ErrorReply> {
    let total: u64 = lengths.iter().copied().map(u64::from).sum();
    if total != body.len() as u64 {
        return Err(error::protocol(format!(
            "body of {} bytes does not hold pictures of {total} bytes",
            body.len()
        )));
    }
    let pictures = lengths.iter().map(|length| body.split_to(*length as usize));
    Ok(pictures.collect())
}

fn check_prompts(prompts: &[String], limits: Limits) -> Result<(), ErrorReply> {
    prompts.iter().try_for_each(|text| check_text(text, limits))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sight_protocol::ErrorCode;

    use super::cut_pictures;

    #[test]
    fn pictures_are_slices_of_the_body() {
        let body = Bytes::from_static(b"aaabb");
        let pictures = cut_pictures(body.clone(), &[3, 0, 2]).unwrap();
        assert_eq!(pictures, [&b"aaa"[..], b"", b"bb"]);
        assert_eq!(pictures[2].as_ptr(), body[3..].as_ptr());
        for lengths in [&[3, 1][..], &[3, 3], &[u32::MAX, u32::MAX], &[]] {
            let error = cut_pictures(body.clone(), lengths).unwrap_err();
            assert_eq!(error.code, ErrorCode::Protocol);
        }
    }
}
