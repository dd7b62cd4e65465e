//! Answers requests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sight_models::{
    Captioner, GenerationOverrides, ImageLimits, Model, ModelSummary, Placement, TextEncoder,
};
use sight_protocol::{
    Architecture, EarlyStopping, EmbeddingBatch, ErrorReply, Frame, GenerationOptions, Limits,
    MAX_FRAME_BYTES, ModelInfo, ModelRef, ModelTask, Request, Response, ServerConfig,
    embeddings_body,
};
use tokio::sync::Semaphore;

use crate::activity::{Activity, CancelOnDrop, Ticket};
use crate::config::batch_bounds;
use crate::engine::DescribeOptions;
use crate::error;
use crate::log;
use crate::model_thread::ModelHandle;
use crate::pipeline::{Cut, Pipeline};
use crate::pulls::Pulls;
use crate::registry::Registry;
use crate::status;

/// Texts of one request that are tokenized and queued together.
const TEXT_WINDOW: usize = 1024;
/// Texts that one blocking thread tokenizes at a time.
const TEXT_PIECE: usize = 64;
/// Part of an answer's frame that is left for everything but vectors.
const FRAME_MARGIN_BYTES: usize = 1024;

/// A model that is ready.
pub enum LoadedModel {
    Encoder(ModelHandle<TextEncoder>),
    Captioner(ModelHandle<Captioner>),
}

impl LoadedModel {
    fn refuse(&self, error: ErrorReply) {
        match self {
            Self::Encoder(model) => model.queue.refuse(error),
            Self::Captioner(model) => model.queue.refuse(error),
        }
    }
}

/// A response and the parts of its frame's body.
pub struct Answer {
    pub response: Response,
    pub body: Vec<u8>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self {
            response,
            body: Vec::new(),
        }
    }
}

impl From<ErrorReply> for Answer {
    fn from(error: ErrorReply) -> Self {
        Response::Error(error).into()
    }
}

pub struct Service {
    pub config: ServerConfig,
    pub threads: usize,
    pub place: Placement,
    pub activity: Arc<Activity>,
    pub models: Arc<Registry<LoadedModel>>,
    pulls: Pulls,
    /// Bounds of a batch.
    max_tokens: usize,
    max_images: usize,
    preparing: Arc<Semaphore>,
}

impl Service {
    /// `threads` bounds the threads that prepare inputs.
    pub fn new(config: ServerConfig, threads: usize, place: Placement) -> Self {
        let max_waiting = config.max_queued_requests as usize;
        let (max_tokens, max_images) = batch_bounds(&config, place.device.is_cpu());
        Self {
            max_tokens,
            max_images,
            config,
            threads,
            place,
            activity: Arc::new(Activity::new(max_waiting)),
            models: Arc::new(Registry::new()),
            pulls: Pulls::default(),
            preparing: Arc::new(Semaphore::new(threads)),
        }
    }

    /// Refuses what waits and what comes from now on; what the device is
    /// computing goes on.
    pub fn begin_shutdown(&self) {
        self.activity.begin_shutdown();
        for (_, model) in self.models.loaded() {
            model.refuse(error::shutting_down());
        }
    }

    /// Answers one request. Dropping the future abandons the request.
    pub async fn answer(&self, request: Request, body: Bytes) -> Answer {
        let result = match request {
            // Neither work nor refused at the end.
            Request::Status | Request::Pulls => {
                self.dispatch(&self.activity.pass(), request, body).await
            }
            _ => self.work_on(request, body).await,
        };
        result.unwrap_or_else(|error| {
            self.activity.count_failure();
            error.into()
        })
    }

    async fn work_on(&self, request: Request, body: Bytes) -> Result<Answer, ErrorReply> {
        let ticket = match &request {
            Request::Embed { .. } | Request::Describe { .. } => self.activity.admit(),
            Request::Status
            | Request::Pulls
            | Request::Pull(_)
            | Request::Inspect { .. }
            | Request::Load { .. }
            | Request::Unload { .. } => Ok(self.activity.pass()),
        };
        // In this order the status never shows a request that neither waits
        // nor has been begun with.
        self.activity.count_request();
        let ticket = ticket?;
        let _cancel = CancelOnDrop(Arc::clone(&ticket));

        let work = self.dispatch(&ticket, request, body);
        tokio::pin!(work);
        tokio::select! {
            biased;
            () = self.activity.shutdown_begun() => {}
            result = &mut work => return result,
        }
        if ticket.has_started() {
            work.await
        } else {
            Err(error::shutting_down())
        }
    }

    async fn dispatch(
        &self,
        ticket: &Arc<Ticket>,
        request: Request,
        body: Bytes,
    ) -> Result<Answer, ErrorReply> {
        match request {
            Request::Status => Ok(Response::Status(status::of(self)).into()),
            Request::Pulls => Ok(Response::Pulls(self.pulls.progress()).into()),
            Request::Pull(request) => {
                let pulled = self.pulls.run(request).await?;
                Ok(Response::Pulled(pulled).into())
            }
            Request::Inspect { model } => inspect(model).await,
            Request::Load { model } => self.load_ahead(&model).await,
            Request::Unload { model } => {
                self.models.remove(&model.directory);
                Ok(Response::Done.into())
            }
            Request::Embed {
                model,
                texts,
                prompt_name,
            } => self.embed(ticket, &model, texts, prompt_name).await,
            Request::Describe {
                model,
                image_bytes,
                prompts,
                options,
            } => {
                let pictures = cut_pictures(body, &image_bytes)?;
                self.describe(ticket, &model, pictures, prompts, options)
                    .await
            }
        }
    }

    async fn load_ahead(&self, model: &ModelRef) -> Result<Answer, ErrorReply> {
        self.loaded(model).await?;
        Ok(Response::Done.into())
    }

    /// The model, loaded from its files as they are now.
    async fn loaded(&self, model: &ModelRef) -> Result<Arc<LoadedModel>, ErrorReply> {
        let directory = PathBuf::from(&model.directory);
        let revision = on_blocking_thread(move || {
            sight_models::revision(&directory).map_err(error::from_model)
        })
        .await?;
        let place = self.place.clone();
        let (max_tokens, max_images) = (self.max_tokens, self.max_images);
        let (name, directory) = (model.name.clone(), model.directory.clone());
        let load = move || {
            log::info(format_args!(
                "loading model \"{name}\" from \"{directory}\""
            ));
            let loaded =
                sight_models::load(Path::new(&directory), &place).map_err(error::from_model)?;
            match loaded {
                Model::Encoder(model) => {
                    ModelHandle::start(model, max_tokens).map(LoadedModel::Encoder)
                }
                Model::Captioner(model) => {
                    ModelHandle::start(model, max_images).map(LoadedModel::Captioner)
                }
            }
            .map_err(|cause| error::internal(format!("could not start a model thread: {cause}")))
        };
        self.models.get(&model.directory, revision, load).await
    }

    async fn embed(
        &self,
        ticket: &Arc<Ticket>,
        model: &ModelRef,
        texts: Vec<String>,
        prompt_name: Option<String>,
    ) -> Result<Answer, ErrorReply> {
        check_texts(&texts, model.limits)?;
        let loaded = self.loaded(model).await?;
        let LoadedModel::Encoder(encoder) = &*loaded else {
            return Err(error::wrong_task(&model.name, ModelTask::Describe));
        };
        let rows = texts.len();
        let dimensions = encoder.engine.dimensions();
        check_answer_size(rows, dimensions)?;
        let pipeline = Pipeline {
            model: encoder,
            ticket,
            options: Arc::new(()),
            cut: Cut {
                window: TEXT_WINDOW,
                piece: TEXT_PIECE,
            },
            preparing: &self.preparing,
        };
        let vectors = pipeline
            .run(texts, move |encoder, text| {
                let tokens = encoder.tokenize(text, prompt_name.as_deref());
                tokens.map_err(error::from_model)
            })
            .await?;
        let batch = EmbeddingBatch {
            rows: as_u32(rows),
            dimensions: as_u32(dimensions),
        };
        Ok(Answer {
            response: Response::Embeddings(batch),
            body: embeddings_body(&vectors.concat()),
        })
    }

    async fn describe(
        &self,
        ticket: &Arc<Ticket>,
        model: &ModelRef,
        pictures: Vec<Bytes>,
        prompts: Vec<String>,
        options: GenerationOptions,
    ) -> Result<Answer, ErrorReply> {
        check_prompts(&prompts, model.limits)?;
        let loaded = self.loaded(model).await?;
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
                window: self.max_images,
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

/// Runs `work`, which reads files or computes, where it may block.
async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorReply> + Send + 'static,
) -> Result<T, ErrorReply> {
    tokio::task::spawn_blocking(move || error::guard(work))
        .await
        .unwrap_or_else(|_| Err(error::shutting_down()))
}

async fn inspect(model: ModelRef) -> Result<Answer, ErrorReply> {
    let summary = on_blocking_thread(move || {
        sight_models::inspect(Path::new(&model.directory)).map_err(error::from_model)
    })
    .await?;
    Ok(Response::Model(model_info(summary)).into())
}

pub fn model_info(summary: ModelSummary) -> ModelInfo {
    ModelInfo {
        task: match summary.task {
            sight_models::Task::Embed => ModelTask::Embed,
            sight_models::Task::Describe => ModelTask::Describe,
        },
        architecture: match summary.architecture {
            sight_models::Architecture::Bert => Architecture::Bert,
            sight_models::Architecture::Blip => Architecture::Blip,
            sight_models::Architecture::DistilBert => Architecture::DistilBert,
            sight_models::Architecture::MpNet => Architecture::MpNet,
            sight_models::Architecture::Roberta => Architecture::Roberta,
            sight_models::Architecture::XlmRoberta => Architecture::XlmRoberta,
        },
        dimensions: summary.dimensions.map(as_u32),
        parameters: summary.parameters,
        revision: summary.revision,
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
fn cut_pictures(mut body: Bytes, lengths: &[u32]) -> Result<Vec<Bytes>, ErrorReply> {
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

fn check_texts(texts: &[String], limits: Limits) -> Result<(), ErrorReply> {
    for (item, text) in texts.iter().enumerate() {
        check_text(text, limits).map_err(|error| error::at_item(error, item))?;
    }
    Ok(())
}

fn check_prompts(prompts: &[String], limits: Limits) -> Result<(), ErrorReply> {
    prompts.iter().try_for_each(|text| check_text(text, limits))
}

fn check_text(text: &str, limits: Limits) -> Result<(), ErrorReply> {
    if text.len() as u64 > limits.max_text_bytes {
        return Err(error::text_too_large(text.len(), limits.max_text_bytes));
    }
    Ok(())
}

/// Checks before the work that its vectors fit into one frame.
fn check_answer_size(texts: usize, dimensions: usize) -> Result<(), ErrorReply> {
    let vector_bytes = dimensions.max(1) * size_of::<f32>();
    let limit = (MAX_FRAME_BYTES - FRAME_MARGIN_BYTES) / vector_bytes;
    if texts > limit {
        return Err(error::too_many_texts(texts, limit));
    }
    Ok(())
}

/// Counts that a frame's size bounds far below the range of `u32`.
fn as_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Reads the request of a frame.
///
/// # Errors
/// The header is not a request of this version.
pub fn decode(frame: &Frame) -> Result<Request, ErrorReply> {
    frame.message().map_err(|error| error::from_frame(&error))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sight_protocol::{ErrorCode, Limits};

    use super::{check_answer_size, check_texts, cut_pictures};

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

    #[test]
    fn a_text_over_the_limit_is_named() {
        let limits = Limits {
            max_text_bytes: 4,
            max_image_bytes: 0,
            max_image_pixels: 0,
        };
        let error = check_texts(&["four".into(), "fives".into()], limits).unwrap_err();
        assert_eq!((error.code, error.item), (ErrorCode::TextTooLarge, Some(1)));
        assert_eq!(check_texts(&["four".into()], limits), Ok(()));
    }

    #[test]
    fn an_answer_that_fits_no_frame_is_refused_beforehand() {
        assert!(check_answer_size(600_000, 384).is_ok());
        assert!(check_answer_size(700_000, 384).is_err());
    }
}
