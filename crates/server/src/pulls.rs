//! Downloads of models. Each has a thread of its own: it writes files, and must
//! not keep the threads that serve sockets from their work.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use sight_hub::{HubConfig, Phase, Progress};
use sight_protocol::{ErrorReply, PullPhase, PullProgress, PullRequest, PulledModel};
use tokio::sync::oneshot;

use crate::error;
use crate::log;
use crate::models::model_info;

/// A download that runs.
struct Running {
    request: PullRequest,
    progress: Arc<Progress>,
}

#[derive(Default)]
struct Table {
    next: u64,
    running: BTreeMap<u64, Running>,
}

/// The downloads that run.
#[derive(Default)]
pub struct Pulls(Arc<Mutex<Table>>);

fn locked(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a download out of the table, however it ends.
struct Entry {
    table: Arc<Mutex<Table>>,
    number: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        locked(&self.table).running.remove(&self.number);
    }
}

impl Pulls {
    /// How far the downloads are, in the order in which they began.
    pub fn progress(&self) -> Vec<PullProgress> {
        let table = locked(&self.0);
        let running = table.running.values();
        running
            .map(|Running { request, progress }| progress_of(request, progress))
            .collect()
    }

    /// Downloads a model and looks at it. Dropping the future ends the download.
    pub async fn run(&self, request: PullRequest) -> Result<PulledModel, ErrorReply> {
        let progress = Arc::new(Progress::default());
        let _entry = self.enter(&request, &progress);
        // The thread sees that the future is gone by the end of this channel.
        let (_asks, gone) = oneshot::channel();
        let (sender, outcome) = oneshot::channel();
        let work = move || {
            let result = error::guard(|| match pull_until(gone, &request, &progress) {
                Ok(Some(result)) => result,
                Ok(None) => Err(error::shutting_down()),
                Err(cause) => Err(no_thread(&cause)),
            });
            // Nobody may be left to hear it.
            let _ = sender.send(result);
        };
        let started = thread::Builder::new().name("pull".into()).spawn(work);
        started.map_err(|cause| no_thread(&cause))?;
        outcome
            .await
            .unwrap_or_else(|_| Err(error::internal("the download was abandoned")))
    }

    fn enter(&self, request: &PullRequest, progress: &Arc<Progress>) -> Entry {
        let mut table = locked(&self.0);
        let number = table.next;
        table.next += 1;
        let running = Running {
            request: request.clone(),
            progress: Arc::clone(progress),
        };
        table.running.insert(number, running);
        Entry {
            table: Arc::clone(&self.0),
            number,
        }
    }
}

fn no_thread(cause: &io::Error) -> ErrorReply {
    error::internal(format!("could not start the thread of a download: {cause}"))
}

/// Pulls until it is done, or until `gone` ends: then the result is `None`.
fn pull_until(
    gone: oneshot::Receiver<()>,
    request: &PullRequest,
    progress: &Progress,
) -> io::Result<Option<Result<PulledModel, ErrorReply>>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(async {
        tokio::select! {
            _ = gone => None,
            result = pull(request, progress) => Some(result),
        }
    });
    // Dropping it would wait for a look-up of the hub's name.
    runtime.shutdown_background();
    Ok(result)
}

async fn pull(request: &PullRequest, progress: &Progress) -> Result<PulledModel, ErrorReply> {
    let PullRequest {
        repository,
        revision,
        ..
    } = request;
    let home = request.home.as_deref().map(Path::new);
    let config = HubConfig::new(request.endpoint.as_deref(), home, |name| {
        std::env::var(name).ok()
    });
    let config = config.map_err(error::from_hub)?;
    log::info(format_args!(
        "pulling revision \"{revision}\" of model \"{repository}\""
    ));
    let pulled = sight_hub::pull(&config, repository, revision, progress).await;
    let pulled = pulled.map_err(error::from_hub)?;
    progress.enter(Phase::Inspecting);
    let summary = sight_models::inspect(&pulled.directory).map_err(error::from_model)?;
    let directory = pulled.directory.into_os_string().into_string();
    Ok(PulledModel {
        directory: directory.map_err(|_| error::internal("the cache's path is not UTF-8"))?,
        commit: pulled.commit,
        info: model_info(summary),
    })
}

fn progress_of(request: &PullRequest, progress: &Progress) -> PullProgress {
    let state = progress.state();
    PullProgress {
        requester: request.requester,
        repository: request.repository.clone(),
        revision: request.revision.clone(),
        phase: match state.phase {
            Phase::Resolving => PullPhase::Resolving,
            Phase::Waiting => PullPhase::Waiting,
            Phase::Downloading => PullPhase::Downloading,
            Phase::Inspecting => PullPhase::Inspecting,
        },
        file: state.file,
        files_done: state.files_done,
        files_total: state.files_total,
        bytes_done: state.bytes_done,
        bytes_total: state.bytes_total,
    }
}
