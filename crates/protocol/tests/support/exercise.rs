//! Bytes in, no panic out: what is read must be what would be written.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};
use sight_protocol::{
    Frame, FrameDecoder, MAX_FRAME_BYTES, PROTOCOL_VERSION, Request, Response, encode,
    parse_embeddings,
};

/// What a server does with the bytes of a client.
pub fn exercise_requests(data: &[u8]) {
    exercise(data, |frame: &Frame, request: Request| {
        if let Request::Describe { image_bytes, .. } = request {
            let total: u64 = image_bytes.iter().copied().map(u64::from).sum();
            let _fits = total == frame.body.len() as u64;
        }
    });
}

/// What a client does with the bytes of a server.
pub fn exercise_responses(data: &[u8]) {
    exercise(data, |frame: &Frame, response: Response| {
        if let Response::Embeddings(batch) = response
            && let Ok(vectors) = parse_embeddings(batch, &frame.body)
        {
            assert_eq!(vectors.len(), batch.rows as usize);
            let values: usize = vectors.iter().map(Vec::len).sum();
            assert_eq!(values * size_of::<f32>(), frame.body.len());
        }
    });
}

/// The first byte says how the others are to be taken: as a stream of bytes that
/// arrive in pieces of that size, or as header and body of a frame that is whole.
fn exercise<M>(data: &[u8], look: impl Fn(&Frame, M))
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let Some((&mode, data)) = data.split_first() else {
        return;
    };
    if mode == 0 {
        let header = data
            .len()
            .min(data.first().map_or(0, |byte| usize::from(*byte) * 4));
        read(&[&whole_frame(data, header)], look);
    } else {
        let pieces: Vec<&[u8]> = data.chunks(usize::from(mode)).collect();
        read(&pieces, look);
    }
}

/// A frame whose lengths and version are right.
fn whole_frame(content: &[u8], header_bytes: usize) -> Vec<u8> {
    let length = (2 + 4 + content.len()) as u32;
    let mut frame = length.to_le_bytes().to_vec();
    frame.extend(PROTOCOL_VERSION.to_le_bytes());
    frame.extend((header_bytes as u32).to_le_bytes());
    frame.extend(content);
    frame
}

fn read<M>(pieces: &[&[u8]], look: impl Fn(&Frame, M))
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let mut decoder = FrameDecoder::default();
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => check(&frame, &look),
                Ok(None) => break,
                // The connection would be closed.
                Err(_) => return,
            }
        }
        assert!(
            decoder
                .frame_bytes()
                .is_none_or(|bytes| bytes <= MAX_FRAME_BYTES)
        );
    }
}

/// A message that can be read is written so that it reads the same. Not compared by
/// value: numbers may be NaN.
fn check<M>(frame: &Frame, look: impl Fn(&Frame, M))
where
    M: Serialize + DeserializeOwned + PartialEq + Debug,
{
    let Ok(message) = frame.message::<M>() else {
        return;
    };
    let written = encode(&message, &[&frame.body]).expect("it was received in a frame");
    let mut decoder = FrameDecoder::default();
    decoder.push(&written);
    let again = decoder.next_frame().expect("a frame").expect("whole");
    let read: M = again.message().expect("the message");
    assert_eq!(format!("{read:?}"), format!("{message:?}"));
    assert_eq!(again.body, frame.body);
    look(frame, message);
}
