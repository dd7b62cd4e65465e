//! The models of the server: from a client's reference to one that is loaded.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sight_models::{
    Captioner, FourBits, Model, ModelError, ModelSummary, OpenedModel, Placement, TextEncoder,
};
use sight_protocol::{
    Architecture, Counter, ErrorCode, ErrorReply, Limits, ModelInfo, ModelRef, ModelTask,
    ServerConfig,
};

use crate::activity::{Activity, Ticket};
use crate::config::batch_bounds;
use crate::error;
use crate::log;
use crate::model_thread::ModelHandle;
use crate::registry::{Loaded, Registry, Room};
use crate::statistics::Statistics;

/// What a look at a model's files may take to be quick.
const QUICK_LOOK: Duration = Duration::from_micros(200);

/// A model that is ready.
pub enum LoadedModel {
    Encoder(ModelHandle<TextEncoder>),
    Captioner(ModelHandle<Captioner>),
}

impl LoadedModel {
    fn task(&self) -> ModelTask {
        match self {
            Self::Encoder(_) => ModelTask::Embed,
            Self::Captioner(_) => ModelTask::Describe,
        }
    }

    fn refuse(&self, error: ErrorReply) {
        match self {
            Self::Encoder(model) => model.queue.refuse(error),
            Self::Captioner(model) => model.queue.refuse(error),
        }
    }

    async fn probe(&self, ticket: &Arc<Ticket>) -> Result<(), ErrorReply> {
        match self {
            Self::Encoder(model) => model.probe(ticket).await,
            Self::Captioner(model) => model.probe(ticket).await,
        }
    }

    async fn warm_up(&self, ticket: &Arc<Ticket>) -> Result<(), ErrorReply> {
        match self {
            Self::Encoder(model) => model.warm_up(ticket).await,
            Self::Captioner(model) => model.warm_up(ticket).await,
        }
    }
}

/// What the loading of a model needs to know.
#[derive(Clone)]
struct Loader {
    place: Placement,
    /// Whether language models are loaded in 4 bits.
    in_4_bits: bool,
    /// Bounds of a batch.
    max_tokens: usize,
    max_images: usize,
    statistics: Arc<Statistics>,
    activity: Arc<Activity>,
}

pub struct Models {
    registry: Arc<Registry<LoadedModel>>,
    loader: Loader,
    warm_up: bool,
    /// The last look at a model's files took no time to speak of: on a local disk it
    /// is a few system calls, and waking another thread for them would take longer. On
    /// a slow one it must not hold up a thread that serves sockets.
    look_is_quick: Arc<AtomicBool>,
}

impl Models {
    pub fn new(
        config: &ServerConfig,
        place: &Placement,
        statistics: &Arc<Statistics>,
        activity: &Arc<Activity>,
    ) -> Self {
        let (max_tokens, max_images) = batch_bounds(config, place.device.is_cpu());
        Self {
            registry: Arc::new(Registry::new(config.max_model_bytes)),
            loader: Loader {
                place: place.clone(),
                in_4_bits: config.load_in_4bit,
                max_tokens,
                max_images,
                statistics: Arc::clone(statistics),
                activity: Arc::clone(activity),
            },
            warm_up: config.warm_up,
            look_is_quick: Arc::default(),
        }
    }

    /// Pictures in a batch.
    pub fn max_images(&self) -> usize {
        self.loader.max_images
    }

    /// The revision of a model's files as they are now.
    pub async fn revision(&self, model: &ModelRef) -> Result<String, ErrorReply> {
        let directory = PathBuf::from(&model.directory);
        let look_is_quick = Arc::clone(&self.look_is_quick);
        let look = move || {
            let begun = Instant::now();
            let revision = sight_models::revision(&directory).map_err(error::from_model);
            look_is_quick.store(begun.elapsed() < QUICK_LOOK, Ordering::Relaxed);
            revision
        };
        if self.look_is_quick.load(Ordering::Relaxed) {
            error::guard(look)
        } else {
            on_blocking_thread(look).await
        }
    }

    /// The model, loaded from its files as they are now.
    pub async fn get(&self, model: &ModelRef) -> Result<Arc<LoadedModel>, ErrorReply> {
        let revision = self.revision(model).await?;
        self.get_revision(model, revision).await
    }

    /// The same where the revision is known.
    pub async fn get_revision(
        &self,
        model: &ModelRef,
        revision: String,
    ) -> Result<Arc<LoadedModel>, ErrorReply> {
        let loader = self.loader.clone();
        let (name, directory) = (model.name.clone(), model.directory.clone());
        let load = move |room: &Room<LoadedModel>| loader.load(&name, &directory, room);
        self.registry.get(&model.directory, revision, load).await
    }

    /// Loads a model ahead of its first use.
    pub async fn load_ahead(
        &self,
        model: &ModelRef,
        ticket: &Arc<Ticket>,
    ) -> Result<(), ErrorReply> {
        let loaded = self.get(model).await?;
        if self.warm_up {
            loaded.warm_up(ticket).await?;
        }
        Ok(())
    }

    /// Loads the models of these directories, one after the other; what is wrong
    /// with one is logged.
    pub async fn preload(&self, directories: &[String], activity: &Arc<Activity>) {
        for directory in directories {
            let model = ModelRef {
                name: directory.clone(),
                directory: directory.clone(),
                limits: Limits {
                    max_text_bytes: 0,
                    max_image_bytes: 0,
                    max_image_pixels: 0,
                },
            };
            if let Err(error) = self.load_ahead(&model, &activity.pass()).await {
                let detail = error.detail.unwrap_or_default();
                log::warning(format_args!(
                    "could not load model \"{directory}\" at the start: {} {detail}",
                    error.message
                ));
            }
        }
    }

    /// Frees a model when its running requests are done.
    pub fn unload(&self, directory: &str) {
        self.registry.remove(directory);
    }

    /// The loaded models, in the order of their directories.
    pub fn loaded(&self) -> Vec<Loaded<LoadedModel>> {
        self.registry.loaded()
    }

    /// Sees whether all loaded models work. Does not return while one hangs; one that
    /// fails is logged, since that is no reason to end the others. At the end of the
    /// server none works any more.
    pub async fn probe(&self, activity: &Arc<Activity>) {
        for loaded in self.loaded() {
            if let Err(error) = loaded.model.probe(&activity.pass()).await
                && error.code != ErrorCode::ShuttingDown
            {
                log::warning(format_args!(
                    "model \"{}\" does not work: {}",
                    loaded.directory, error.message
                ));
            }
        }
    }

    /// Fails what waits for the device.
    pub fn refuse(&self, error: &ErrorReply) {
        for loaded in self.loaded() {
            loaded.model.refuse(error.clone());
        }
    }
}

impl Loader {
    /// Memory that a model takes.
    fn memory_bytes(&self, opened: &OpenedModel) -> u64 {
        if self.in_4_bits {
            opened.memory_bytes_in_4_bits(&self.place)
        } else {
            opened.memory_bytes(&self.place)
        }
    }

    fn read(&self, opened: OpenedModel) -> Result<Model, ModelError> {
        if !self.in_4_bits {
            return opened.load(&self.place);
        }
        let options = FourBits {
            folders: quantized_folders(),
            log: &|line| log::info(format_args!("{line}")),
        };
        opened.load_in_4_bits(&self.place, &options)
    }

    fn load(
        &self,
        name: &str,
        directory: &str,
        room: &Room<LoadedModel>,
    ) -> Result<LoadedModel, ErrorReply> {
        // It may outlive the request that began it, and take longer than the server may be
        // idle.
        let _work = self.activity.begin();
        let begun = Instant::now();
        let model = loop {
            let opened = sight_models::open(Path::new(directory)).map_err(error::from_model)?;
            room.make(self.memory_bytes(&opened))?;
            log::info(format_args!(
                "loading model \"{name}\" from \"{directory}\""
            ));
            match self.read(opened).map_err(error::from_computation) {
                Err(error) if error.code == ErrorCode::OutOfDeviceMemory && room.free_oldest() => {}
                loaded => break loaded?,
            }
        };
        let loaded = match model {
            Model::Encoder(model) => {
                ModelHandle::start(model, self.max_tokens).map(LoadedModel::Encoder)
            }
            Model::Captioner(model) => {
                ModelHandle::start(model, self.max_images).map(LoadedModel::Captioner)
            }
        };
        let loaded = loaded
            .map_err(|cause| error::internal(format!("could not start a model thread: {cause}")))?;
        let counters = self.statistics.of(name, loaded.task());
        counters.add(Counter::Loads, 1);
        counters.add_time(Counter::LoadTime, begun.elapsed());
        Ok(loaded)
    }
}

/// Folders for quantized weights of models whose own directories cannot be written
/// to: `pg_sight` in the cache folder of the user that runs PostgreSQL.
fn quantized_folders() -> Vec<PathBuf> {
    // An empty or relative path means nothing; see the XDG Base Directory Specification.
    let path = |name: &str| env::var_os(name).map(PathBuf::from);
    let cache = path("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    let home = || path("HOME").filter(|path| path.is_absolute());
    let cache = cache.or_else(|| home().map(|home| home.join(".cache")));
    cache
        .map(|cache| cache.join("pg_sight"))
        .into_iter()
        .collect()
}

/// Runs `work`, which reads files or computes, where it may block.
pub async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ErrorReply> + Send + 'static,
) -> Result<T, ErrorReply> {
    tokio::task::spawn_blocking(move || error::guard(work))
        .await
        .unwrap_or_else(|_| Err(error::shutting_down()))
}

/// What a directory holds, without loading it.
pub async fn inspect(model: ModelRef) -> Result<ModelInfo, ErrorReply> {
    on_blocking_thread(move || {
        let summary = sight_models::inspect(Path::new(&model.directory));
        summary.map(model_info).map_err(error::from_model)
    })
    .await
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
            sight_models::Architecture::InstructBlip => Architecture::InstructBlip,
            sight_models::Architecture::MpNet => Architecture::MpNet,
            sight_models::Architecture::Roberta => Architecture::Roberta,
            sight_models::Architecture::XlmRoberta => Architecture::XlmRoberta,
        },
        dimensions: summary
            .dimensions
            .map(|dimensions| u32::try_from(dimensions).unwrap_or(u32::MAX)),
        parameters: summary.parameters,
        revision: summary.revision,
    }
}
