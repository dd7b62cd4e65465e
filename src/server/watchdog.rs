//! Sees whether the server still gets on with its work. A process that hangs, or a
//! model whose device does, would otherwise keep all sessions waiting.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sight_protocol::{FrameError, Request, encode};

use super::connection::Connection;
use crate::gucs;

/// Between looks for an answer.
const LOOK: Duration = Duration::from_millis(500);
/// The longest pause where nothing is due.
const IDLE: Duration = Duration::from_secs(10);

/// Watches one server, from its start.
pub struct Watchdog {
    request: Bytes,
    /// When the last probe was answered, or the server was started.
    well: Instant,
    probe: Option<Probe>,
}

/// A probe that is not answered yet.
struct Probe {
    asked: Instant,
    /// None where the server cannot be reached.
    connection: Option<Connection>,
}

impl Watchdog {
    pub fn new() -> Result<Self, FrameError> {
        Ok(Self {
            request: encode(&Request::Probe, &[])?,
            well: Instant::now(),
            probe: None,
        })
    }

    /// The time until it has something to look at.
    pub fn pause(&self) -> Duration {
        match (&self.probe, gucs::watchdog_interval()) {
            (Some(_), _) => LOOK,
            (None, Some(interval)) => interval.saturating_sub(self.well.elapsed()).min(IDLE),
            (None, None) => IDLE,
        }
    }

    /// Asks the server when that is due, and looks for its answer. The reason to end
    /// it, when there is none for too long.
    pub fn look(&mut self) -> Option<String> {
        let Some(interval) = gucs::watchdog_interval() else {
            self.probe = None;
            self.well = Instant::now();
            return None;
        };
        if self.probe.is_none() && self.well.elapsed() >= interval {
            self.probe = Some(Probe {
                asked: Instant::now(),
                connection: None,
            });
        }
        let probe = self.probe.as_mut()?;
        if probe.is_answered(&self.request) {
            self.probe = None;
            self.well = Instant::now();
            return None;
        }
        let waited = probe.asked.elapsed();
        let too_long = gucs::watchdog_timeout().is_some_and(|timeout| waited >= timeout);
        too_long.then(|| {
            format!(
                "it hung: for {} seconds it did not get on (pg_sight.watchdog_timeout)",
                waited.as_secs()
            )
        })
    }
}

impl Probe {
    /// Any answer will do: a server that is about to end, or of another release, is none
    /// that hangs.
    fn is_answered(&mut self, request: &Bytes) -> bool {
        if self.connection.is_none() {
            self.connection = Connection::open().ok();
            if let Some(connection) = &mut self.connection
                && connection.ask(request).is_err()
            {
                self.connection = None;
            }
        }
        let Some(connection) = &mut self.connection else {
            return false;
        };
        match connection.poll() {
            Ok(answer) => answer.is_some(),
            Err(_) => {
                self.connection = None;
                false
            }
        }
    }
}
