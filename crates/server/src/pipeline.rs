//! The way of one request through a model: its inputs are prepared on blocking
//! threads and handed to the model's queue window by window, so that preparing
//! overlaps computing and a large request does not hold all its pixels at once.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use sight_protocol::{Counter, ErrorReply};
use tokio::sync::{Semaphore, oneshot};

use crate::activity::Ticket;
use crate::engine::Engine;
use crate::error;
use crate::model_thread::ModelHandle;
use crate::queue::Outputs;

/// Windows of one request that are in the queue at a time: one that is being
/// computed and one that is ready to follow.
const WINDOWS_QUEUED: usize = 2;

/// How the inputs of a request are cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// Inputs that are handed to the queue together.
    pub window: usize,
    /// Inputs that one blocking thread prepares at a time.
    pub piece: usize,
}

/// One request on its way.
pub struct Pipeline<'a, E: Engine> {
    pub model: &'a ModelHandle<E>,
    pub ticket: &'a Arc<Ticket>,
    pub options: Arc<E::Options>,
    pub cut: Cut,
    /// Bounds the blocking threads that prepare, over all requests.
    pub preparing: &'a Arc<Semaphore>,
}

impl<E: Engine> Pipeline<'_, E> {
    /// Prepares and computes `raw`: the outputs in input order.
    ///
    /// # Errors
    /// The first error of an input, which fails the whole request; that the
    /// queue is closed.
    pub async fn run<R, P>(self, raw: Vec<R>, prepare: P) -> Result<Vec<E::Output>, ErrorReply>
    where
        R: Send + Sync + 'static,
        P: Fn(&E, &R) -> Result<E::Input, ErrorReply> + Send + Sync + 'static,
    {
        let raw = Arc::new(raw);
        let prepare = Arc::new(prepare);
        let mut outputs = Vec::with_capacity(raw.len());
        let mut queued: VecDeque<oneshot::Receiver<Outputs<E>>> = VecDeque::new();
        for range in ranges(0..raw.len(), self.cut.window) {
            let first = range.start;
            let inputs = self.prepare_window(&raw, range, &prepare).await?;
            if queued.len() == WINDOWS_QUEUED {
                collect(&mut queued, &mut outputs).await?;
            }
            let options = Arc::clone(&self.options);
            queued.push_back(
                self.model
                    .queue
                    .submit(self.ticket, options, first, inputs)?,
            );
        }
        while !queued.is_empty() {
            collect(&mut queued, &mut outputs).await?;
        }
        Ok(outputs)
    }

    async fn prepare_window<R, P>(
        &self,
        raw: &Arc<Vec<R>>,
        window: Range<usize>,
        prepare: &Arc<P>,
    ) -> Result<Vec<E::Input>, ErrorReply>
    where
        R: Send + Sync + 'static,
        P: Fn(&E, &R) -> Result<E::Input, ErrorReply> + Send + Sync + 'static,
    {
        let mut pieces = Vec::new();
        let mut inputs = Vec::with_capacity(window.len());
        for piece in ranges(window, self.cut.piece) {
            let permit = Arc::clone(self.preparing)
                .acquire_owned()
                .await
                .map_err(|_| error::shutting_down())?;
            let raw = Arc::clone(raw);
            let prepare = Arc::clone(prepare);
            let engine = Arc::clone(&self.model.engine);
            let ticket = Arc::clone(self.ticket);
            pieces.push(tokio::task::spawn_blocking(move || {
                let _permit = permit;
                let begun = Instant::now();
                let inputs = piece
                    .map(|item| {
                        if ticket.is_cancelled() {
                            return Err(error::internal("request was cancelled"));
                        }
                        error::guard(|| prepare(&engine, &raw[item]))
                            .map_err(|error| error::at_item(error, item))
                    })
                    .collect::<Result<Vec<E::Input>, ErrorReply>>();
                let counters = ticket.counters();
                counters.add_time(Counter::PreprocessTime, begun.elapsed());
                inputs
            }));
        }
        for piece in pieces {
            // The closure catches panics; what is left is a runtime that ends.
            inputs.extend(piece.await.map_err(|_| error::shutting_down())??);
        }
        Ok(inputs)
    }
}

/// Waits for the oldest window.
async fn collect<O>(
    queued: &mut VecDeque<oneshot::Receiver<Result<Vec<O>, ErrorReply>>>,
    outputs: &mut Vec<O>,
) -> Result<(), ErrorReply> {
    if let Some(window) = queued.pop_front() {
        let answer = window
            .await
            .map_err(|_| error::internal("model gave no answer"))?;
        outputs.extend(answer?);
    }
    Ok(())
}

/// Cuts a range into parts of `size`, the last one shorter.
fn ranges(whole: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = whole.end;
    whole
        .step_by(size)
        .map(move |start| start..end.min(start + size))
}

#[cfg(test)]
#[path = "pipeline_tests.rs"]
mod tests;
