//! The server as a child process of the supervisor.
//!
//! Its standard input carries the configuration and then stays open: when the
//! supervisor ends in whatever way, the server reads the end of it and exits.
//! Its standard error carries log lines, and its end says that it is gone.

use std::ffi::CStr;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use sight_protocol::ServerConfig;

use super::wait::{Until, wait};

const PROGRAM: &str = "pg_sight_server";
/// A log line is cut here, so that a server gone wild cannot fill our memory.
const LONGEST_LINE_BYTES: usize = 64 * 1024;
/// How long a killed server may take to end.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// The line with which the server says that it listens.
const READY: &str = "ready";

/// What happened to the server.
pub enum Event {
    /// It listens.
    Ready,
    /// It logged an error.
    Error(String),
    /// Time passed, or it logged something else.
    Nothing,
    /// It ended: as it should, or with this reason.
    Exited(Option<String>),
}

pub struct ServerProcess {
    child: Child,
    stderr: ChildStderr,
    /// What has been read of a line.
    line: Vec<u8>,
    at_end: bool,
}

unsafe extern "C" {
    /// Path of the running postgres executable.
    static my_exec_path: [std::ffi::c_char; pg_sys::MAXPGPATH as usize];
    /// PostgreSQL's package library directory.
    static pkglib_path: [std::ffi::c_char; pg_sys::MAXPGPATH as usize];
}

/// The server's executable, in PostgreSQL's bindir or beside the library: never
/// named by a setting, which could name any program.
fn find_program() -> Result<PathBuf, String> {
    // SAFETY: PostgreSQL fills both with NUL-terminated paths before any
    // library is loaded, and never changes them.
    let (executable, libraries) = unsafe {
        (
            CStr::from_ptr((&raw const my_exec_path).cast()),
            CStr::from_ptr((&raw const pkglib_path).cast()),
        )
    };
    let executable = PathBuf::from(executable.to_string_lossy().into_owned());
    let libraries = PathBuf::from(libraries.to_string_lossy().into_owned());
    let directories = [executable.parent().unwrap_or(Path::new("/")), &libraries];
    directories
        .iter()
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
        .ok_or_else(|| {
            let [bin, lib] = directories.map(Path::display);
            format!("program \"{PROGRAM}\" is neither in \"{bin}\" nor in \"{lib}\"")
        })
}

impl ServerProcess {
    /// Starts the server in the data directory.
    ///
    /// # Errors
    /// Why it could not be started, as a text for the log.
    pub fn spawn(configuration: &ServerConfig) -> Result<Self, String> {
        let program = find_program()?;
        let mut command = Command::new(&program);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // SAFETY: the closure only makes one system call, which is safe between
        // fork and exec.
        unsafe {
            command.pre_exec(|| {
                // PostgreSQL's sockets and files are none of the server's.
                let close_on_exec = libc::CLOSE_RANGE_CLOEXEC;
                libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, close_on_exec);
                Ok(())
            });
        }
        let failed =
            |error: io::Error| format!("could not start \"{}\": {error}", program.display());
        let mut child = command.spawn().map_err(failed)?;
        let stderr = child.stderr.take().expect("stderr was asked to be a pipe");
        let started = set_nonblocking(&stderr).and_then(|()| {
            let mut line = serde_json::to_vec(configuration)?;
            line.push(b'\n');
            // Less than a pipe holds, so this does not wait.
            child
                .stdin
                .as_mut()
                .expect("stdin was asked to be a pipe")
                .write_all(&line)
        });
        let mut server = Self {
            child,
            stderr,
            line: Vec::new(),
            at_end: false,
        };
        match started {
            Ok(()) => Ok(server),
            Err(error) => {
                server.stop(Duration::ZERO);
                Err(failed(error))
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next event, at most for `pause`; relays log lines.
    pub fn next_event(&mut self, pause: Duration) -> Event {
        if let Some(line) = self.take_line() {
            return relay(&line);
        }
        if self.at_end {
            return self.reap();
        }
        let mut buffer = [0u8; 4096];
        match self.stderr.read(&mut buffer) {
            Ok(0) => self.at_end = true,
            Ok(count) => self.line.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait(Until::Readable(self.stderr.as_raw_fd()), None, pause);
            }
            Err(_) => self.at_end = true,
        }
        Event::Nothing
    }

    fn take_line(&mut self) -> Option<String> {
        let newline = self.line.iter().position(|byte| *byte == b'\n');
        let end = match newline {
            Some(newline) => newline + 1,
            None if self.line.len() >= LONGEST_LINE_BYTES || self.at_end => self.line.len(),
            None => return None,
        };
        if end == 0 {
            return None;
        }
        let line: Vec<u8> = self.line.drain(..end).collect();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// The exit status. The server closes its standard error only by ending,
    /// so this does not wait for long; one that lives on is killed.
    fn reap(&mut self) -> Event {
        let until = Instant::now() + Duration::from_secs(1);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Event::Exited(failure(status)),
                Ok(None) if Instant::now() < until => {
                    wait(Until::Elapsed, None, Duration::from_millis(10));
                }
                Ok(None) => {
                    let _ = self.child.kill();
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(error) => return Event::Exited(Some(format!("it cannot be reaped: {error}"))),
            }
        }
    }

    /// Asks the server to end and kills it when it has not done so in time.
    pub fn stop(&mut self, grace: Duration) {
        let until = Instant::now() + grace;
        // SAFETY: the process is our child and not reaped: its id is its own.
        unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        while Instant::now() < until {
            match self.next_event(Duration::from_millis(100)) {
                Event::Exited(_) => return,
                Event::Ready | Event::Error(_) | Event::Nothing => {}
            }
        }
        self.kill();
    }

    /// Kills the server. One that the kernel cannot end, because a driver holds it, is
    /// not waited for for ever: its lock keeps others from starting, and they say so.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let until = Instant::now() + KILL_WAIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for ServerProcess {
    /// Reached with a live child only when an error unwinds the supervisor.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
    }
}

fn set_nonblocking(stderr: &ChildStderr) -> io::Result<()> {
    // SAFETY: the descriptor is open; only its flags change.
    let set = unsafe { libc::fcntl(stderr.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Why the server ended, unless it did as it should.
fn failure(status: ExitStatus) -> Option<String> {
    if status.success() {
        return None;
    }
    Some(match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("it was terminated by signal {signal}"),
        (Some(code), None) => format!("it exited with status {code}"),
        (None, None) => "it ended for an unknown reason".into(),
    })
}

/// Writes a line of the server's into PostgreSQL's log at the level it names.
fn relay(line: &str) -> Event {
    let (level, text) = line.split_once(": ").unwrap_or(("WARNING", line));
    match level {
        "DEBUG" => pgrx::debug1!("pg_sight server: {text}"),
        "INFO" => pgrx::log!("pg_sight server: {text}"),
        // An ERROR of ours would end the supervisor, so it is logged as a warning.
        "ERROR" => pgrx::warning!("pg_sight server: {text}"),
        "WARNING" => pgrx::warning!("pg_sight server: {text}"),
        _ => pgrx::warning!("pg_sight server: {line}"),
    }
    match (level, text) {
        ("INFO", READY) => Event::Ready,
        ("ERROR", _) => Event::Error(text.to_owned()),
        _ => Event::Nothing,
    }
}
