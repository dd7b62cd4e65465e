//! The run directory: socket, locks and the supervisor's state.
//!
//! All paths are relative: backends and workers run in the data directory, and
//! socket paths are limited to 107 bytes. Base backups leave out what begins with
//! `pgsql_tmp`; pg_rewind does so below a directory only, and would fail on a
//! socket. Hence a place in `base`, beside PostgreSQL's own temporary files.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sight_protocol::Statistics;

pub const RUN_DIRECTORY: &str = "base/pgsql_tmp_pg_sight";
pub const SOCKET: &str = "base/pgsql_tmp_pg_sight/server.sock";
/// Locked by the server process as long as it lives.
pub const SERVER_LOCK: &str = "base/pgsql_tmp_pg_sight/server.lock";
/// Locked by the supervisor as long as it lives: elects one per cluster.
const SUPERVISOR_LOCK: &str = "base/pgsql_tmp_pg_sight/supervisor.lock";
/// Locked by the backend that is having a supervisor started.
const START_LOCK: &str = "base/pgsql_tmp_pg_sight/start.lock";
/// Where the server keeps its statistics while it does not run.
pub const STATISTICS: &str = "base/pgsql_tmp_pg_sight/statistics.json";
const STATE: &str = "base/pgsql_tmp_pg_sight/state.json";
const STATE_NEW: &str = "base/pgsql_tmp_pg_sight/state.json.new";

/// What the supervisor is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerState {
    Stopped,
    Starting,
    Running,
    /// Waiting before another attempt.
    Restarting,
}

impl ServerState {
    /// Name in SQL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
        }
    }
}

/// The supervisor's state, for those who cannot reach the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SupervisorState {
    pub state: ServerState,
    /// Process of the server.
    pub pid: Option<u32>,
    /// Starts after a failure, since the supervisor began.
    pub restarts: u32,
    pub last_error: Option<String>,
    /// When the next attempt is due, in milliseconds since 1970.
    pub retry_at_ms: Option<u64>,
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Creates the run directory, for its owner alone.
pub fn create_run_directory() -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(RUN_DIRECTORY) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Replaces the state in one step.
pub fn write_state(state: &SupervisorState) -> io::Result<()> {
    std::fs::write(STATE_NEW, serde_json::to_vec(state)?)?;
    std::fs::rename(STATE_NEW, STATE)
}

/// The last state written, which is stale when no supervisor runs.
pub fn read_state() -> Option<SupervisorState> {
    serde_json::from_slice(&std::fs::read(STATE).ok()?).ok()
}

/// The statistics that the last server left; `None` where there are none.
pub fn read_statistics() -> Option<Statistics> {
    serde_json::from_slice(&std::fs::read(STATISTICS).ok()?).ok()
}

/// Forgets the statistics that the last server left.
pub fn remove_statistics() -> io::Result<()> {
    match std::fs::remove_file(STATISTICS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

/// Takes the lock of a file; `None` when another holds it. The lock belongs to
/// the open file and ends with it, however the process ends.
fn try_lock(path: &str) -> io::Result<Option<File>> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let lock = whole_file(libc::F_WRLCK);
    // SAFETY: the descriptor is open and the lock description is initialised.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
        return Ok(Some(file));
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(None),
        error => Err(error),
    }
}

/// Elects the supervisor.
pub fn lock_supervisor() -> io::Result<Option<File>> {
    try_lock(SUPERVISOR_LOCK)
}

/// Elects the backend that has a supervisor started: if all that wait for one
/// did, they would take all worker slots.
pub fn lock_start() -> io::Result<Option<File>> {
    create_run_directory()?;
    try_lock(START_LOCK)
}

/// Whether a supervisor is alive. Only looks: never in the way of one that
/// takes the lock at the same moment.
pub fn supervisor_is_running() -> bool {
    let Ok(file) = File::open(SUPERVISOR_LOCK) else {
        return false;
    };
    let mut lock = whole_file(libc::F_WRLCK);
    // SAFETY: the descriptor is open and the lock description is initialised.
    let looked = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) } == 0;
    looked && lock.l_type != libc::F_UNLCK as libc::c_short
}
