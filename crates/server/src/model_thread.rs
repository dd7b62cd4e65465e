//! The thread that owns the compute of one model.

use std::io;
use std::sync::Arc;
use std::thread;

use sight_protocol::ErrorCode;

use crate::engine::Engine;
use crate::error;
use crate::log;
use crate::queue::{Batch, Entry, Queue};

/// A loaded model with its queue. When the last handle is dropped the thread
/// computes what still waits, and frees the model.
pub struct ModelHandle<E: Engine> {
    pub engine: Arc<E>,
    pub queue: Arc<Queue<E>>,
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
        };
        let engine = Arc::clone(&handle.engine);
        let end = RefuseOnDrop(Arc::clone(&handle.queue));
        thread::Builder::new().name("model".into()).spawn(move || {
            while let Some(batch) = end.0.next_batch() {
                compute(&*engine, &batch);
            }
        })?;
        Ok(handle)
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
fn compute<E: Engine>(engine: &E, batch: &Batch<E>) {
    let entries: Vec<&Entry<E>> = batch.entries.iter().collect();
    compute_entries(engine, &batch.options, &entries);
}

/// Computes `entries` at once. When that fails or panics it computes the halves,
/// down to the single input that is at fault, so that the others get answers.
fn compute_entries<E: Engine>(engine: &E, options: &E::Options, entries: &[&Entry<E>]) {
    let entries: Vec<&Entry<E>> = entries
        .iter()
        .copied()
        .filter(|entry| !entry.is_over())
        .collect();
    if entries.is_empty() {
        return;
    }
    let inputs: Vec<&E::Input> = entries.iter().map(|entry| &entry.input).collect();
    let cancelled = |row: usize| entries[row].is_over();
    let outputs = error::guard(|| {
        let outputs = engine.compute(&inputs, options, &cancelled)?;
        if outputs.len() == inputs.len() {
            Ok(outputs)
        } else {
            Err(error::internal(format!(
                "model answered {} inputs with {} outputs",
                inputs.len(),
                outputs.len()
            )))
        }
    });
    match (outputs, entries.as_slice()) {
        (Ok(outputs), entries) => {
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
            log::debug(format_args!(
                "a batch of {} inputs failed ({:?}), trying its halves",
                entries.len(),
                error.code
            ));
            let (first, second) = entries.split_at(entries.len() / 2);
            compute_entries(engine, options, first);
            compute_entries(engine, options, second);
        }
    }
}

#[cfg(test)]
#[path = "model_thread_tests.rs"]
mod tests;
