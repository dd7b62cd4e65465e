//! WebP, through the image-webp crate. The first frame of an animation is taken
//! out and put on its canvas here, as it is: Pillow does not blend it with anything.

use std::io::Cursor;

use image_webp::{DecodingError, WebPDecoder};

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged, too_large};
use crate::image::orientation::Orientation;
use crate::image::png::without_alpha;
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "WebP";
/// Memory for what is not pixels.
const OVERHEAD_BYTES: usize = 64 << 20;
/// Bytes before the first chunk of a file, and before a frame's own chunks.
const FILE_HEADER: usize = 12;
const FRAME_HEADER: usize = 16;
/// Bytes of a chunk's, or a file's, name and size.
const CHUNK_HEADER: usize = 8;

fn failed(error: DecodingError) -> ModelError {
    match error {
        DecodingError::MemoryLimitExceeded => too_large(format!(
            "It is a {NAME} whose decoding needs more memory than the limit allows."
        )),
        error => damaged(NAME, format_args!("its decoder says: {error}")),
    }
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    // Data that end too early would be decoded as if zeros followed.
    let declared = bytes.get(4..).and_then(<[u8]>::first_chunk);
    let declared = declared.map_or(usize::MAX, |size| u32::from_le_bytes(*size) as usize);
    if bytes.len() - CHUNK_HEADER < declared {
        return Err(damaged(NAME, "it ends too early"));
    }
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    decoder.set_memory_limit(OVERHEAD_BYTES);
    let (width, height) = decoder.dimensions();
    check_size(NAME, width.into(), height.into(), limits)?;
    let content = bytes.get(FILE_HEADER..).unwrap_or_default();
    check_frames(content, width, height)?;
    let picture = if decoder.is_animated() {
        first_frame(bytes, width as usize, height as usize)?
    } else {
        pixels(&mut decoder)?
    };
    let exif = decoder.exif_metadata().ok().flatten();
    let xmp = decoder.xmp_metadata().ok().flatten();
    Ok(Decoded {
        picture,
        orientation: Orientation::from_metadata(exif.as_deref(), xmp.as_deref()),
    })
}

fn pixels(decoder: &mut WebPDecoder<Cursor<&[u8]>>) -> Result<Picture, ModelError> {
    let (width, height) = decoder.dimensions();
    let size = decoder.output_buffer_size();
    let size = size.ok_or_else(|| failed(DecodingError::ImageTooLarge))?;
    let mut data = vec![0; size];
    decoder.read_image(&mut data).map_err(failed)?;
    Ok(Picture {
        width: width as usize,
        height: height as usize,
        samples: if decoder.has_alpha() {
            without_alpha(&data)
        } else {
            data
        },
    })
}

/// Checks that no frame among these chunks is larger than the picture: the decoder
/// compares them only when it has decoded the frame.
fn check_frames(bytes: &[u8], width: u32, height: u32) -> Result<(), ModelError> {
    for (kind, content) in chunks(bytes) {
        let size = match (kind, content) {
            // Behind the frame's tag and the start code 14 bits each, and how they scale.
            (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
                let side = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                (side(*w0, *w1), side(*h0, *h1))
            }
            // Behind the signature 14 bits each, less one.
            (b"VP8L", [0x2f, bits @ ..]) => match bits.first_chunk() {
                Some(bits) => {
                    let bits = u32::from_le_bytes(*bits);
                    ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1)
                }
                None => continue,
            },
            _ => continue,
        };
        if size.0 > width || size.1 > height {
            return Err(damaged(NAME, "a frame of it is larger than the picture"));
        }
    }
    Ok(())
}

/// Kinds and contents of chunks. One that is cut off ends the list.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (kind, after) = rest.split_first_chunk()?;
        let (size, after) = after.split_first_chunk()?;
        let size = u32::from_le_bytes(*size) as usize;
        let content = after.get(..size)?;
        rest = after.get(size.next_multiple_of(2)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The first frame on a black canvas.
fn first_frame(bytes: &[u8], width: usize, height: usize) -> Result<Picture, ModelError> {
    let after = bytes.get(FILE_HEADER..).unwrap_or_default();
    let frame = chunks(after).find(|(kind, _)| *kind == b"ANMF");
    let header = frame.and_then(|(_, content)| content.split_first_chunk::<FRAME_HEADER>());
    let (header, content) = header.ok_or_else(|| damaged(NAME, "its first frame is cut off"))?;
    let number =
        |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], 0]) as usize;
    let (left, top) = (number(0) * 2, number(3) * 2);
    let (frame_width, frame_height) = (number(6) + 1, number(9) + 1);
    if left + frame_width > width || top + frame_height > height {
        return Err(damaged(NAME, "its first frame is larger than the picture"));
    }
    check_frames(content, frame_width as u32, frame_height as u32)?;
    let file = still(content, &header[6..12]);
    let mut decoder = WebPDecoder::new(Cursor::new(file.as_slice())).map_err(failed)?;
    decoder.set_memory_limit(OVERHEAD_BYTES);
    if decoder.dimensions() != (frame_width as u32, frame_height as u32) {
        return Err(damaged(NAME, "its first frame has two sizes"));
    }
    let frame = pixels(&mut decoder)?;
    let mut samples = vec![0; width * height * CHANNELS];
    for (y, row) in frame
        .samples
        .chunks_exact(frame_width * CHANNELS)
        .enumerate()
    {
        let at = ((top + y) * width + left) * CHANNELS;
        samples[at..at + row.len()].copy_from_slice(row);
    }
    Ok(Picture {
        width,
        height,
        samples,
    })
}

/// A file of the chunks of one frame; `size` is its size as a frame's header gives it.
fn still(content: &[u8], size: &[u8]) -> Vec<u8> {
    const HAS_ALPHA: u8 = 0x10;
    let mut body = b"WEBP".to_vec();
    let mut add = |kind: &[u8; 4], content: &[u8]| {
        body.extend_from_slice(kind);
        body.extend_from_slice(&(content.len() as u32).to_le_bytes());
        body.extend_from_slice(content);
        body.resize(body.len().next_multiple_of(2), 0);
    };
    let parts = || chunks(content).filter(|(kind, _)| matches!(*kind, b"ALPH" | b"VP8 " | b"VP8L"));
    if parts().any(|(kind, _)| kind == b"ALPH") {
        let mut extended = vec![HAS_ALPHA, 0, 0, 0];
        extended.extend_from_slice(size);
        add(b"VP8X", &extended);
    }
    for (kind, content) in parts() {
        add(kind, content);
    }
    let mut file = b"RIFF".to_vec();
    file.extend_from_slice(&(body.len() as u32).to_le_bytes());
    file.append(&mut body);
    file
}
