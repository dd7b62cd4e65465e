//! How a picture is to be turned, as its metadata say: EXIF, else XMP, with the
//! leniency of Pillow's `ImageOps.exif_transpose`.

use crate::image::resample::{CHANNELS, Picture};

const TAG: u16 = 0x112;
const EXIF_PREFIX: &[u8] = b"Exif\0\0";
const ENTRY_BYTES: usize = 12;
/// Rows that are written at a time when a picture is turned.
const BAND_ROWS: usize = 16;

/// A turn by quarters and a reflection: each pixel comes from the place that
/// these steps lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Orientation {
    /// Row and column change places.
    transposed: bool,
    /// Columns are counted from the right.
    mirrored: bool,
    /// Rows are counted from below.
    flipped: bool,
}

impl Orientation {
    /// From the value of the tag in EXIF; others than 1 to 8 mean nothing.
    pub(super) fn from_value(value: u32) -> Self {
        let is = |values: &[u32]| values.contains(&value);
        Self {
            transposed: is(&[5, 6, 7, 8]),
            mirrored: is(&[2, 3, 7, 8]),
            flipped: is(&[3, 4, 6, 7]),
        }
    }

    /// From blocks of metadata. A tag in EXIF counts, even one without a
    /// meaning; XMP is read when there is none.
    pub(super) fn from_metadata(exif: Option<&[u8]>, xmp: Option<&[u8]>) -> Self {
        exif.and_then(exif_value)
            .or_else(|| xmp.and_then(xmp_value))
            .map(Self::from_value)
            .unwrap_or_default()
    }

    /// Turns a picture upright.
    pub(super) fn apply(self, picture: Picture) -> Picture {
        if self == Self::default() {
            return picture;
        }
        let (width, height) = if self.transposed {
            (picture.height, picture.width)
        } else {
            (picture.width, picture.height)
        };
        let mut samples = vec![0; picture.samples.len()];
        // In bands, so that what a turned picture takes from one row stays together.
        for band in (0..height).step_by(BAND_ROWS) {
            for column in 0..width {
                for row in band..height.min(band + BAND_ROWS) {
                    let from = self.source(&picture, row, column) * CHANNELS;
                    let to = (row * width + column) * CHANNELS;
                    samples[to..to + CHANNELS]
                        .copy_from_slice(&picture.samples[from..from + CHANNELS]);
                }
            }
        }
        Picture {
            width,
            height,
            samples,
        }
    }

    /// Which pixel comes to this place.
    fn source(self, picture: &Picture, row: usize, column: usize) -> usize {
        let (x, y) = if self.transposed {
            (row, column)
        } else {
            (column, row)
        };
        let x = if self.mirrored {
            picture.width - 1 - x
        } else {
            x
        };
        let y = if self.flipped {
            picture.height - 1 - y
        } else {
            y
        };
        y * picture.width + x
    }
}

/// A view of a TIFF structure, in which EXIF is written.
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    /// An unsigned number of so many bytes.
    fn number(&self, at: usize, size: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(size)?)?;
        let join = |number: u32, byte: &u8| number << 8 | u32::from(*byte);
        Some(if self.big_endian {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        })
    }

    /// The tag's first value, or `Some(0)` for one that is no whole number.
    fn orientation(&self) -> Option<u32> {
        let directory = self.number(4, 4)? as usize;
        let count = self.number(directory, 2)? as usize;
        (0..count)
            .map(|index| directory + 2 + index * ENTRY_BYTES)
            // A directory that ends too early counts as far as it goes.
            .take_while(|entry| entry + ENTRY_BYTES <= self.bytes.len())
            .filter(|entry| self.number(*entry, 2) == Some(u32::from(TAG)))
            .find_map(|entry| self.value(entry))
    }

    fn value(&self, entry: usize) -> Option<u32> {
        // Bytes in a value of each kind, in the order of their numbers in TIFF.
        const SIZES: [usize; 14] = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4];
        const WHOLE_NUMBERS: [u32; 6] = [3, 4, 6, 8, 9, 13];
        let kind = self.number(entry + 2, 2)?;
        let size = *SIZES.get(kind as usize).filter(|size| **size > 0)?;
        let total = (self.number(entry + 4, 4)? as usize).checked_mul(size)?;
        let at = match total {
            0 => return None,
            1..=4 => entry + 8,
            _ => self.number(entry + 8, 4)? as usize,
        };
        self.bytes.get(at..at.checked_add(total)?)?;
        if WHOLE_NUMBERS.contains(&kind) {
            self.number(at, size)
        } else {
            Some(0)
        }
    }
}

fn exif_value(exif: &[u8]) -> Option<u32> {
    let once = exif.strip_prefix(EXIF_PREFIX).unwrap_or(exif);
    let bytes = once.strip_prefix(EXIF_PREFIX).unwrap_or(once);
    let big_endian = match bytes.get(..4)? {
        b"MM\0*" | b"MM*\0" => true,
        b"II*\0" | b"II\0*" => false,
        _ => return None,
    };
    Fields { bytes, big_endian }.orientation()
}

/// The digit of the first `tiff:Orientation`, as attribute or element.
fn xmp_value(xmp: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len())
        .enumerate()
        .filter(|(_, window)| *window == NAME)
        .find_map(|(at, _)| {
            let rest = &xmp[at + NAME.len()..];
            let value = rest.strip_prefix(b"=\"").or(rest.strip_prefix(b">"))?;
            let digit = value.first().filter(|byte| byte.is_ascii_digit())?;
            Some(u32::from(digit - b'0'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(width: usize, height: usize, numbers: &[u8]) -> Picture {
        Picture {
            width,
            height,
            samples: numbers.iter().flat_map(|n| [*n; CHANNELS]).collect(),
        }
    }

    // What EXIF 2.3 says of each value: where row 0 and column 0 are to be.
    #[test]
    fn each_value_turns_as_exif_says() {
        let cases: [(u32, usize, [u8; 6]); 10] = [
            (0, 3, [1, 2, 3, 4, 5, 6]),
            (1, 3, [1, 2, 3, 4, 5, 6]),
            (2, 3, [3, 2, 1, 6, 5, 4]),
            (3, 3, [6, 5, 4, 3, 2, 1]),
            (4, 3, [4, 5, 6, 1, 2, 3]),
            (5, 2, [1, 4, 2, 5, 3, 6]),
            (6, 2, [4, 1, 5, 2, 6, 3]),
            (7, 2, [6, 3, 5, 2, 4, 1]),
            (8, 2, [3, 6, 2, 5, 1, 4]),
            (9, 3, [1, 2, 3, 4, 5, 6]),
        ];
        for (value, width, expected) in cases {
            let turned = Orientation::from_value(value).apply(numbered(3, 2, &[1, 2, 3, 4, 5, 6]));
            assert_eq!(turned, numbered(width, 6 / width, &expected), "{value}");
        }
    }

    #[test]
    fn no_bytes_make_the_parser_fail() {
        let exif = b"II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x09\0\0\0\x26\0\0\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        assert_eq!(exif_value(exif), Some(6));
        for length in 0..exif.len() {
            exif_value(&exif[..length]);
            for value in [0, 0x7f, 0xff] {
                let mut changed = exif.to_vec();
                changed[length] = value;
                exif_value(&changed);
            }
        }
    }

    #[test]
    fn xmp_is_read_as_attribute_and_element() {
        assert_eq!(xmp_value(b"<a tiff:Orientation=\"3\"/>"), Some(3));
        assert_eq!(
            xmp_value(b"<tiff:Orientation>8</tiff:Orientation>"),
            Some(8)
        );
        assert_eq!(xmp_value(b"tiff:Orientation= tiff:Orientation>x"), None);
    }
}
