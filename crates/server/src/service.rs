//! Answers requests.

use std::sync::Arc;

use bytes::Bytes;
use sight_models::Placement;
use sight_protocol::{
    ErrorCode, ErrorReply, Frame, Limits, ModelTask, Request, Response, ServerConfig,
};
use tokio::sync::Semaphore;

use crate::activity::{Activity, CancelOnDrop, Ticket};
use crate::cache::EmbeddingCache;
use crate::connection::RequestRoom;
use crate::describe::cut_pictures;
use crate::error;
use crate::log;
use crate::models::{self, Models};
use crate::pulls::Pulls;
use crate::statistics::{Counters, Outcome, Statistics};
use crate::status;

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
    pub models: Models,
    pub cache: EmbeddingCache,
    pub statistics: Arc<Statistics>,
    /// Room for requests as they were received.
    pub room: RequestRoom,
    pulls: Pulls,
    /// Bounds the threads that prepare inputs.
    pub preparing: Arc<Semaphore>,
}

/// Whether a request only looks at the server: it is no work, and not refused at the
/// end.
pub fn only_looks(request: &Request) -> bool {
    matches!(
        request,
        Request::Status
            | Request::Pulls
            | Request::Probe
            | Request::Statistics
            | Request::ResetStatistics
    )
}

impl Service {
    /// `threads` bounds the threads that prepare inputs.
    pub fn new(config: ServerConfig, threads: usize, place: Placement) -> Self {
        let max_waiting = config.max_queued_requests as usize;
        let statistics = Arc::new(Statistics::restore(config.statistics_file.as_ref()));
        let activity = Arc::new(Activity::new(max_waiting));
        Self {
            models: Models::new(&config, &place, &statistics, &activity),
            cache: EmbeddingCache::new(config.embed_cache_bytes),
            room: RequestRoom::new(config.max_queued_bytes),
            config,
            threads,
            place,
            activity,
            statistics,
            pulls: Pulls::default(),
            preparing: Arc::new(Semaphore::new(threads)),
        }
    }

    /// Refuses what waits and what comes from now on; what the device is
    /// computing goes on.
    pub fn begin_shutdown(&self) {
        self.activity.begin_shutdown();
        self.models.refuse(&error::shutting_down());
    }

    /// Keeps the statistics for the next server.
    pub fn save_statistics(&self) {
        let file = &self.config.statistics_file;
        if let Err(error) = self.statistics.save(file.as_ref()) {
            log::warning(format_args!("could not write file \"{file}\": {error}"));
        }
    }

    /// Answers one request. Dropping the future abandons the request.
    pub async fn answer(&self, request: Request, body: Bytes) -> Answer {
        let result = if only_looks(&request) {
            self.dispatch(&self.activity.pass(), request, body).await
        } else {
            self.work_on(request, body).await
        };
        result.unwrap_or_else(|error| {
            self.activity.count_failure();
            error.into()
        })
    }

    async fn work_on(&self, request: Request, body: Bytes) -> Result<Answer, ErrorReply> {
        let items = match &request {
            Request::Embed { texts, .. } => texts.len(),
            Request::Describe { image_bytes, .. } => image_bytes.len(),
            _ => 0,
        };
        let Some(counters) = self.counters(&request) else {
            self.activity.count_request();
            return self.admitted(self.activity.pass(), request, body).await;
        };
        let outcome = Outcome::begin(Arc::clone(&counters));
        let ticket = self.activity.admit(&counters);
        // In this order the status never shows a request that neither waits
        // nor has been begun with.
        self.activity.count_request();
        let result = match ticket {
            Ok(ticket) => self.admitted(ticket, request, body).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => outcome.answered(items),
            Err(error) if error.code == ErrorCode::Overloaded => outcome.rejected(),
            Err(_) => outcome.failed(),
        }
        result
    }

    /// The counters of a request that needs the device.
    fn counters(&self, request: &Request) -> Option<Arc<Counters>> {
        match request {
            Request::Embed { model, .. } => Some(self.statistics.of(&model.name, ModelTask::Embed)),
            Request::Describe { model, .. } => {
                Some(self.statistics.of(&model.name, ModelTask::Describe))
            }
            _ => None,
        }
    }

    async fn admitted(
        &self,
        ticket: Arc<Ticket>,
        request: Request,
        body: Bytes,
    ) -> Result<Answer, ErrorReply> {
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
        let response = match request {
            Request::Embed {
                model,
                texts,
                prompt_name,
            } => return self.embed(ticket, &model, texts, prompt_name).await,
            Request::Describe {
                model,
                image_bytes,
                prompts,
                options,
            } => {
                let pictures = cut_pictures(body, &image_bytes)?;
                return self
                    .describe(ticket, &model, pictures, prompts, options)
                    .await;
            }
            Request::Status => Response::Status(status::of(self)),
            Request::Statistics => Response::Statistics(self.statistics.snapshot()),
            Request::Pulls => Response::Pulls(self.pulls.progress()),
            Request::Pull(request) => Response::Pulled(self.pulls.run(request).await?),
            Request::Inspect { model } => Response::Model(models::inspect(model).await?),
            Request::Load { model } => {
                self.models.load_ahead(&model, ticket).await?;
                Response::Done
            }
            Request::Unload { model } => {
                self.models.unload(&model.directory);
                Response::Done
            }
            Request::Probe => {
                self.models.probe(&self.activity).await;
                Response::Done
            }
            Request::ResetStatistics => {
                self.statistics.reset();
                Response::Done
            }
        };
        Ok(response.into())
    }
}

/// Checks the length of a text.
///
/// # Errors
/// It exceeds the limit.
pub fn check_text(text: &str, limits: Limits) -> Result<(), ErrorReply> {
    if text.len() as u64 > limits.max_text_bytes {
        return Err(error::text_too_large(text.len(), limits.max_text_bytes));
    }
    Ok(())
}

/// Reads the request of a frame.
///
/// # Errors
/// The header is not a request of this version.
pub fn decode(frame: &Frame) -> Result<Request, ErrorReply> {
    frame.message().map_err(|error| error::from_frame(&error))
}
