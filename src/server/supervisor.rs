//! The background worker that runs the model server: one per cluster, started
//! by the first call that needs the server, or when PostgreSQL starts if the
//! library is preloaded.
//!
//! The server is a child process and not the worker itself, because a worker
//! is attached to shared memory: if it were killed (out of memory, a fault in
//! a driver) PostgreSQL would restart every session.

use std::ffi::c_int;
use std::time::{Duration, Instant};

use pgrx::bgworkers::BackgroundWorkerBuilder;
use pgrx::{pg_guard, pg_sys};
use sight_protocol::ServerConfig;

use super::files::{self, ServerState, SupervisorState};
use super::process::{Event, ServerProcess};
use super::watchdog::Watchdog;
use crate::error::{SqlError, SqlState};
use crate::gucs;

const WORKER_NAME: &str = "pg_sight supervisor";
const WORKER_FUNCTION: &str = "pg_sight_supervisor_main";
/// Time the server gets to end by itself; more than the five seconds in
/// which it finishes what it works on.
const STOP_GRACE: Duration = Duration::from_secs(8);
/// A server that ran for so long is started again at once after a failure.
const STABLE: Duration = Duration::from_secs(10);
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Between looks for signals that came while the latch was not waited on.
const PAUSE: Duration = Duration::from_secs(10);

unsafe extern "C-unwind" {
    /// Set by PostgreSQL's handler of SIGHUP.
    static mut ConfigReloadPending: c_int;
    /// Set by PostgreSQL's handler of SIGTERM.
    static mut ShutdownRequestPending: c_int;

    // pgrx's bindings of these are Rust functions, which cannot be handlers.
    fn SignalHandlerForConfigReload(signal: c_int);
    fn SignalHandlerForShutdownRequest(signal: c_int);
}

fn worker() -> BackgroundWorkerBuilder {
    BackgroundWorkerBuilder::new(WORKER_NAME)
        .set_type(WORKER_NAME)
        .set_library("pg_sight")
        .set_function(WORKER_FUNCTION)
}

/// Registers the supervisor with the postmaster when the library is preloaded,
/// so that the server is warm before the first call. Otherwise does nothing.
pub fn register_preloaded() {
    // SAFETY: a plain flag of PostgreSQL, read on the main thread.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        worker().load();
    }
}

/// Starts a supervisor. Of several, all but one find the lock taken and end.
///
/// # Errors
/// When no background worker slot is free.
pub fn start() -> Result<(), SqlError> {
    worker().load_dynamic().map(|_| ()).map_err(|_| {
        SqlError::new(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "no background worker slot is free to start the model server",
        )
        .hint("Increase max_worker_processes.")
    })
}

/// Entry point of the worker.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn pg_sight_supervisor_main(_argument: pg_sys::Datum) {
    attach_signal_handlers();
    if let Err(error) = files::create_run_directory() {
        pgrx::warning!(
            "could not create directory \"{}\": {error}",
            files::RUN_DIRECTORY
        );
        return;
    }
    match files::lock_supervisor() {
        Ok(Some(_lock)) => Supervisor::new().supervise(),
        Ok(None) => {}
        Err(error) => pgrx::warning!("could not lock the supervisor's file: {error}"),
    }
}

fn attach_signal_handlers() {
    // SAFETY: installs PostgreSQL's own handlers, which only set a flag and the
    // latch; signals are blocked until the last call.
    unsafe {
        #[cfg(feature = "pg18")]
        {
            pg_sys::pqsignal_be(libc::SIGHUP, Some(SignalHandlerForConfigReload));
            pg_sys::pqsignal_be(libc::SIGTERM, Some(SignalHandlerForShutdownRequest));
        }
        #[cfg(not(feature = "pg18"))]
        {
            pg_sys::pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
            pg_sys::pqsignal(libc::SIGTERM, Some(SignalHandlerForShutdownRequest));
        }
        pg_sys::BackgroundWorkerUnblockSignals();
    }
}

fn shutdown_requested() -> bool {
    // SAFETY: a flag that a signal handler of this process sets.
    unsafe { std::ptr::read_volatile(&raw const ShutdownRequestPending) != 0 }
}

/// Rereads the configuration after a SIGHUP.
fn reload_if_requested() {
    // SAFETY: the flag is set by a handler of this process; the configuration
    // is read on the main thread, outside the handler.
    unsafe {
        if std::ptr::read_volatile(&raw const ConfigReloadPending) != 0 {
            std::ptr::write_volatile(&raw mut ConfigReloadPending, 0);
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// The server's configuration as the settings are now.
fn configuration() -> ServerConfig {
    ServerConfig {
        socket: files::SOCKET.into(),
        lock_file: files::SERVER_LOCK.into(),
        statistics_file: files::STATISTICS.into(),
        device: gucs::string(&gucs::DEVICE),
        dtype: gucs::string(&gucs::DTYPE),
        load_in_4bit: gucs::LOAD_IN_4BIT.get(),
        threads: gucs::THREADS.get() as u32,
        idle_timeout_ms: gucs::IDLE_TIMEOUT.get() as u64,
        max_queued_requests: gucs::MAX_QUEUED_REQUESTS.get() as u32,
        max_queued_bytes: megabytes(gucs::MAX_QUEUED_SIZE.get()),
        max_batch_tokens: gucs::MAX_BATCH_TOKENS.get() as u32,
        max_batch_images: gucs::MAX_BATCH_IMAGES.get() as u32,
        max_model_bytes: megabytes(gucs::MAX_MODEL_MEMORY.get()),
        embed_cache_bytes: gucs::EMBED_CACHE_SIZE.get() as u64 * 1024,
        preload_models: preload_models(),
        warm_up: gucs::WARM_UP.get(),
        metrics_address: Some(gucs::string(&gucs::METRICS_ADDRESS))
            .filter(|address| !address.is_empty()),
    }
}

fn megabytes(setting: i32) -> u64 {
    setting as u64 * 1024 * 1024
}

fn preload_models() -> Vec<String> {
    gucs::directories(&gucs::PRELOAD_MODELS).unwrap_or_else(|()| {
        pgrx::warning!("pg_sight.preload_models is no list of directories: no model is preloaded");
        Vec::new()
    })
}

/// How one run of the server ended.
enum Ended {
    /// It exited as it should: it was idle.
    Idle,
    /// PostgreSQL shuts down.
    Shutdown,
    /// Its configuration changed.
    Reconfigured,
    Failed(String),
}

struct Supervisor {
    state: SupervisorState,
    /// Failures in a row, for the back-off.
    failures: u32,
}

impl Supervisor {
    fn new() -> Self {
        let state = SupervisorState {
            state: ServerState::Starting,
            pid: None,
            restarts: 0,
            last_error: None,
            retry_at_ms: None,
        };
        Self { state, failures: 0 }
    }

    /// Runs the server until it is idle or PostgreSQL shuts down.
    fn supervise(mut self) {
        loop {
            let started = Instant::now();
            match self.run_server() {
                Ended::Idle | Ended::Shutdown => break,
                Ended::Reconfigured => {}
                Ended::Failed(reason) => {
                    pgrx::warning!("pg_sight server failed: {reason}");
                    self.state.last_error = Some(reason);
                    self.state.restarts += 1;
                    self.failures = if started.elapsed() >= STABLE {
                        0
                    } else {
                        self.failures + 1
                    };
                    if !self.back_off() {
                        break;
                    }
                }
            }
        }
        self.publish(ServerState::Stopped, None);
    }

    fn publish(&mut self, state: ServerState, pid: Option<u32>) {
        self.state.state = state;
        self.state.pid = pid;
        if state != ServerState::Restarting {
            self.state.retry_at_ms = None;
        }
        if let Err(error) = files::write_state(&self.state) {
            pgrx::warning!("could not write the state of the model server: {error}");
        }
    }

    fn run_server(&mut self) -> Ended {
        let configuration = configuration();
        let mut server = match ServerProcess::spawn(&configuration) {
            Ok(server) => server,
            Err(reason) => return Ended::Failed(reason),
        };
        self.publish(ServerState::Starting, Some(server.pid()));
        let mut watchdog = match Watchdog::new() {
            Ok(watchdog) => watchdog,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        let mut last_error = None;
        loop {
            match server.next_event(PAUSE.min(watchdog.pause())) {
                Event::Ready => self.publish(ServerState::Running, Some(server.pid())),
                Event::Error(text) => last_error = Some(text),
                Event::Nothing => {}
                Event::Exited(None) => return Ended::Idle,
                Event::Exited(Some(reason)) => return Ended::Failed(last_error.unwrap_or(reason)),
            }
            if shutdown_requested() {
                server.stop(STOP_GRACE);
                return Ended::Shutdown;
            }
            reload_if_requested();
            if let Some(reason) = watchdog.look() {
                // Told first: those whose requests it has learn of its end at once.
                self.state.last_error = Some(reason.clone());
                self.publish(ServerState::Restarting, None);
                server.kill();
                return Ended::Failed(reason);
            }
            if self::configuration() != configuration {
                pgrx::log!("pg_sight server restarts with changed settings");
                server.stop(STOP_GRACE);
                return Ended::Reconfigured;
            }
        }
    }

    /// Waits before the next attempt; false when PostgreSQL shuts down.
    fn back_off(&mut self) -> bool {
        let Some(doublings) = self.failures.checked_sub(1) else {
            return true;
        };
        let pause = FIRST_BACKOFF
            .saturating_mul(1 << doublings.min(10))
            .min(LONGEST_BACKOFF);
        self.state.retry_at_ms = Some(files::now_ms() + pause.as_millis() as u64);
        self.publish(ServerState::Restarting, None);
        let until = Instant::now() + pause;
        while !shutdown_requested() {
            reload_if_requested();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            super::wait::wait(super::wait::Until::Elapsed, None, left);
        }
        false
    }
}
