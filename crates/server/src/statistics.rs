//! What is counted, by model and task. Like PostgreSQL's own statistics they
//! survive an orderly end of the server, in a file, and not a crash.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sight_protocol::{Counter, ModelStatistics, ModelTask};

/// The counts of one model and task.
#[derive(Debug, Default)]
pub struct Counters([AtomicU64; Counter::ALL.len()]);

impl Counters {
    pub fn add(&self, counter: Counter, count: usize) {
        self.0[counter as usize].fetch_add(count as u64, Ordering::Relaxed);
    }

    pub fn add_time(&self, counter: Counter, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0[counter as usize].fetch_add(microseconds, Ordering::Relaxed);
    }

    /// Counts a batch that has been computed.
    pub fn add_batch(&self, items: usize) {
        self.add(Counter::Batches, 1);
        self.add(Counter::BatchItems, items);
        self.0[Counter::LargestBatch as usize].fetch_max(items as u64, Ordering::Relaxed);
    }

    fn counts(&self) -> [u64; Counter::ALL.len()] {
        std::array::from_fn(|number| self.0[number].load(Ordering::Relaxed))
    }
}

impl From<[u64; Counter::ALL.len()]> for Counters {
    fn from(counts: [u64; Counter::ALL.len()]) -> Self {
        Self(counts.map(AtomicU64::new))
    }
}

struct Table {
    since_ms: u64,
    models: BTreeMap<(String, ModelTask), Arc<Counters>>,
}

impl Table {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            since_ms: since.map_or(0, |since| since.as_millis() as u64),
            models: BTreeMap::new(),
        }
    }
}

/// The statistics of this server.
pub struct Statistics(Mutex<Table>);

impl Statistics {
    pub fn new() -> Self {
        Self(Mutex::new(Table::new()))
    }

    /// Goes on with what an earlier server has saved; begins anew where there is
    /// no such file, or one that another release wrote.
    pub fn restore(file: &Path) -> Self {
        let saved = std::fs::read(file).ok();
        let saved = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let Some(sight_protocol::Statistics { since_ms, models }) = saved else {
            return Self::new();
        };
        let models = models.into_iter().map(|saved| {
            let key = (saved.model, saved.task);
            (key, Arc::new(Counters::from(saved.counts)))
        });
        Self(Mutex::new(Table {
            since_ms,
            models: models.collect(),
        }))
    }

    /// Replaces the file in one step.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&self.snapshot())?)?;
        std::fs::rename(new, file)
    }

    /// The counts of a model, under the name that a client uses for it.
    pub fn of(&self, model: &str, task: ModelTask) -> Arc<Counters> {
        let mut table = self.lock();
        let entry = table.models.entry((model.to_owned(), task));
        Arc::clone(entry.or_default())
    }

    /// Begins anew; requests in work no longer count.
    pub fn reset(&self) {
        *self.lock() = Table::new();
    }

    pub fn snapshot(&self) -> sight_protocol::Statistics {
        let table = self.lock();
        let models = table.models.iter();
        let models = models.map(|((model, task), counters)| ModelStatistics {
            model: model.clone(),
            task: *task,
            counts: counters.counts(),
        });
        sight_protocol::Statistics {
            since_ms: table.since_ms,
            models: models.collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts how one request ended; one that is dropped before its end was
/// cancelled.
#[derive(Debug)]
pub struct Outcome(Option<Arc<Counters>>);

impl Outcome {
    /// Counts a request as begun.
    pub fn begin(counters: Arc<Counters>) -> Self {
        counters.add(Counter::Requests, 1);
        Self(Some(counters))
    }

    pub fn answered(mut self, items: usize) {
        self.end(Counter::Items, items);
    }

    pub fn failed(mut self) {
        self.end(Counter::Failed, 1);
    }

    pub fn rejected(mut self) {
        self.end(Counter::Rejected, 1);
    }

    fn end(&mut self, counter: Counter, count: usize) {
        if let Some(counters) = self.0.take() {
            counters.add(counter, count);
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        self.end(Counter::Cancelled, 1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sight_protocol::{Counter, ModelTask};

    use super::{Outcome, Statistics};

    #[test]
    fn every_request_ends_in_one_way() {
        let statistics = Statistics::new();
        let begin = || Outcome::begin(statistics.of("m", ModelTask::Embed));
        begin().answered(3);
        begin().failed();
        begin().rejected();
        drop(begin());
        let counted = statistics.snapshot();
        assert_eq!(counted.models.len(), 1);
        let model = &counted.models[0];
        assert_eq!((model.model.as_str(), model.task), ("m", ModelTask::Embed));
        let counts = [
            (Counter::Requests, 4),
            (Counter::Items, 3),
            (Counter::Failed, 1),
            (Counter::Rejected, 1),
            (Counter::Cancelled, 1),
        ];
        for (counter, count) in counts {
            assert_eq!(model[counter], count, "{counter:?}");
        }
    }

    #[test]
    fn statistics_survive_in_a_file_until_they_are_reset() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("statistics.json");
        let statistics = Statistics::restore(&file);
        let counters = statistics.of("m", ModelTask::Describe);
        counters.add_batch(4);
        counters.add_batch(2);
        counters.add_time(Counter::ComputeTime, Duration::from_millis(3));
        statistics.save(&file).unwrap();

        let restored = Statistics::restore(&file);
        assert_eq!(restored.snapshot(), statistics.snapshot());
        let model = &restored.snapshot().models[0];
        assert_eq!(model[Counter::Batches], 2);
        assert_eq!(model[Counter::BatchItems], 6);
        assert_eq!(model[Counter::LargestBatch], 4);
        assert_eq!(model[Counter::ComputeTime], 3000);
        restored.reset();
        assert!(restored.snapshot().models.is_empty());
        assert!(restored.snapshot().since_ms >= statistics.snapshot().since_ms);

        std::fs::write(&file, "{\"since_ms\": 1, \"models\": [{}]}").unwrap();
        assert!(Statistics::restore(&file).snapshot().models.is_empty());
    }
}
