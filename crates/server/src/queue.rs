//! The queue of one model: requests wait here while the device is busy, and the
//! model thread takes them out in batches.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sight_protocol::ErrorReply;
use tokio::sync::oneshot;

use crate::activity::Ticket;
use crate::engine::Engine;
use crate::error;
use crate::statistics::Counters;

/// Jobs are small that take this part of a batch at most, all together.
const SMALL_PART: usize = 8;

/// The outputs of a job, in input order.
pub type Outputs<E> = Result<Vec<<E as Engine>::Output>, ErrorReply>;

/// Inputs of one request that are computed together or in several batches and
/// answered at once.
pub struct Job<E: Engine> {
    ticket: Arc<Ticket>,
    options: Arc<E::Options>,
    /// Position of the first input within the client's request.
    first_item: usize,
    answer: Mutex<Answer<E>>,
}

struct Answer<E: Engine> {
    outputs: Vec<Option<E::Output>>,
    missing: usize,
    /// Taken when the answer has been given.
    sender: Option<oneshot::Sender<Outputs<E>>>,
}

impl<E: Engine> Job<E> {
    /// True when nothing more need be computed for it: it has been answered
    /// (with an error) or nobody waits for the answer.
    pub fn is_over(&self) -> bool {
        self.ticket.is_cancelled() || lock(&self.answer).sender.is_none()
    }

    /// Keeps the output of one input; the last one completes the answer. What comes after
    /// an error was the answer, for another input or at the end of the server, is too late.
    fn store(&self, index: usize, output: E::Output) {
        let mut answer = lock(&self.answer);
        if answer.sender.is_none() {
            return;
        }
        if answer.outputs[index].replace(output).is_none() {
            answer.missing -= 1;
        }
        if answer.missing == 0
            && let Some(sender) = answer.sender.take()
        {
            let outputs = std::mem::take(&mut answer.outputs);
            // The client may have gone meanwhile.
            let _ = sender.send(Ok(outputs.into_iter().flatten().collect()));
        }
    }

    /// Answers with an error, unless it has been answered already.
    fn fail(&self, error: ErrorReply) {
        let mut answer = lock(&self.answer);
        if let Some(sender) = answer.sender.take() {
            answer.outputs = Vec::new();
            let _ = sender.send(Err(error));
        }
    }
}

/// One input on its way through a batch.
pub struct Entry<E: Engine> {
    job: Arc<Job<E>>,
    index: usize,
    cost: usize,
    pub input: E::Input,
}

impl<E: Engine> Entry<E> {
    pub fn is_over(&self) -> bool {
        self.job.is_over()
    }

    /// Keeps the output for this input.
    pub fn store(&self, output: E::Output) {
        self.job.store(self.index, output);
    }

    /// Where it is counted what becomes of its request.
    pub fn counters(&self) -> &Counters {
        self.job.ticket.counters()
    }

    /// Makes this input's error the answer of its request.
    pub fn fail(&self, error: ErrorReply) {
        self.job
            .fail(error::at_item(error, self.job.first_item + self.index));
    }
}

/// What the model thread computes at once: inputs of equal options, sorted by
/// cost.
pub struct Batch<E: Engine> {
    pub options: Arc<E::Options>,
    pub entries: Vec<Entry<E>>,
}

/// A job with those of its inputs that are in no batch yet.
struct Waiting<E: Engine> {
    job: Arc<Job<E>>,
    /// Sorted by cost, the dearest last: it is taken first, so that a batch
    /// too large for the device shows at once and not at the end.
    entries: Vec<Entry<E>>,
}

struct State<E: Engine> {
    waiting: VecDeque<Waiting<E>>,
    /// The last batch was of small jobs alone, while others waited.
    small_were_first: bool,
    /// No job will come any more; the error is for those that try.
    closed: Option<ErrorReply>,
}

pub struct Queue<E: Engine> {
    /// Largest cost of a batch; a single input may exceed it.
    budget: usize,
    state: Mutex<State<E>>,
    changed: Condvar,
}

impl<E: Engine> Queue<E> {
    pub fn new(budget: usize) -> Self {
        Self {
            budget,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                small_were_first: false,
                closed: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Appends inputs of the request that holds `ticket`; `first_item` is the
    /// position of the first within the request.
    ///
    /// # Errors
    /// The queue takes no jobs any more.
    pub fn submit(
        &self,
        ticket: &Arc<Ticket>,
        options: Arc<E::Options>,
        first_item: usize,
        inputs: Vec<E::Input>,
    ) -> Result<oneshot::Receiver<Outputs<E>>, ErrorReply> {
        let (sender, receiver) = oneshot::channel();
        if inputs.is_empty() {
            let _ = sender.send(Ok(Vec::new()));
            return Ok(receiver);
        }
        let answer = Answer {
            outputs: inputs.iter().map(|_| None).collect(),
            missing: inputs.len(),
            sender: Some(sender),
        };
        let job = Arc::new(Job {
            ticket: Arc::clone(ticket),
            options,
            first_item,
            answer: Mutex::new(answer),
        });
        let mut entries: Vec<Entry<E>> = inputs
            .into_iter()
            .enumerate()
            .map(|(index, input)| Entry {
                job: Arc::clone(&job),
                index,
                cost: E::cost(&input),
                input,
            })
            .collect();
        entries.sort_by_key(|entry| entry.cost);

        let mut state = lock(&self.state);
        if let Some(error) = &state.closed {
            return Err(error.clone());
        }
        ticket.queue();
        state.waiting.push_back(Waiting { job, entries });
        self.changed.notify_one();
        Ok(receiver)
    }

    /// Waits for work and takes the next batch; `None` when the queue is closed
    /// and empty.
    pub fn next_batch(&self) -> Option<Batch<E>> {
        let mut state = lock(&self.state);
        loop {
            let may_be_small = !state.small_were_first;
            if let Some((batch, small)) = take_batch(&mut state.waiting, self.budget, may_be_small)
            {
                state.small_were_first = small;
                return Some(batch);
            }
            if state.closed.is_some() {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no further jobs; those that wait are still computed.
    pub fn finish(&self, error: ErrorReply) {
        lock(&self.state).closed.get_or_insert(error);
        self.changed.notify_one();
    }

    /// Takes no further jobs and fails those that have inputs waiting.
    pub fn refuse(&self, error: ErrorReply) {
        let waiting = {
            let mut state = lock(&self.state);
            state.closed.get_or_insert(error.clone());
            std::mem::take(&mut state.waiting)
        };
        self.changed.notify_one();
        for entry in waiting {
            entry.job.fail(error.clone());
        }
    }
}

/// Takes a batch out of `waiting`: inputs of jobs that have the options of the
/// longest waiting job, each job at first up to an equal share of the budget,
/// then whoever has more. Jobs that were served and have inputs left go behind
/// the others, so that a large job delays a small one by about one batch.
///
/// Small jobs that wait beside large ones are taken alone where they may, which the
/// result says: they would be computed only as fast as the whole batch. Every other
/// batch is for all, so that many small jobs do not keep a large one waiting.
fn take_batch<E: Engine>(
    waiting: &mut VecDeque<Waiting<E>>,
    budget: usize,
    may_be_small: bool,
) -> Option<(Batch<E>, bool)> {
    waiting.retain(|waiting| !waiting.job.is_over());
    let options = Arc::clone(&waiting.front()?.job.options);
    let all: Vec<usize> = (0..waiting.len())
        .filter(|&position| waiting[position].job.options == options)
        .collect();
    let small = may_be_small
        .then(|| small_beside_large(waiting, &all, budget))
        .flatten();
    let are_small = small.is_some();
    let (mut entries, served) = fill_batch(waiting, &small.unwrap_or(all), budget);

    let mut again = VecDeque::new();
    for (job, served) in std::mem::take(waiting).into_iter().zip(served) {
        if served {
            job.job.ticket.start();
        }
        match (served, job.entries.is_empty()) {
            (_, true) => {}
            (true, false) => again.push_back(job),
            (false, false) => waiting.push_back(job),
        }
    }
    waiting.append(&mut again);
    entries.sort_by_key(|entry| entry.cost);
    Some((Batch { options, entries }, are_small))
}

/// Those of the `eligible` jobs that are small, where the others would fill half a
/// batch at least.
fn small_beside_large<E: Engine>(
    waiting: &VecDeque<Waiting<E>>,
    eligible: &[usize],
    budget: usize,
) -> Option<Vec<usize>> {
    let most = budget / SMALL_PART;
    let mut small = Vec::new();
    let (mut small_cost, mut large_cost) = (0, 0);
    for &position in eligible {
        let entries = &waiting[position].entries;
        let costs = entries.iter().map(|entry| entry.cost);
        // So many inputs say enough of a job that has more.
        let cost: usize = costs.take(budget / 2 + 1).sum();
        if cost <= most {
            small_cost += cost;
            small.push(position);
        } else {
            large_cost += cost;
        }
    }
    let worth_it = !small.is_empty() && small_cost <= most && large_cost > budget / 2;
    worth_it.then_some(small)
}

/// Takes inputs of the `eligible` jobs: also which jobs they are of.
fn fill_batch<E: Engine>(
    waiting: &mut VecDeque<Waiting<E>>,
    eligible: &[usize],
    budget: usize,
) -> (Vec<Entry<E>>, Vec<bool>) {
    let share = budget / eligible.len();
    let mut taken = Vec::new();
    let mut total = 0;
    let mut served = vec![false; waiting.len()];
    for limit in [share, budget] {
        for &position in eligible {
            let entries = &mut waiting[position].entries;
            let mut own = 0;
            while let Some(cost) = entries.last().map(|entry| entry.cost) {
                // The first input of a batch is taken whatever it costs, and
                // the first of a job even if it exceeds the job's share.
                let fits = total + cost <= budget || taken.is_empty();
                let fair = own + cost <= limit || !served[position];
                if !(fits && fair) {
                    break;
                }
                taken.extend(entries.pop());
                served[position] = true;
                own += cost;
                total += cost;
            }
        }
    }
    (taken, served)
}

/// Locks; a panic of another holder leaves nothing half done here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
