//! Requests of a backend to the server, which is started if it does not run.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sight_protocol::{ErrorCode, Request, Response, encode};

use super::connection::{Connection, ExchangeError, Watch};
use super::files::{self, ServerState};
use super::supervisor;
use super::wait::{Until, Woken, wait};
use crate::error::{SqlError, SqlState};
use crate::gucs;

/// Between attempts to reach a server that is starting.
const RETRY: Duration = Duration::from_millis(10);
/// Time that PostgreSQL gets to start a supervisor before it is asked again.
const SUPERVISOR_START: Duration = Duration::from_secs(5);
/// Longest wait for the reason of a server's end.
const REASON: Duration = Duration::from_secs(1);

thread_local! {
    /// The connection kept between requests. It is taken out while a request
    /// runs, so that one cut short never serves another.
    static IDLE: RefCell<Option<Connection>> = const { RefCell::new(None) };
}

/// Sends a request, starting the server if need be, and returns its answer
/// (never [`Response::Error`]) with the body.
///
/// # Errors
/// What the server answers; that it cannot be started or was lost; a timeout.
/// A cancel of the query unwinds from here as PostgreSQL's error.
pub fn request(request: &Request, body: &[&[u8]]) -> Result<(Response, Bytes), SqlError> {
    request_watched(request, body, None)
}

/// The same, with something to do while the answer takes its time.
///
/// # Errors
/// See [`request`].
pub fn request_watched(
    request: &Request,
    body: &[&[u8]],
    mut watch: Option<&mut Watch>,
) -> Result<(Response, Bytes), SqlError> {
    let frame = encode(request, body)?;
    let deadline = gucs::request_timeout().map(|timeout| Instant::now() + timeout);
    let mut start_deadline = Instant::now() + gucs::start_timeout();
    loop {
        let mut connection = connect(start_deadline)?;
        let asked = Instant::now();
        let exchanged = connection.exchange(&frame, deadline, watch.as_deref_mut());
        // A server was there: that time does not count as waiting for one.
        start_deadline += asked.elapsed();
        let answer = match exchanged {
            Ok(answer) => answer,
            Err(ExchangeError::Failed(error)) => return Err(error),
            Err(ExchangeError::Lost(detail)) => return Err(lost(&connection, &detail)),
            Err(ExchangeError::NotTaken) if Instant::now() < start_deadline => {
                wait(Until::Elapsed, Some(start_deadline), RETRY);
                continue;
            }
            Err(ExchangeError::NotTaken) => return Err(with_last_error(unavailable())),
        };
        match answer.message()? {
            // It was about to end (idle, or restarted by a reload): nothing of
            // the request has been done, and the next server takes it.
            Response::Error(reply)
                if reply.code == ErrorCode::ShuttingDown && Instant::now() < start_deadline =>
            {
                drop(connection);
                wait(Until::Elapsed, Some(start_deadline), RETRY);
            }
            Response::Error(reply) => {
                keep(connection);
                return Err(reply.into());
            }
            response => {
                keep(connection);
                return Ok((response, answer.body));
            }
        }
    }
}

/// Asks a server that runs already; `None` when there is none. Starts nothing.
pub fn request_if_running(request: &Request) -> Result<Option<Response>, SqlError> {
    let Ok(mut connection) = Connection::open() else {
        return Ok(None);
    };
    let deadline = Instant::now() + gucs::start_timeout();
    match connection.exchange(&encode(request, &[])?, Some(deadline), None) {
        Ok(answer) => match answer.message()? {
            Response::Error(reply) if reply.code == ErrorCode::ShuttingDown => Ok(None),
            Response::Error(reply) => Err(reply.into()),
            response => Ok(Some(response)),
        },
        Err(ExchangeError::Lost(_) | ExchangeError::NotTaken) => Ok(None),
        Err(ExchangeError::Failed(error)) => Err(error),
    }
}

/// The error of an answer that does not fit its question.
pub fn unexpected() -> SqlError {
    SqlError::new(
        SqlState::PROTOCOL_VIOLATION,
        "model server broke the protocol",
    )
    .detail("The answer is of another kind than the request.")
}

fn keep(connection: Connection) {
    IDLE.with(|idle| *idle.borrow_mut() = Some(connection));
}

fn connect(deadline: Instant) -> Result<Connection, SqlError> {
    let kept = IDLE.with(|idle| idle.borrow_mut().take());
    if let Some(connection) = kept.filter(|connection| !connection.is_stale()) {
        return Ok(connection);
    }
    let mut starter = Starter::default();
    loop {
        match Connection::open() {
            Ok(connection) => return Ok(connection),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                starter.ensure_supervisor()?;
                fail_if_down_for_longer_than(deadline)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                return Err(unavailable().detail(format!("The socket cannot be reached: {error}.")));
            }
        }
        if wait(Until::Elapsed, Some(deadline), RETRY) == Woken::TimedOut {
            return Err(with_last_error(unavailable()));
        }
    }
}

/// What a backend has done to get a supervisor started.
#[derive(Default)]
struct Starter {
    /// Held by the one of all waiting backends that asks for a supervisor.
    lock: Option<File>,
    asked: Option<Instant>,
}

impl Starter {
    /// Has a supervisor started unless one lives or another backend sees to it.
    fn ensure_supervisor(&mut self) -> Result<(), SqlError> {
        if files::supervisor_is_running() {
            self.lock = None;
            return Ok(());
        }
        if self.lock.is_none() {
            self.asked = None;
            self.lock = files::lock_start().map_err(|error| {
                unavailable().detail(format!("The run directory cannot be used: {error}."))
            })?;
        }
        let due = self
            .asked
            .is_none_or(|asked| asked.elapsed() >= SUPERVISOR_START);
        // Looked at again, since the last holder of the lock may have been
        // successful in between.
        if self.lock.is_some() && due && !files::supervisor_is_running() {
            supervisor::start()?;
            self.asked = Some(Instant::now());
        }
        Ok(())
    }
}

/// A server that backs off for longer than the caller would wait is down.
fn fail_if_down_for_longer_than(deadline: Instant) -> Result<(), SqlError> {
    let retry_at_ms = files::read_state()
        .filter(|state| state.state == ServerState::Restarting)
        .and_then(|state| state.retry_at_ms);
    let Some(retry_at_ms) = retry_at_ms.filter(|_| files::supervisor_is_running()) else {
        return Ok(());
    };
    let left = Duration::from_millis(retry_at_ms.saturating_sub(files::now_ms()));
    if Instant::now() + left > deadline {
        return Err(with_last_error(unavailable()));
    }
    Ok(())
}

fn unavailable() -> SqlError {
    SqlError::new(
        SqlState::SERVER_UNAVAILABLE,
        "model server is not available",
    )
    .hint(
        "The server's log has the reason; sight_server_status shows its state. \
         pg_sight.start_timeout bounds the wait.",
    )
}

fn with_last_error(error: SqlError) -> SqlError {
    match files::read_state().and_then(|state| state.last_error) {
        Some(last) => error.detail(format!("Its last error: {last}")),
        None => error,
    }
}

/// The error of a request whose server is gone, with the reason if that is known soon.
fn lost(connection: &Connection, detail: &str) -> SqlError {
    let reason = reason_of_end(connection.server_pid());
    let detail = match reason {
        Some(reason) => format!("{detail} Reason: {reason}"),
        None => detail.to_owned(),
    };
    SqlError::new(
        SqlState::SERVER_LOST,
        "model server was lost while it worked on the request",
    )
    .detail(detail)
    .hint("It is started again by the next call.")
}

/// What the supervisor says of the end of a server, which it learns a moment after us.
fn reason_of_end(server: Option<u32>) -> Option<String> {
    let deadline = Instant::now() + REASON;
    loop {
        let state = files::read_state()?;
        if state.pid != server {
            return state.last_error;
        }
        if wait(Until::Elapsed, Some(deadline), RETRY) == Woken::TimedOut {
            return None;
        }
    }
}
