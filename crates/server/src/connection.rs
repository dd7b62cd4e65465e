//! One connection: a request, its answer, the next request.

use std::io;
use std::net::Shutdown;
use std::sync::Arc;

use bytes::BytesMut;
use sight_protocol::{ErrorReply, Frame, FrameDecoder, FrameError, encode};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error;
use crate::log;
use crate::service::{self, Answer, Service};

/// Room that is made for each read, in bytes.
const READ_BYTES: usize = 64 * 1024;

/// The memory for requests as they were received. Small ones do not count.
pub struct RequestRoom {
    /// A permit is a kilobyte.
    kilobytes: Arc<Semaphore>,
    total: u32,
}

impl RequestRoom {
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / 1024).unwrap_or(u32::MAX).max(1);
        Self {
            kilobytes: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    /// Waits for room, which lasts until it is dropped. A request that is larger than
    /// all of it is taken alone.
    async fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kilobytes = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let kilobytes = kilobytes.min(self.total);
        let semaphore = Arc::clone(&self.kilobytes);
        // It is never closed.
        semaphore.acquire_many_owned(kilobytes).await.ok()
    }
}

/// Why a connection ends before its client closes it.
enum Broken {
    /// Nobody is there to answer to.
    Gone,
    /// The client is told, and not heard again.
    Protocol(ErrorReply),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<FrameError> for Broken {
    fn from(error: FrameError) -> Self {
        Self::Protocol(error::from_frame(&error))
    }
}

/// Serves a connection until either end closes it.
pub async fn serve(mut stream: UnixStream, service: Arc<Service>) {
    let mut decoder = FrameDecoder::default();
    loop {
        let broken = match serve_request(&mut stream, &mut decoder, &service).await {
            Ok(()) => continue,
            Err(broken) => broken,
        };
        if let Broken::Protocol(error) = broken {
            log::warning(format_args!("closing a connection: {}", error.message));
            service.activity.count_failure();
            // The client may be gone, or busy writing what is not read.
            let _ = send(&mut stream, error.into()).await;
        }
        return;
    }
}

async fn serve_request(
    stream: &mut UnixStream,
    decoder: &mut FrameDecoder,
    service: &Arc<Service>,
) -> Result<(), Broken> {
    let (frame, _room) = read_frame(stream, decoder, service).await?;
    let request = service::decode(&frame).map_err(Broken::Protocol)?;
    // Looking at an idle server does not keep it.
    let _work = (!service::only_looks(&request)).then(|| service.activity.begin());
    let answer = tokio::select! {
        biased;
        answer = service.answer(request, frame.body) => answer,
        broken = unexpected_input(stream) => return Err(broken),
    };
    send(stream, answer).await?;
    Ok(())
}

/// Reads the next request. When the server shuts down, what has arrived is still
/// read and the client can send no more: a client whose sending fails knows that
/// its request has not been looked at. The second part is the request's room among
/// those that the server holds.
async fn read_frame(
    stream: &mut UnixStream,
    decoder: &mut FrameDecoder,
    service: &Service,
) -> Result<(Frame, Option<OwnedSemaphorePermit>), Broken> {
    let mut closing = false;
    let mut room = None;
    loop {
        if let Some(frame) = decoder.next_frame()? {
            if !decoder.is_empty() {
                return Err(Broken::Protocol(early_input()));
            }
            // The rest of the buffer would keep the memory of the whole frame
            // for as long as the connection lasts.
            *decoder = FrameDecoder::default();
            return Ok((frame, room));
        }
        if room.is_none()
            && let Some(bytes) = decoder.frame_bytes().filter(|bytes| *bytes > READ_BYTES)
        {
            room = service.room.take(bytes).await;
        }
        let buffer: &mut BytesMut = decoder.buffer_mut();
        buffer.reserve(READ_BYTES);
        tokio::select! {
            biased;
            read = stream.read_buf(buffer) => {
                if read? == 0 {
                    return Err(Broken::Gone);
                }
            }
            () = service.activity.shutdown_begun(), if !closing => {
                SockRef::from(&*stream).shutdown(Shutdown::Read)?;
                closing = true;
            }
        }
    }
}

/// Returns when the client closes the connection, or breaks the protocol,
/// while its request is in work.
async fn unexpected_input(stream: &mut UnixStream) -> Broken {
    let mut byte = [0u8; 1];
    match stream.read(&mut byte).await {
        Ok(0) | Err(_) => Broken::Gone,
        Ok(_) => Broken::Protocol(early_input()),
    }
}

fn early_input() -> ErrorReply {
    error::protocol("client sent more before its request was answered")
}

async fn send(stream: &mut UnixStream, answer: Answer) -> io::Result<()> {
    let frame = encode(&answer.response, &[&answer.body])
        .or_else(|error| encode(&too_large(&error), &[]))
        .map_err(io::Error::other)?;
    drop(answer);
    stream.write_all(&frame).await
}

fn too_large(error: &FrameError) -> sight_protocol::Response {
    let message = format!("answer cannot be sent: {error}");
    sight_protocol::Response::Error(error::internal(message))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::RequestRoom;

    #[tokio::test]
    async fn large_requests_wait_for_each_other() {
        let room = RequestRoom::new(100 * 1024);
        let wait = Duration::from_millis(20);
        let first = room.take(60 * 1024).await;
        assert!(first.is_some());
        assert!(
            tokio::time::timeout(wait, room.take(60 * 1024))
                .await
                .is_err()
        );
        drop(first);
        let all = room.take(1 << 30).await;
        assert!(all.is_some(), "larger than all the room");
        assert!(tokio::time::timeout(wait, room.take(1)).await.is_err());
    }
}
