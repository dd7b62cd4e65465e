//! The loaded models. A model is loaded on its first use, once for all requests
//! that come meanwhile, and again when its files have changed. Where their memory
//! is limited, those that were not used for longest make room.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use sight_protocol::ErrorReply;
use tokio::sync::watch;

use crate::error;
use crate::log;

/// How long a load waits until requests have finished with models that make room.
const ROOM_WAIT: Duration = Duration::from_secs(60);
const ROOM_LOOK: Duration = Duration::from_millis(10);

/// What became of a load; `None` while it runs.
type Outcome<M> = Option<Result<Arc<M>, ErrorReply>>;

struct Entry<M> {
    /// Number of its load.
    load: u64,
    revision: String,
    outcome: watch::Receiver<Outcome<M>>,
    /// Memory that it takes or is about to take; 0 as long as that is not known.
    bytes: u64,
    /// When it was last asked for.
    used: Instant,
}

impl<M> Entry<M> {
    /// The model, once it is loaded.
    fn model(&self) -> Option<Arc<M>> {
        match &*self.outcome.borrow() {
            Some(Ok(model)) => Some(Arc::clone(model)),
            Some(Err(_)) | None => None,
        }
    }
}

/// A model that is registered no more, but may be used by requests.
struct Leaving<M> {
    model: Weak<M>,
    bytes: u64,
}

struct Table<M> {
    loads: u64,
    entries: HashMap<String, Entry<M>>,
    leaving: Vec<Leaving<M>>,
}

impl<M> Table<M> {
    /// Takes a model out. The caller drops it, not under the lock: freeing a model
    /// takes its time.
    fn remove(&mut self, directory: &str) -> Option<Entry<M>> {
        let entry = self.entries.remove(directory)?;
        self.part_with(&entry);
        Some(entry)
    }

    fn part_with(&mut self, entry: &Entry<M>) {
        self.leaving.retain(|left| left.model.strong_count() > 0);
        if let Some(model) = entry.model() {
            self.leaving.push(Leaving {
                model: Arc::downgrade(&model),
                bytes: entry.bytes,
            });
        }
    }

    fn entry_of(&mut self, load: u64) -> Option<&mut Entry<M>> {
        self.entries.values_mut().find(|entry| entry.load == load)
    }

    /// Takes out the loaded model that was not used for longest.
    fn remove_oldest(&mut self) -> Option<(String, Entry<M>)> {
        let loaded = self.entries.iter();
        let loaded = loaded.filter(|(_, entry)| entry.model().is_some());
        let (directory, _) = loaded.min_by_key(|(_, entry)| entry.used)?;
        let directory = directory.clone();
        let entry = self.remove(&directory)?;
        Some((directory, entry))
    }

    /// Bytes of the models that are not of this load: those that stay, and those
    /// that requests still use.
    fn others(&mut self, load: u64) -> (u64, u64) {
        self.leaving.retain(|left| left.model.strong_count() > 0);
        let staying = self.entries.values().filter(|entry| entry.load != load);
        let leaving = self.leaving.iter().map(|left| left.bytes);
        (staying.map(|entry| entry.bytes).sum(), leaving.sum())
    }
}

/// Models of type `M` by their directories.
pub struct Registry<M> {
    /// Bounds the memory of all models.
    max_bytes: u64,
    table: Mutex<Table<M>>,
}

/// A model in memory.
pub struct Loaded<M> {
    pub directory: String,
    pub model: Arc<M>,
    pub bytes: u64,
    pub used: Instant,
}

/// The place of a load among the models.
pub struct Room<M> {
    registry: Arc<Registry<M>>,
    load: u64,
}

impl<M: Send + Sync + 'static> Registry<M> {
    /// The models take up to `max_bytes`, of which 0 is no limit.
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes: if max_bytes == 0 { u64::MAX } else { max_bytes },
            table: Mutex::new(Table {
                loads: 0,
                entries: HashMap::new(),
                leaving: Vec::new(),
            }),
        }
    }

    /// The model of a directory whose files are those of `revision`. When it is
    /// not there in this revision, `load` runs on a blocking thread, once for
    /// all who ask at the same time; it runs to its end even if they all go. It
    /// has to ask for room before it takes memory.
    ///
    /// # Errors
    /// What `load` says, for all who waited; the next call loads again.
    pub async fn get(
        self: &Arc<Self>,
        directory: &str,
        revision: String,
        load: impl FnOnce(&Room<M>) -> Result<M, ErrorReply> + Send + 'static,
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
        load: impl FnOnce(&Room<M>) -> Result<M, ErrorReply> + Send + 'static,
    ) -> watch::Receiver<Outcome<M>> {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get_mut(directory)
            && entry.revision == revision
        {
            entry.used = Instant::now();
            return entry.outcome.clone();
        }
        // An older revision that this replaces lives on in its requests.
        let replaced = table.remove(directory);
        table.loads += 1;
        let (sender, outcome) = watch::channel(None);
        let room = Room {
            registry: Arc::clone(self),
            load: table.loads,
        };
        let entry = Entry {
            load: room.load,
            revision,
            outcome: outcome.clone(),
            bytes: 0,
            used: Instant::now(),
        };
        table.entries.insert(directory.to_owned(), entry);
        drop(table);
        drop(replaced);

        tokio::task::spawn_blocking(move || {
            let result = error::guard(|| load(&room)).map(Arc::new);
            if result.is_err() {
                room.give_up();
            }
            sender.send_replace(Some(result));
        });
        outcome
    }

    /// Removes the model of a directory; requests that use it keep it alive.
    pub fn remove(&self, directory: &str) {
        let removed = self.lock().remove(directory);
        drop(removed);
    }

    /// The loaded models, in the order of their directories.
    pub fn loaded(&self) -> Vec<Loaded<M>> {
        let table = self.lock();
        let loaded = table.entries.iter().filter_map(|(directory, entry)| {
            Some(Loaded {
                directory: directory.clone(),
                model: entry.model()?,
                bytes: entry.bytes,
                used: entry.used,
            })
        });
        let mut loaded: Vec<Loaded<M>> = loaded.collect();
        loaded.sort_by(|a, b| a.directory.cmp(&b.directory));
        loaded
    }

    fn lock(&self) -> MutexGuard<'_, Table<M>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Send + Sync + 'static> Room<M> {
    /// Makes room for `bytes`: models that were not used for longest are removed,
    /// and requests that use them are waited for.
    ///
    /// # Errors
    /// The model is larger than all memory for models, or requests do not finish.
    pub fn make(&self, bytes: u64) -> Result<(), ErrorReply> {
        let limit = self.registry.max_bytes;
        if bytes > limit {
            return Err(error::model_too_large(bytes, limit));
        }
        let deadline = Instant::now() + ROOM_WAIT;
        loop {
            let mut table = self.registry.lock();
            let (staying, leaving) = table.others(self.load);
            if staying.saturating_add(leaving).saturating_add(bytes) <= limit {
                if let Some(entry) = table.entry_of(self.load) {
                    entry.bytes = bytes;
                }
                return Ok(());
            }
            let too_many = staying.saturating_add(bytes) > limit;
            let removed = too_many.then(|| table.remove_oldest()).flatten();
            drop(table);
            if let Some((directory, _entry)) = removed {
                log::info(format_args!("unloading model \"{directory}\" to make room"));
            } else if Instant::now() < deadline {
                thread::sleep(ROOM_LOOK);
            } else {
                return Err(error::no_room(bytes, limit));
            }
        }
    }

    /// Frees the memory of the loaded model that was not used for longest; false
    /// when there is none, or when requests do not finish with it.
    pub fn free_oldest(&self) -> bool {
        let Some((directory, entry)) = self.registry.lock().remove_oldest() else {
            return false;
        };
        log::info(format_args!(
            "unloading model \"{directory}\": the device is out of memory"
        ));
        let model = entry.model().map(|model| Arc::downgrade(&model));
        drop(entry);
        let deadline = Instant::now() + ROOM_WAIT;
        while model.as_ref().is_some_and(|model| model.strong_count() > 0) {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(ROOM_LOOK);
        }
        true
    }

    /// Removes the entry of the load, if it is still there.
    fn give_up(&self) {
        let mut table = self.registry.lock();
        table.entries.retain(|_, entry| entry.load != self.load);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use sight_protocol::ErrorCode;

    use super::{Registry, Room};
    use crate::error;

    async fn get(
        registry: &Arc<Registry<usize>>,
        revision: &str,
        loads: &Arc<AtomicUsize>,
        fail: bool,
    ) -> Result<usize, String> {
        let loads = Arc::clone(loads);
        let load = move |_: &Room<usize>| {
            thread::sleep(Duration::from_millis(50));
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
        let registry = Arc::new(Registry::new(0));
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
        let registry = Arc::new(Registry::new(0));
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
        let registry: Arc<Registry<usize>> = Arc::new(Registry::new(0));
        let result = registry.get("m", "a".into(), |_| panic!("planned")).await;
        assert!(result.is_err());
        let again = registry.get("m", "a".into(), |_| Ok(3)).await;
        assert_eq!(*again.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_changed_or_removed_model_is_loaded_again() {
        let registry = Arc::new(Registry::new(0));
        let loads = Arc::new(AtomicUsize::new(0));
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(1));
        assert_eq!(get(&registry, "b", &loads, false).await, Ok(2));
        registry.remove("model");
        assert!(registry.loaded().is_empty());
        assert_eq!(get(&registry, "b", &loads, false).await, Ok(3));
    }

    #[tokio::test]
    async fn a_load_outlives_the_one_who_asked() {
        let registry = Arc::new(Registry::new(0));
        let loads = Arc::new(AtomicUsize::new(0));
        let asked = get(&registry, "a", &loads, false);
        let gone = tokio::time::timeout(Duration::from_millis(10), asked).await;
        assert!(gone.is_err());
        assert_eq!(get(&registry, "a", &loads, false).await, Ok(1));
    }

    /// Gets a model that takes so many bytes.
    async fn get_sized(
        registry: &Arc<Registry<String>>,
        name: &str,
        bytes: u64,
    ) -> Result<Arc<String>, ErrorCode> {
        let content = name.to_owned();
        let load = move |room: &Room<String>| room.make(bytes).map(|()| content);
        let model = registry.get(name, "a".into(), load).await;
        model.map_err(|error| error.code)
    }

    fn names(registry: &Registry<String>) -> Vec<String> {
        let loaded = registry.loaded().into_iter();
        loaded.map(|loaded| loaded.directory).collect()
    }

    #[tokio::test]
    async fn what_was_not_used_for_longest_makes_room() {
        let registry = Arc::new(Registry::new(100));
        for name in ["a", "b", "c"] {
            get_sized(&registry, name, 30).await.unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(names(&registry), ["a", "b", "c"]);
        get_sized(&registry, "a", 30).await.unwrap();
        get_sized(&registry, "d", 40).await.unwrap();
        assert_eq!(names(&registry), ["a", "c", "d"], "b was used before c");
        get_sized(&registry, "e", 100).await.unwrap();
        assert_eq!(names(&registry), ["e"]);
        let refused = get_sized(&registry, "f", 101).await;
        assert_eq!(refused.unwrap_err(), ErrorCode::OutOfDeviceMemory);
        assert_eq!(names(&registry), ["e"], "nothing leaves in vain");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_load_waits_for_the_requests_of_models_that_make_room() {
        let registry = Arc::new(Registry::new(100));
        let in_use = get_sized(&registry, "a", 60).await.unwrap();
        let other = Arc::clone(&registry);
        let load = tokio::spawn(async move { get_sized(&other, "b", 60).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!load.is_finished());
        assert!(names(&registry).is_empty(), "no new request gets it");
        assert_eq!(*in_use, "a");
        drop(in_use);
        load.await.unwrap().unwrap();
        assert_eq!(names(&registry), ["b"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_device_without_memory_frees_the_oldest() {
        let registry = Arc::new(Registry::new(0));
        get_sized(&registry, "a", 1).await.unwrap();
        thread::sleep(Duration::from_millis(2));
        get_sized(&registry, "b", 1).await.unwrap();
        let load = |room: &Room<String>| {
            assert!(room.free_oldest());
            Ok("c".to_owned())
        };
        registry.get("c", "a".into(), load).await.unwrap();
        assert_eq!(names(&registry), ["b", "c"]);
        let alone = Arc::new(Registry::new(0));
        let load = |room: &Room<String>| Ok(room.free_oldest().to_string());
        assert_eq!(*alone.get("x", "a".into(), load).await.unwrap(), "false");
    }
}
