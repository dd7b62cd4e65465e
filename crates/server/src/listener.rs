//! The life of the server: its lock, its socket, and its end.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sight_models::{ModelError, Placement};
use sight_protocol::ServerConfig;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::connection;
use crate::log;
use crate::metrics;
use crate::process;
use crate::service::Service;

/// How long a predecessor may take to give up the lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_RETRY: Duration = Duration::from_millis(50);
/// How long running requests may take to finish after the call to end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted (too many open files).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

#[derive(Debug, Error)]
pub enum ServeError {
    #[error("could not watch for signals")]
    Signals(#[source] io::Error),
    #[error("could not open lock file \"{path}\"")]
    LockFile { path: String, source: io::Error },
    #[error(
        "another model server holds the lock file \"{path}\" for more than {} seconds",
        LOCK_WAIT.as_secs()
    )]
    Locked { path: String },
    #[error("could not open device \"{name}\": {source}")]
    Device { name: String, source: ModelError },
    #[error("could not listen on socket \"{path}\"")]
    Socket { path: String, source: io::Error },
}

/// Why a server ends that was not told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Signal(&'static str),
    Idle,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn watch() -> Result<Self, ServeError> {
        let watch = |kind| signal(kind).map_err(ServeError::Signals);
        Ok(Self {
            terminate: watch(SignalKind::terminate())?,
            interrupt: watch(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.terminate.recv() => End::Signal("SIGTERM"),
            _ = self.interrupt.recv() => End::Signal("SIGINT"),
        }
    }
}

/// Serves until a signal comes or nothing has been asked for long enough.
///
/// # Errors
/// The server could not start.
pub async fn run(config: ServerConfig, threads: usize) -> Result<(), ServeError> {
    let mut signals = Signals::watch()?;
    let _lock = tokio::select! {
        lock = take_lock(&config.lock_file) => lock?,
        _ = signals.next() => return Ok(()),
    };
    let place = open_device(&config).map_err(|source| {
        let name = config.device.clone();
        ServeError::Device { name, source }
    })?;
    let socket = PathBuf::from(&config.socket);
    let listener = listen(&socket).map_err(|source| ServeError::Socket {
        path: config.socket.clone(),
        source,
    })?;
    let service = Arc::new(Service::new(config, threads, place));
    log::info("ready");
    start_beside(&service);

    let mut connections = Connections {
        service: Arc::clone(&service),
        user: process::effective_user(),
        tasks: JoinSet::new(),
    };
    let end = connections.accept_until(&listener, &mut signals).await;
    match end {
        End::Signal(name) => log::info(format_args!("shutting down on {name}")),
        End::Idle => log::info("shutting down after being idle"),
    }
    // New clients find no socket from here on; those that found it in time are
    // let in and told. The lock is still held: the socket is no successor's.
    let _ = std::fs::remove_file(&socket);
    service.begin_shutdown();
    for stream in accept_pending(listener) {
        connections.serve(stream);
    }
    connections.finish().await;
    service.save_statistics();
    Ok(())
}

/// Opens the device of the settings, and logs which one it is.
fn open_device(config: &ServerConfig) -> Result<Placement, ModelError> {
    let place = Placement::open_telling(&config.device, &config.dtype, |reason| {
        let detail = reason.detail.as_deref().unwrap_or_default();
        log::warning(format_args!(
            "computing on the CPU, although this server was built for GPUs: {}: {detail}",
            reason.message
        ));
    })?;
    let memory = place.memory().map_or(String::new(), |memory| {
        format!(" with {} MB of memory", memory.total_bytes >> 20)
    });
    log::info(format_args!(
        "computing on {}{memory} in {}",
        place.device_name(),
        place.dtype_name()
    ));
    Ok(place)
}

/// Starts what goes on beside the connections, until the process ends.
fn start_beside(service: &Arc<Service>) {
    let models = Arc::clone(service);
    tokio::spawn(async move {
        let directories = &models.config.preload_models;
        models.models.preload(directories, &models.activity).await;
    });
    if let Some(address) = service.config.metrics_address.clone() {
        tokio::spawn(metrics::serve(address, Arc::clone(service)));
    }
}

/// The open connections, each with its task.
struct Connections {
    service: Arc<Service>,
    /// The only user who is served.
    user: u32,
    tasks: JoinSet<()>,
}

impl Connections {
    /// Serves connections until it is time to end.
    async fn accept_until(&mut self, listener: &UnixListener, signals: &mut Signals) -> End {
        let service = Arc::clone(&self.service);
        let idle_timeout = service.config.idle_timeout_ms;
        let idle = async {
            if idle_timeout == 0 {
                std::future::pending::<()>().await;
            }
            let timeout = Duration::from_millis(idle_timeout);
            service.activity.idle_for(timeout).await;
        };
        tokio::pin!(idle);
        loop {
            tokio::select! {
                end = signals.next() => return end,
                () = &mut idle => return End::Idle,
                // Forgets a task that has ended; its panic has been logged.
                Some(_) = self.tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => self.serve(stream),
                    Err(error) => {
                        log::warning(format_args!("could not accept a connection: {error}"));
                        tokio::time::sleep(ACCEPT_RETRY).await;
                    }
                },
            }
        }
    }

    fn serve(&mut self, stream: UnixStream) {
        if is_user(&stream, self.user) {
            let service = Arc::clone(&self.service);
            self.tasks.spawn(connection::serve(stream, service));
        } else {
            log::warning("refused a connection of another operating system user");
        }
    }

    /// Waits until all connections have ended, which they do by themselves once
    /// the shutdown has begun and their requests are answered.
    async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(SHUTDOWN_GRACE, all).await.is_err() {
            log::warning(format_args!(
                "requests that still ran after {} seconds were abandoned",
                SHUTDOWN_GRACE.as_secs()
            ));
        }
    }
}

/// Stops listening, and returns the connections that wait to be accepted.
fn accept_pending(listener: UnixListener) -> Vec<UnixStream> {
    // Asked of the operating system: the runtime may not have heard of them yet.
    let Ok(listener) = listener.into_std() else {
        return Vec::new();
    };
    let accepted = std::iter::from_fn(|| listener.accept().ok());
    accepted
        .filter_map(|(stream, _)| {
            stream.set_nonblocking(true).ok()?;
            UnixStream::from_std(stream).ok()
        })
        .collect()
}

fn is_user(stream: &UnixStream, user: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user)
}

/// Takes the lock that makes this the only server; it lasts as long as the
/// file is open. The file names the process for whoever looks.
async fn take_lock(path: &str) -> Result<File, ServeError> {
    let failed = |source| ServeError::LockFile {
        path: path.to_owned(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                tokio::time::sleep(LOCK_RETRY).await;
            }
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(ServeError::Locked { path });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Listens on `path`, in place of a socket that a dead server left there.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        // bind() says what is wrong with anything else.
        Ok(_) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    // The mask of created files has kept others out so far as well.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}
