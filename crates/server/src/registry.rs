//! The loaded models. A model is loaded on its first use, once for all requests
//! that come meanwhile, and again when its files have changed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sight_protocol::ErrorReply;
use tokio::sync::watch;

use crate::error;

/// What became of a load; `None` while it runs.
type Outcome<M> = Option<Result<Arc<M>, ErrorReply>>;

struct Entry<M> {
    revision: String,
    outcome: watch::Receiver<Outcome<M>>,
}

/// Models of type `M` by their directories.
pub struct Registry<M> {
    entries: Mutex<HashMap<String, Entry<M>>>,
}

impl<M: Send + Sync + 'static> Registry<M> {
    pub fn new() -> Self {
        Self {
            entries: Mutex::new(HashMap::new()),
        }
    }

    /// The model of a directory whose files are those of `revision`. When it is
    /// not there in this revision, `load` runs on a blocking thread, once for
    /// all who ask at the same time; it runs to its end even if they all go.
    ///
    /// # Errors
    /// What `load` says, for all who waited; the next call loads again.
    pub async fn get(
        self: &Arc<Self>,
        directory: &str,
        revision: String,
        load: impl FnOnce() -> Result<M, ErrorReply> + Send + 'static,
    ) -> Result<Arc<M>, ErrorReply> {
        let mut outcome = self.find_or_load(directory, revision, load);
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The sender is gone without an outcome.
            Ok(None) | Err(_) => Err(error::internal("loading the model was abandoned")),
        }
    }

    fn find_or_load(
        self: &Arc<Self>,
        directory: &str,
        revision: String,
        load: impl FnOnce() -> Result<M, ErrorReply> + Send + 'static,
    ) -> watch::Receiver<Outcome<M>> {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(directory)
            && entry.revision == revision
        {
            return entry.outcome.clone();
        }
        let (sender, outcome) = watch::channel(None);
        let entry = Entry {
            revision,
            outcome: outcome.clone(),
        };
        // An older revision that this replaces lives on in its requests.
        let replaced = entries.insert(directory.to_owned(), entry);
        drop(entries);
        drop(replaced);

        let registry = Arc::clone(self);
        let directory = directory.to_owned();
        tokio::task::spawn_blocking(move || {
            let result = error::guard(load).map(Arc::new);
            if result.is_err() {
                registry.forget(&directory, &sender);
            }
            sender.send_replace(Some(result));
        });
        outcome
    }

    /// Removes the entry of a load that failed, if it is still that load's.
    fn forget(&self, directory: &str, sender: &watch::Sender<Outcome<M>>) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get(directory)
            && entry.outcome.same_channel(&sender.subscribe())
        {
            entries.remove(directory);
        }
    }

    /// Removes the model of a directory; requests that use it keep it alive.
    pub fn remove(&self, directory: &str) {
        let removed = self.lock().remove(directory);
        // Freeing a model takes its time: not under the lock.
        drop(removed);
    }

    /// The loaded models and their directories, in the order of these.
    pub fn loaded(&self) -> Vec<(String, Arc<M>)> {
        let mut loaded: Vec<(String, Arc<M>)> = self
            .lock()
            .iter()
            .filter_map(|(directory, entry)| match &*entry.outcome.borrow() {
                Some(Ok(model)) => Some((directory.clone(), Arc::clone(model))),
                Some(Err(_)) | None => None,
            })
            .collect();
        loaded.sort_by(|a, b| a.0.cmp(&b.0));
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry<M>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::Registry;
    use crate::error;

    async fn get(
        registry: &Arc<Registry<usize>>,
        revision: &str,
        loads: &Arc<AtomicUsize>,
        fail: bool,
    ) -> Result<usize, String> {
        let loads = Arc::clone(loads);
        let load = move || {
            std::thread::sleep(Duration::from_millis(50));
            let number = loads.fetch_add(1, Ordering::SeqCst) + 1;
            if fail {
                return Err(error::internal(format!("load {number} failed")));
            }
            Ok(number)
        };
        let model = registry.get("model", revision.into(), load).await;
        model.map(|model| *model).map_err(|error| error.message)
    }

    #[tokio::test]
    async fn one_load_serves_all_who_wait() {
        let registry = Arc::new(Registry::new());
        let loads = Arc::new(AtomicUsize::new(0));
        let (first, second, third) = tokio::join!(
            get(&registry, "a", &loads, false),
            get(&registry, "a", &loads, false),
            get(&registry, "a", &loads, false),
        );
        assert_eq!((first, second, third), (Ok(1), Ok(1), Ok(1)));
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(1));
        assert_eq!(registry.loaded().len(), 1);
    }

    #[tokio::test]
    async fn a_failed_load_fails_all_who_wait_and_is_tried_again() {
        let registry = Arc::new(Registry::new());
        let loads = Arc::new(AtomicUsize::new(0));
        let (first, second) = tokio::join!(
            get(&registry, "a", &loads, true),
            get(&registry, "a", &loads, true),
        );
        assert_eq!(first, Err("load 1 failed".into()));
        assert_eq!(second, first);
        assert!(registry.loaded().is_empty());
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(2));
    }

    #[tokio::test]
    async fn a_load_that_panics_is_an_error() {
        let registry: Arc<Registry<usize>> = Arc::new(Registry::new());
        let result = registry.get("m", "a".into(), || panic!("planned")).await;
        assert!(result.is_err());
        assert_eq!(*registry.get("m", "a".into(), || Ok(3)).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_changed_or_removed_model_is_loaded_again() {
        let registry = Arc::new(Registry::new());
        let loads = Arc::new(AtomicUsize::new(0));
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(1));
        assert_eq!(get(&registry, "b", &loads, false).await, Ok(2));
        registry.remove("model");
        assert!(registry.loaded().is_empty());
        assert_eq!(get(&registry, "b", &loads, false).await, Ok(3));
    }

    #[tokio::test]
    async fn a_load_outlives_the_one_who_asked() {
        let registry = Arc::new(Registry::new());
        let loads = Arc::new(AtomicUsize::new(0));
        let asked = get(&registry, "a", &loads, false);
        let gone = tokio::time::timeout(Duration::from_millis(10), asked).await;
        assert!(gone.is_err());
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(1));
    }
}
