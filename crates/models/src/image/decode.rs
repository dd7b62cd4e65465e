//! Decoding of pictures, guarded against hostile ones.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{ErrorKind, ModelError};
use crate::image::resample::Picture;

const FORMATS_HINT: &str = "Supported formats are PNG, JPEG, WebP, GIF, BMP and TIFF.";
/// Memory that decoders may take beyond that of the pixels.
const DECODER_OVERHEAD_BYTES: u64 = 64 << 20;
/// The most memory a decoded pixel takes: four samples of 32 bits.
const MAX_PIXEL_BYTES: u64 = 16;

/// Bounds of a picture, checked before memory is taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageLimits {
    /// Largest encoded size.
    pub max_bytes: u64,
    /// Largest width times height, as the header declares them.
    pub max_pixels: u64,
}

/// Decodes a picture to RGB as `Image.open(...).convert("RGB")` of Pillow does:
/// the first frame, alpha dropped, orientation left as it is (except for TIFF,
/// where Pillow applies it).
pub(crate) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ModelError> {
    if bytes.is_empty() {
        return Err(ModelError::new(ErrorKind::InvalidImage, "image is empty")
            .with_detail("It has 0 bytes.")
            .with_hint(FORMATS_HINT));
    }
    let size = bytes.len() as u64;
    if size > limits.max_bytes {
        return Err(
            ModelError::new(ErrorKind::ImageTooLarge, "image is too large")
                .with_detail(format!(
                    "It has {size} bytes, the limit is {}.",
                    limits.max_bytes
                ))
                .with_hint("Reduce the image, or raise the limit of bytes."),
        );
    }
    // The decoders are not ours: a defect in one must not end the server.
    catch_unwind(AssertUnwindSafe(|| decode_checked(bytes, limits)))
        .unwrap_or_else(|_| Err(cannot_decode("Its decoder failed unexpectedly.")))
}

fn decode_checked(bytes: &[u8], limits: &ImageLimits) -> Result<Picture, ModelError> {
    let format = image::guess_format(bytes)
        .ok()
        .filter(|format| name(*format).is_some())
        .ok_or_else(|| cannot_decode("Its first bytes are those of no supported format."))?;
    let failed = |error: ImageError| match error {
        ImageError::Limits(_) => too_many_pixels(format, None, limits),
        error => {
            let name = name(format).unwrap_or_default();
            cannot_decode(format!(
                "It begins as {name}, but its decoder says: {error}."
            ))
        }
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allocation = Limits::no_limits();
    allocation.max_alloc = Some(
        limits
            .max_pixels
            .saturating_mul(MAX_PIXEL_BYTES)
            .saturating_add(DECODER_OVERHEAD_BYTES),
    );
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > limits.max_pixels {
        return Err(too_many_pixels(format, Some((width, height)), limits));
    }
    if width == 0 || height == 0 {
        return Err(cannot_decode(format!("Its size is {width} x {height}.")));
    }
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(cannot_decode("It is a JPEG that ends too early."));
    }
    let orientation = match format {
        ImageFormat::Tiff => Some(decoder.orientation().map_err(failed)?),
        _ => None,
    };
    let mut image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    Ok(to_rgb(image))
}

fn name(format: ImageFormat) -> Option<&'static str> {
    match format {
        ImageFormat::Png => Some("PNG"),
        ImageFormat::Jpeg => Some("JPEG"),
        ImageFormat::WebP => Some("WebP"),
        ImageFormat::Gif => Some("GIF"),
        ImageFormat::Bmp => Some("BMP"),
        ImageFormat::Tiff => Some("TIFF"),
        _ => None,
    }
}

fn cannot_decode(detail: impl Into<String>) -> ModelError {
    ModelError::new(ErrorKind::InvalidImage, "image cannot be decoded")
        .with_detail(detail)
        .with_hint(FORMATS_HINT)
}

fn too_many_pixels(
    format: ImageFormat,
    size: Option<(u32, u32)>,
    limits: &ImageLimits,
) -> ModelError {
    let name = name(format).unwrap_or_default();
    let detail = match size {
        Some((width, height)) => format!(
            "It is a {name} that declares {width} x {height} pixels, the limit is {} pixels.",
            limits.max_pixels
        ),
        None => format!("It is a {name} whose decoding needs more memory than the limit allows."),
    };
    ModelError::new(ErrorKind::ImageTooLarge, "image is too large")
        .with_detail(detail)
        .with_hint("Reduce the image, or raise the limit of pixels.")
}

/// Drops alpha and brings samples to 8 bits as Pillow does: colours of 16 bits
/// keep their high byte, gray of 16 bits is cut off at 255.
fn to_rgb(image: DynamicImage) -> Picture {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let high = |sample: u16| (sample >> 8) as u8;
    let samples: Vec<u8> = match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageRgb16(image) => image.into_raw().into_iter().map(high).collect(),
        DynamicImage::ImageRgba16(image) => image
            .pixels()
            .flat_map(|pixel| [pixel[0], pixel[1], pixel[2]].map(high))
            .collect(),
        DynamicImage::ImageLuma16(image) => image
            .into_raw()
            .into_iter()
            .flat_map(|sample| [sample.min(255) as u8; 3])
            .collect(),
        DynamicImage::ImageLumaA16(image) => image
            .pixels()
            .flat_map(|pixel| [high(pixel[0]); 3])
            .collect(),
        image => image.into_rgb8().into_raw(),
    };
    Picture {
        width,
        height,
        samples,
    }
}

/// Whether a JPEG has its end marker. Decoders fill what is missing with gray,
/// so that a caption would be of a picture that nobody took.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut at = 2;
    while let Some(offset) = bytes.get(at..).and_then(next_marker) {
        at += offset;
        let marker = bytes[at + 1];
        at += 2;
        if marker == END_OF_IMAGE {
            return true;
        }
        // Restart markers, and markers without a length.
        if matches!(marker, 0x01 | 0xd0..=0xd8) {
            continue;
        }
        let Some([high, low]) = bytes.get(at..at + 2) else {
            return false;
        };
        at += usize::from(u16::from_be_bytes([*high, *low]));
        // After the header of a scan its data follows, which `next_marker` skips.
        if marker == START_OF_SCAN && at >= bytes.len() {
            return false;
        }
    }
    false
}

/// Where the next marker begins: 0xff and neither a stuffed zero nor a fill byte.
fn next_marker(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(2)
        .position(|pair| pair[0] == 0xff && pair[1] != 0 && pair[1] != 0xff)
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};

    use super::*;

    const LIMITS: ImageLimits = ImageLimits {
        max_bytes: 10 << 20,
        max_pixels: 1 << 20,
    };
    const FORMATS: [ImageFormat; 6] = [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Bmp,
        ImageFormat::Tiff,
    ];

    fn drawn(width: u32, height: u32) -> DynamicImage {
        let draw = |x: u32, y: u32| Rgb([(x * 7) as u8, (y * 5) as u8, (x * y) as u8]);
        DynamicImage::ImageRgb8(RgbImage::from_fn(width, height, draw))
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        image
            .write_to(&mut Cursor::new(&mut bytes), format)
            .unwrap();
        bytes
    }

    #[test]
    fn every_format_decodes() {
        let image = drawn(40, 30);
        for format in FORMATS {
            let picture = decode(&encoded(&image, format), &LIMITS).unwrap();
            assert_eq!((picture.width, picture.height), (40, 30), "{format:?}");
            assert_eq!(picture.samples.len(), 40 * 30 * 3);
            if !matches!(format, ImageFormat::Jpeg | ImageFormat::Gif) {
                assert_eq!(picture.samples, image.to_rgb8().into_raw(), "{format:?}");
            }
        }
    }

    #[test]
    fn every_truncation_is_an_error() {
        let image = drawn(64, 48);
        for format in FORMATS {
            let bytes = encoded(&image, format);
            for part in 1..8 {
                let part = bytes.len() * part / 8;
                let error = decode(&bytes[..part], &LIMITS).unwrap_err();
                assert_eq!(error.kind, ErrorKind::InvalidImage, "{format:?} {part}");
                assert!(error.detail.is_some() && error.hint.is_some());
            }
        }
    }

    #[test]
    fn what_is_no_picture_is_refused() {
        let pdf = b"%PDF-1.7 and so on".as_slice();
        for bytes in [b"plain text".as_slice(), pdf, &[0; 64], &[0xff, 0xd8, 0xff]] {
            let error = decode(bytes, &LIMITS).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidImage);
            assert_eq!(error.message, "image cannot be decoded");
            assert_eq!(error.hint.as_deref(), Some(FORMATS_HINT));
        }
        let error = decode(b"", &LIMITS).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidImage);
        assert_eq!(error.message, "image is empty");
    }

    #[test]
    fn a_single_pixel_decodes() {
        for format in FORMATS {
            let picture = decode(&encoded(&drawn(1, 1), format), &LIMITS).unwrap();
            assert_eq!((picture.width, picture.height), (1, 1), "{format:?}");
        }
    }

    #[test]
    fn a_header_that_declares_too_much_is_refused() {
        let mut png = encoded(&drawn(2, 2), ImageFormat::Png);
        png[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        png[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let check = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&check.to_be_bytes());
        let error = decode(&png, &LIMITS).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ImageTooLarge);
        let detail = error.detail.unwrap();
        assert!(
            detail.contains("60000 x 60000") && detail.contains("1048576"),
            "{detail}"
        );
    }

    /// The checksum of PNG chunks.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
            })
        })
    }

    #[test]
    fn too_many_bytes_are_refused() {
        let limits = ImageLimits {
            max_bytes: 10,
            ..LIMITS
        };
        let bytes = encoded(&drawn(8, 8), ImageFormat::Png);
        let error = decode(&bytes, &limits).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ImageTooLarge);
    }

    #[test]
    fn alpha_is_dropped_and_samples_are_narrowed() {
        let rgba = ImageBuffer::from_pixel(1, 1, Rgba([10_u8, 20, 30, 0]));
        let rgb16 = ImageBuffer::from_pixel(1, 1, Rgb([0x1234_u16, 0xffff, 0x00ff]));
        let gray16 = ImageBuffer::from_pixel(1, 1, Luma([300_u16]));
        let gray_alpha = ImageBuffer::from_pixel(1, 1, LumaA([9_u8, 0]));
        let cases: [(DynamicImage, [u8; 3]); 4] = [
            (rgba.into(), [10, 20, 30]),
            (rgb16.into(), [0x12, 0xff, 0]),
            (gray16.into(), [255; 3]),
            (gray_alpha.into(), [9, 9, 9]),
        ];
        for (image, expected) in cases {
            let picture = decode(&encoded(&image, ImageFormat::Png), &LIMITS).unwrap();
            assert_eq!(picture.samples, expected);
        }
    }

    #[test]
    fn an_end_marker_in_a_thumbnail_does_not_count() {
        let bytes = encoded(&drawn(64, 48), ImageFormat::Jpeg);
        assert!(jpeg_is_whole(&bytes));
        let mut with_thumbnail = bytes[..2].to_vec();
        with_thumbnail.extend([0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9]);
        with_thumbnail.extend(&bytes[2..]);
        assert!(jpeg_is_whole(&with_thumbnail));
        assert!(!jpeg_is_whole(&with_thumbnail[..with_thumbnail.len() - 2]));
    }
}
