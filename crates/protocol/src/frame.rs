//! Frames: a length, a version, a postcard header and a raw body.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Version of the messages. Both ends come from one build; a difference means
/// that a server of another release is still running.
pub const PROTOCOL_VERSION: u16 = 3;

/// The largest frame either end accepts, in bytes, without the length field.
/// One below 1 GiB, PostgreSQL's own limit for a single value.
pub const MAX_FRAME_BYTES: usize = (1 << 30) - 1;

/// Bytes of the length field.
const LENGTH_BYTES: usize = 4;
/// Bytes of version and header length, which follow the length field.
const PREFIX_BYTES: usize = 2 + 4;

/// What can be wrong with a frame. The connection is of no further use after
/// any of these.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("frame of {length} bytes exceeds the limit of {MAX_FRAME_BYTES} bytes")]
    TooLarge { length: usize },
    #[error("frame of {length} bytes is too short")]
    TooShort { length: usize },
    #[error("peer speaks protocol version {theirs}, not {PROTOCOL_VERSION}")]
    Version { theirs: u16 },
    #[error("header of {header} bytes does not fit a frame of {length} bytes")]
    HeaderLength { header: usize, length: usize },
    #[error("message cannot be decoded: {0}")]
    Message(String),
}

/// One received frame: the encoded message and the raw bytes that go with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    header: Bytes,
    /// Pictures or tensors, as the message describes them.
    pub body: Bytes,
}

impl Frame {
    /// Decodes the message of this frame.
    ///
    /// # Errors
    /// [`FrameError::Message`] when the header is not exactly one `M`.
    pub fn message<M: DeserializeOwned>(&self) -> Result<M, FrameError> {
        match postcard::take_from_bytes::<M>(&self.header) {
            Ok((message, [])) => Ok(message),
            Ok((_, rest)) => Err(FrameError::Message(format!(
                "{} trailing bytes",
                rest.len()
            ))),
            Err(error) => Err(FrameError::Message(error.to_string())),
        }
    }
}

/// Encodes a message and the parts of its body into one frame.
///
/// # Errors
/// [`FrameError::TooLarge`] when the frame would exceed [`MAX_FRAME_BYTES`].
pub fn encode<M: Serialize>(message: &M, body: &[&[u8]]) -> Result<Bytes, FrameError> {
    let header =
        postcard::to_stdvec(message).map_err(|error| FrameError::Message(error.to_string()))?;
    let body_bytes: usize = body.iter().map(|part| part.len()).sum();
    let length = PREFIX_BYTES + header.len() + body_bytes;
    if length > MAX_FRAME_BYTES {
        return Err(FrameError::TooLarge { length });
    }
    let mut out = BytesMut::with_capacity(LENGTH_BYTES + length);
    out.put_u32_le(length as u32);
    out.put_u16_le(PROTOCOL_VERSION);
    out.put_u32_le(header.len() as u32);
    out.put_slice(&header);
    for part in body {
        out.put_slice(part);
    }
    Ok(out.freeze())
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer to read into, for callers that read without a copy.
    pub fn buffer_mut(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// True when no part of a frame is waiting.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Length of the frame that is arriving, in bytes without the length field;
    /// `None` until it has arrived.
    pub fn frame_bytes(&self) -> Option<usize> {
        let length = self.buffer.first_chunk::<LENGTH_BYTES>()?;
        Some(u32::from_le_bytes(*length) as usize)
    }

    /// Takes the next complete frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// Any [`FrameError`] but `Message`; lengths are checked before anything
    /// is allocated for them.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(length) = self.frame_bytes() else {
            return Ok(None);
        };
        if length > MAX_FRAME_BYTES {
            return Err(FrameError::TooLarge { length });
        }
        if length < PREFIX_BYTES {
            return Err(FrameError::TooShort { length });
        }
        if let Some(version) = self.buffer.get(LENGTH_BYTES..LENGTH_BYTES + 2) {
            let theirs = u16::from_le_bytes([version[0], version[1]]);
            if theirs != PROTOCOL_VERSION {
                return Err(FrameError::Version { theirs });
            }
        }
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(LENGTH_BYTES + length).freeze();
        frame.advance(LENGTH_BYTES + 2);
        let header = frame.get_u32_le() as usize;
        if header > frame.len() {
            return Err(FrameError::HeaderLength { header, length });
        }
        let header = frame.split_to(header);
        Ok(Some(Frame {
            header,
            body: frame,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameDecoder, FrameError, MAX_FRAME_BYTES, PROTOCOL_VERSION, encode};

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let bytes = encode(&("hello", 7u32), &[b"abc", b"", b"de"]).unwrap();
        for cut in 0..bytes.len() {
            let mut decoder = FrameDecoder::default();
            decoder.push(&bytes[..cut]);
            assert_eq!(decoder.next_frame(), Ok(None), "cut at {cut}");
            decoder.push(&bytes[cut..]);
            decoder.push(&bytes);
            for _ in 0..2 {
                let frame = decoder.next_frame().unwrap().unwrap();
                assert_eq!(
                    frame.message::<(String, u32)>().unwrap(),
                    ("hello".into(), 7)
                );
                assert_eq!(&frame.body[..], b"abcde");
            }
            assert!(decoder.is_empty());
        }
    }

    #[test]
    fn bad_frames_are_errors() {
        let mut too_large = FrameDecoder::default();
        too_large.push(&u32::MAX.to_le_bytes());
        assert_eq!(
            too_large.next_frame(),
            Err(FrameError::TooLarge {
                length: u32::MAX as usize
            })
        );

        let mut too_short = FrameDecoder::default();
        too_short.push(&[3, 0, 0, 0, 1, 0, 0]);
        assert_eq!(
            too_short.next_frame(),
            Err(FrameError::TooShort { length: 3 })
        );

        let mut version = FrameDecoder::default();
        version.push(&[6, 0, 0, 0, 9, 0]);
        assert_eq!(version.next_frame(), Err(FrameError::Version { theirs: 9 }));

        let mut header = FrameDecoder::default();
        header.push(&[6, 0, 0, 0]);
        header.push(&PROTOCOL_VERSION.to_le_bytes());
        header.push(&100u32.to_le_bytes());
        assert_eq!(
            header.next_frame(),
            Err(FrameError::HeaderLength {
                header: 100,
                length: 6
            })
        );

        let bytes = encode(&1u8, &[]).unwrap();
        let mut message = FrameDecoder::default();
        message.push(&bytes);
        let frame = message.next_frame().unwrap().unwrap();
        assert!(matches!(
            frame.message::<(String, u64)>(),
            Err(FrameError::Message(_))
        ));
        assert!(matches!(frame.message::<()>(), Err(FrameError::Message(_))));
    }

    #[test]
    fn a_frame_over_the_limit_is_not_built() {
        let part = vec![0u8; 1 << 20];
        let parts: Vec<&[u8]> = (0..1024).map(|_| part.as_slice()).collect();
        assert!(matches!(
            encode(&(), &parts),
            Err(FrameError::TooLarge { length }) if length > MAX_FRAME_BYTES
        ));
    }
}
