//! One connection to the server, with at most one request on it.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sight_protocol::{Frame, FrameDecoder};
use socket2::{Domain, SockAddr, Socket, Type};

use super::files;
use super::wait::{Until, Woken, wait};
use crate::error::{SqlError, SqlState};

/// Between looks while waiting on a socket; the wait itself ends with the event.
const PAUSE: Duration = Duration::from_secs(60);
/// For sending a small request, which a socket's buffer holds.
const ASK: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 64 * 1024;

pub struct Connection {
    socket: Socket,
    decoder: FrameDecoder,
}

/// What a caller does while it waits for an answer.
pub struct Watch<'a> {
    /// Between two looks.
    pub pause: Duration,
    pub look: &'a mut dyn FnMut(),
}

/// Why an exchange failed.
pub enum ExchangeError {
    /// The server ended before it had the whole request: it has not looked at
    /// it, and another one may have it.
    NotTaken,
    /// The server closed the connection or died.
    Lost(String),
    Failed(SqlError),
}

impl Connection {
    /// Connects without waiting.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` when no server listens, `WouldBlock`
    /// when it is too busy to accept.
    pub fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.connect(&SockAddr::unix(files::SOCKET)?)?;
        Ok(Self {
            socket,
            decoder: FrameDecoder::default(),
        })
    }

    /// Whether the server has closed this idle connection, as it does when it
    /// ends.
    pub fn is_stale(&self) -> bool {
        let mut byte = [std::mem::MaybeUninit::uninit()];
        let peeked = self.socket.peek(&mut byte);
        !matches!(peeked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and waits for its answer. A cancel unwinds from here;
    /// dropping the connection is what tells the server.
    pub fn exchange(
        &mut self,
        request: &Bytes,
        deadline: Option<Instant>,
        mut watch: Option<&mut Watch>,
    ) -> Result<Frame, ExchangeError> {
        let sent = self.send(request, deadline)?;
        let pause = watch.as_ref().map_or(PAUSE, |watch| watch.pause);
        loop {
            if let Some(frame) = self
                .decoder
                .next_frame()
                .map_err(|error| ExchangeError::Failed(SqlError::of_answer(&error)))?
            {
                return Ok(frame);
            }
            match self.receive(deadline, pause) {
                Err(ExchangeError::Lost(_)) if !sent => return Err(ExchangeError::NotTaken),
                received => received?,
            }
            if let Some(watch) = &mut watch {
                (watch.look)();
            }
        }
    }

    /// Sends a frame; false when the server stopped reading before its end.
    fn send(&mut self, request: &Bytes, deadline: Option<Instant>) -> Result<bool, ExchangeError> {
        let mut sent = 0;
        while sent < request.len() {
            match self.socket.write(&request[sent..]) {
                Ok(count) => sent += count,
                // An answer (a refusal, say) may be waiting: let it be read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(false),
                Err(error) => {
                    let until = Until::Writable(self.socket.as_raw_fd());
                    self.wait_after(error, until, deadline, PAUSE)?;
                }
            }
            pgrx::check_for_interrupts!();
        }
        Ok(true)
    }

    /// Sends a small request whose answer [`Connection::poll`] looks for.
    pub fn ask(&mut self, request: &Bytes) -> Result<(), ExchangeError> {
        let deadline = Some(Instant::now() + ASK);
        if self.send(request, deadline)? {
            Ok(())
        } else {
            Err(ExchangeError::NotTaken)
        }
    }

    /// The answer, if it has arrived. Does not wait.
    pub fn poll(&mut self) -> Result<Option<Frame>, ExchangeError> {
        let mut buffer = [0u8; 4096];
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(ExchangeError::Lost("The connection was closed.".into())),
            Ok(count) => self.decoder.push(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let text = format!("The connection failed: {error}.");
                return Err(ExchangeError::Lost(text));
            }
        }
        let frame = self.decoder.next_frame();
        frame.map_err(|error| ExchangeError::Failed(SqlError::of_answer(&error)))
    }

    /// Process of the server that listened when the connection was made.
    pub fn server_pid(&self) -> Option<u32> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the socket is open; the buffer has the length that is passed.
        let got = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut length,
            )
        };
        u32::try_from(peer.pid).ok().filter(|_| got == 0)
    }

    /// Takes in what has arrived; waits for more, at most for `pause`, if nothing has.
    fn receive(&mut self, deadline: Option<Instant>, pause: Duration) -> Result<(), ExchangeError> {
        let mut buffer = [0u8; READ_BYTES];
        match self.socket.read(&mut buffer) {
            Ok(0) => Err(ExchangeError::Lost("The connection was closed.".into())),
            Ok(count) => {
                self.decoder.push(&buffer[..count]);
                Ok(())
            }
            // Linux resets a Unix socket whose peer closed it with bytes unread,
            // so of our request: a server may be dying while it still seems to listen.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                Err(ExchangeError::NotTaken)
            }
            Err(error) => {
                let until = Until::Readable(self.socket.as_raw_fd());
                self.wait_after(error, until, deadline, pause)
            }
        }
    }

    fn wait_after(
        &self,
        error: io::Error,
        until: Until,
        deadline: Option<Instant>,
        pause: Duration,
    ) -> Result<(), ExchangeError> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => match wait(until, deadline, pause) {
                Woken::Look => Ok(()),
                Woken::TimedOut => Err(ExchangeError::Failed(
                    SqlError::new(SqlState::TIMED_OUT, "request to the model server timed out")
                        .detail("No answer came within pg_sight.request_timeout.")
                        .hint("Raise that setting, or ask for less at once."),
                )),
            },
            _ => Err(ExchangeError::Lost(format!(
                "The connection failed: {error}."
            ))),
        }
    }
}
