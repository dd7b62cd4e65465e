//! BMP, in the forms and with the colours of Pillow.

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault::{check_size, damaged, unsupported_form};
use crate::image::orientation::Orientation;
use crate::image::resample::{CHANNELS, Picture};

const NAME: &str = "BMP";
/// Bytes before the header proper.
const FILE_HEADER: usize = 14;

const UNCOMPRESSED: u32 = 0;
const RUNS_OF_8: u32 = 1;
const RUNS_OF_4: u32 = 2;
const BIT_FIELDS: u32 = 3;
/// Masks of red, green and blue in pixels of 24 and 32 bits.
const COMMON_MASKS: [u32; CHANNELS] = [0xff_0000, 0xff00, 0xff];

struct Header {
    width: usize,
    height: usize,
    top_down: bool,
    bits: u16,
    compression: u32,
    /// Masks of red, green and blue.
    masks: [u32; CHANNELS],
    /// Bytes an entry of the palette takes; they are blue, green, red.
    entry: usize,
    palette: Vec<u8>,
    /// Where the pixels begin.
    data: usize,
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], ModelError> {
    bytes
        .get(at..)
        .and_then(<[u8]>::first_chunk)
        .copied()
        .ok_or_else(|| damaged(NAME, "it ends within its header"))
}

fn short(bytes: &[u8], at: usize) -> Result<u16, ModelError> {
    field(bytes, at).map(u16::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Result<u32, ModelError> {
    field(bytes, at).map(u32::from_le_bytes)
}

impl Header {
    fn read(bytes: &[u8], limits: &ImageLimits) -> Result<Self, ModelError> {
        let size = long(bytes, FILE_HEADER)?;
        let is_core = size == 12;
        if !matches!(size, 12 | 40 | 52 | 56 | 64 | 108 | 124) {
            return Err(unsupported_form(format_args!(
                "BMP with a header of {size} bytes"
            )));
        }
        let (width, height, bits) = if is_core {
            (
                short(bytes, 18)?.into(),
                i32::from(short(bytes, 20)?),
                short(bytes, 24)?,
            )
        } else {
            (
                long(bytes, 18)?,
                long(bytes, 22)?.cast_signed(),
                short(bytes, 28)?,
            )
        };
        let top_down = height < 0;
        let height = height.unsigned_abs();
        check_size(NAME, width.into(), height.into(), limits)?;
        let compression = if is_core {
            UNCOMPRESSED
        } else {
            long(bytes, 30)?
        };
        let mut after = FILE_HEADER + size as usize;
        let masks = match (compression, bits) {
            (BIT_FIELDS, _) => {
                let masks = [long(bytes, 54)?, long(bytes, 58)?, long(bytes, 62)?];
                after += if size == 40 { 12 } else { 0 };
                if masks == [0; CHANNELS] {
                    COMMON_MASKS
                } else {
                    masks
                }
            }
            (_, 16) => [0x7c00, 0x3e0, 0x1f],
            _ => COMMON_MASKS,
        };
        let entry = if is_core { 3 } else { 4 };
        let colors = match (bits, is_core) {
            (1 | 4 | 8, true) => 1 << bits,
            (1 | 4 | 8, false) => match long(bytes, 46)? {
                0 => 1 << bits,
                colors @ 1..=65_536 => colors as usize,
                _ => return Err(damaged(NAME, "the size of its palette is impossible")),
            },
            _ => 0,
        };
        let palette = bytes
            .get(after..after + colors * entry)
            .ok_or_else(|| damaged(NAME, "its palette is cut off"))?;
        after += palette.len();
        // Some programs count the palette to the header, some do not.
        let data = long(bytes, 10)? as usize;
        let data = if data == 0 || (colors > 0 && data == FILE_HEADER + size as usize) {
            after
        } else {
            data
        };
        Ok(Self {
            width: width as usize,
            height: height as usize,
            top_down,
            bits,
            compression,
            masks,
            entry,
            palette: palette.to_vec(),
            data,
        })
    }

    /// The color of an index; what is beyond the palette is black.
    fn color(&self, index: u8) -> [u8; CHANNELS] {
        match self.palette.get(usize::from(index) * self.entry..) {
            Some([blue, green, red, ..]) => [*red, *green, *blue],
            _ => [0; CHANNELS],
        }
    }
}

pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let header = Header::read(bytes, limits)?;
    let data = bytes.get(header.data..).unwrap_or_default();
    let rows = match (header.compression, header.bits) {
        (UNCOMPRESSED, 1 | 4 | 8) => indexed(&header, data)?,
        (UNCOMPRESSED | BIT_FIELDS, 16 | 24 | 32) => direct(&header, data)?,
        (RUNS_OF_8, 8) | (RUNS_OF_4, 4) => {
            let indices = runs(&header, data)?;
            indices
                .into_iter()
                .flat_map(|index| header.color(index))
                .collect()
        }
        (compression, bits) => {
            return Err(unsupported_form(format_args!(
                "BMP of {bits} bits with compression {compression}"
            )));
        }
    };
    let samples = if header.top_down {
        rows
    } else {
        let stride = header.width * CHANNELS;
        rows.rchunks_exact(stride).flatten().copied().collect()
    };
    Ok(Decoded {
        picture: Picture {
            width: header.width,
            height: header.height,
            samples,
        },
        orientation: Orientation::default(),
    })
}

/// The rows of the file, each filled up to four bytes.
fn stored_rows<'a>(
    header: &Header,
    data: &'a [u8],
) -> Result<impl Iterator<Item = &'a [u8]>, ModelError> {
    let used = (header.width * usize::from(header.bits)).div_ceil(8);
    let stride = used.next_multiple_of(4);
    // The last row need not be filled up.
    let needed = stride * (header.height - 1) + used;
    let data = data
        .get(..needed)
        .ok_or_else(|| damaged(NAME, "its data end too early"))?;
    Ok(data.chunks(stride).map(move |row| &row[..used]))
}

fn indexed(header: &Header, data: &[u8]) -> Result<Vec<u8>, ModelError> {
    let bits = usize::from(header.bits);
    let mask = ((1_u16 << bits) - 1) as u8;
    let mut samples = Vec::with_capacity(header.width * header.height * CHANNELS);
    for row in stored_rows(header, data)? {
        for x in 0..header.width {
            let shift = 8 - bits - x * bits % 8;
            samples.extend(header.color(row[x * bits / 8] >> shift & mask));
        }
    }
    Ok(samples)
}

fn direct(header: &Header, data: &[u8]) -> Result<Vec<u8>, ModelError> {
    let known = match header.bits {
        16 => matches!(header.masks, [0xf800, 0x7e0, 0x1f] | [0x7c00, 0x3e0, 0x1f]),
        24 => header.masks == COMMON_MASKS,
        _ => header
            .masks
            .iter()
            .all(|mask| matches!(mask, 0xff | 0xff00 | 0xff_0000 | 0xff00_0000)),
    };
    if !known {
        return Err(unsupported_form("BMP with unusual bit fields"));
    }
    let channels = header
        .masks
        .map(|mask| (mask.trailing_zeros(), mask >> mask.trailing_zeros()));
    let mut samples = Vec::with_capacity(header.width * header.height * CHANNELS);
    let bytes = usize::from(header.bits / 8);
    for row in stored_rows(header, data)? {
        for pixel in row.chunks_exact(bytes) {
            let join = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
            let value = pixel.iter().rev().fold(0, join);
            samples
                .extend(channels.map(|(shift, most)| ((value >> shift & most) * 255 / most) as u8));
        }
    }
    Ok(samples)
}

/// Indices from run-length codes. As in Pillow, all pixels must be given.
fn runs(header: &Header, data: &[u8]) -> Result<Vec<u8>, ModelError> {
    let (width, total) = (header.width, header.width * header.height);
    let four = header.compression == RUNS_OF_4;
    let mut indices: Vec<u8> = Vec::with_capacity(total);
    // The column counts separately: a run that is too long is cut at the row's end.
    let (mut at, mut column) = (0, 0);
    while indices.len() < total {
        let Some([count, value]) = data.get(at..).and_then(<[u8]>::first_chunk::<2>) else {
            break;
        };
        at += 2;
        let nibbles = |byte: u8| [byte >> 4, byte & 15];
        match (*count, *value) {
            (0, 0) => {
                indices.resize(indices.len().next_multiple_of(width), 0);
                column = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let Some([right, up]) = data.get(at..).and_then(<[u8]>::first_chunk::<2>) else {
                    break;
                };
                at += 2;
                let skipped = usize::from(*right) + usize::from(*up) * width;
                indices.resize((indices.len() + skipped).min(total), 0);
                column = indices.len() % width;
            }
            (0, count) => {
                let wanted = usize::from(count).min(total - indices.len());
                let bytes = if four { wanted.div_ceil(2) } else { wanted };
                let Some(given) = data.get(at..at + bytes) else {
                    break;
                };
                if four {
                    indices.extend(given.iter().flat_map(|byte| nibbles(*byte)).take(wanted));
                } else {
                    indices.extend(given);
                }
                column += usize::from(count);
                at += bytes;
                // Codes begin at even places of the file.
                at += (header.data + at) % 2;
            }
            (count, value) => {
                let count = usize::from(count).min(width.saturating_sub(column));
                let pair = if four { nibbles(value) } else { [value; 2] };
                indices.extend(pair.into_iter().cycle().take(count));
                column += count;
            }
        }
    }
    if indices.len() < total {
        return Err(damaged(NAME, "its data end too early"));
    }
    indices.truncate(total);
    Ok(indices)
}
