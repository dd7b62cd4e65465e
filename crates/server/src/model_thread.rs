//! The thread that owns the compute of one model.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sight_models::Watch;
use sight_protocol::{Counter, ErrorCode, ErrorReply};

use crate::activity::{CancelOnDrop, Ticket};
use crate::engine::Engine;
use crate::error;
use crate::log;
use crate::queue::{Batch, Entry, Queue};

/// Between two looks whether a model that is busy gets on.
const PROBE_LOOK: Duration = Duration::from_millis(50);

/// A loaded model with its queue. When the last handle is dropped the thread
/// computes what still waits, and frees the model.
pub struct ModelHandle<E: Engine> {
    pub engine: Arc<E>,
    pub queue: Arc<Queue<E>>,
    /// Largest cost of a batch.
    budget: usize,
    pulse: Arc<Pulse>,
}

/// Beats after each batch, and after each step of one that takes many.
#[derive(Debug, Default)]
struct Pulse(AtomicU64);

impl Pulse {
    fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn beats(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<E: Engine> ModelHandle<E> {
    /// Starts the thread; batches cost up to `budget` (see [`Engine::cost`]).
    ///
    /// # Errors
    /// The operating system has no thread left.
    pub fn start(engine: E, budget: usize) -> io::Result<Self> {
        let handle = Self {
            engine: Arc::new(engine),
            queue: Arc::new(Queue::new(budget)),
            budget,
            pulse: Arc::default(),
        };
        let engine = Arc::clone(&handle.engine);
        let pulse = Arc::clone(&handle.pulse);
        let end = RefuseOnDrop(Arc::clone(&handle.queue));
        thread::Builder::new().name("model".into()).spawn(move || {
            while let Some(batch) = end.0.next_batch() {
                compute(&*engine, &batch, &pulse);
            }
        })?;
        Ok(handle)
    }

    /// Sees whether the model works: a forward pass, or, where it is busy, that it
    /// gets on with that. Does not return while it hangs. `ticket` is for this only.
    ///
    /// # Errors
    /// The forward pass fails, or the queue is closed.
    pub async fn probe(&self, ticket: &Arc<Ticket>) -> Result<(), ErrorReply> {
        let _cancel = CancelOnDrop(Arc::clone(ticket));
        let (inputs, options) = self.engine.samples(1)?;
        let beats = self.pulse.beats();
        let mut answer = self.queue.submit(ticket, Arc::new(options), 0, inputs)?;
        loop {
            match tokio::time::timeout(PROBE_LOOK, &mut answer).await {
                Ok(Ok(answer)) => return answer.map(|_| ()),
                Ok(Err(_)) => return Err(error::internal("model gave no answer")),
                Err(_) if self.pulse.beats() != beats => return Ok(()),
                Err(_) => {}
            }
        }
    }

    /// Computes a whole batch, so that what is made once (memory, kernels of a
    /// device) is there for the first request.
    ///
    /// # Errors
    /// The batch fails, or the queue is closed.
    pub async fn warm_up(&self, ticket: &Arc<Ticket>) -> Result<(), ErrorReply> {
        let _cancel = CancelOnDrop(Arc::clone(ticket));
        let (inputs, options) = self.engine.samples(self.budget)?;
        let answer = self.queue.submit(ticket, Arc::new(options), 0, inputs)?;
        let answer = answer.await;
        answer.unwrap_or_else(|_| Err(error::internal("model gave no answer")))?;
        Ok(())
    }
}

impl<E: Engine> Drop for ModelHandle<E> {
    fn drop(&mut self) {
        self.queue.finish(error::internal("model has been freed"));
    }
}

/// However the thread ends, nobody waits for it in vain.
struct RefuseOnDrop<E: Engine>(Arc<Queue<E>>);

impl<E: Engine> Drop for RefuseOnDrop<E> {
    fn drop(&mut self) {
        self.0
            .refuse(error::internal("the thread of the model has ended"));
    }
}

/// Computes a batch and answers the requests of its inputs.
fn compute<E: Engine>(engine: &E, batch: &Batch<E>, pulse: &Pulse) {
    let entries: Vec<&Entry<E>> = batch.entries.iter().collect();
    compute_entries(engine, &batch.options, &entries, pulse);
}

/// Computes `entries` at once. When that fails or panics it computes the halves,
/// down to the single input that is at fault, so that the others get answers.
fn compute_entries<E: Engine>(
    engine: &E,
    options: &E::Options,
    entries: &[&Entry<E>],
    pulse: &Pulse,
) {
    let entries: Vec<&Entry<E>> = entries
        .iter()
        .copied()
        .filter(|entry| !entry.is_over())
        .collect();
    // A batch of several requests is counted for one of them.
    let Some(counters) = entries.first().map(|entry| entry.counters()) else {
        return;
    };
    let begun = Instant::now();
    let outputs = outputs(engine, options, &entries, pulse);
    pulse.beat();
    counters.add_time(Counter::ComputeTime, begun.elapsed());
    match (outputs, entries.as_slice()) {
        (Ok(outputs), entries) => {
            counters.add_batch(entries.len());
            for (entry, output) in entries.iter().zip(outputs) {
                match output {
                    Some(output) => entry.store(output),
                    // Only for an input that is over, where this does nothing.
                    None => entry.fail(error::internal("model gave no answer")),
                }
            }
        }
        (Err(error), [entry]) => {
            if matches!(
                error.code,
                ErrorCode::Internal | ErrorCode::OutOfDeviceMemory
            ) {
                log::warning(format_args!("an input failed: {}", error.message));
            }
            entry.fail(error);
        }
        (Err(error), entries) => {
            if error.code == ErrorCode::OutOfDeviceMemory {
                counters.add(Counter::OomSplits, 1);
            }
            log::debug(format_args!(
                "a batch of {} inputs failed ({:?}), trying its halves",
                entries.len(),
                error.code
            ));
            let (first, second) = entries.split_at(entries.len() / 2);
            compute_entries(engine, options, first, pulse);
            compute_entries(engine, options, second, pulse);
        }
    }
}

/// What the model makes of the inputs of `entries`; a panic is an error.
fn outputs<E: Engine>(
    engine: &E,
    options: &E::Options,
    entries: &[&Entry<E>],
    pulse: &Pulse,
) -> Result<Vec<Option<E::Output>>, ErrorReply> {
    let inputs: Vec<&E::Input> = entries.iter().map(|entry| &entry.input).collect();
    let cancelled = |row: usize| {
        pulse.beat();
        entries[row].is_over()
    };
    // At once, so that a long answer shows how far it is.
    let generated = |row: usize| entries[row].counters().add(Counter::GeneratedTokens, 1);
    let watch = Watch {
        cancelled: &cancelled,
        generated: &generated,
    };
    error::guard(|| {
        let outputs = engine.compute(&inputs, options, &watch)?;
        if outputs.len() == inputs.len() {
            Ok(outputs)
        } else {
            Err(error::internal(format!(
                "model answered {} inputs with {} outputs",
                inputs.len(),
                outputs.len()
            )))
        }
    })
}

#[cfg(test)]
#[path = "model_thread_tests.rs"]
mod tests;
