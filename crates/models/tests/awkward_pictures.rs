//! Pictures in all forms that files come in, against what Pillow and transformers
//! make of them (`tools/fixtures/awkward_pictures.py` writes the fixtures), and
//! files that are damaged or made to do harm.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use sight_models::{ErrorKind, ImageLimits, ImageProcessor, ModelError, Picture};

const LIMITS: ImageLimits = ImageLimits {
    max_bytes: 1 << 20,
    max_pixels: 10_000_000,
};

#[derive(Deserialize)]
struct Entry {
    file: String,
    refused: bool,
    #[serde(default)]
    large: bool,
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        fs::read(folder().join(&self.file)).unwrap()
    }

    /// What Pillow decodes.
    fn expected(&self) -> Picture {
        read(&format!("decoded/{}.png", self.file))
    }

    /// Whether Pillow refuses what the image crate fills with the first colour: pixels
    /// that a run-length code leaves out.
    fn has_gaps(&self) -> bool {
        self.file == "rle8-gaps.bmp"
    }

    /// Whether what stands at the file's end turns the picture.
    fn turns_late(&self) -> bool {
        self.file == "orientation-late.png"
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures")
}

fn entries() -> Vec<Entry> {
    serde_json::from_slice(&fs::read(folder().join("pictures.json")).unwrap()).unwrap()
}

/// A picture of the fixtures that is known to be a plain PNG of 8 bits.
fn read(name: &str) -> Picture {
    let bytes = fs::read(folder().join(name)).unwrap();
    Picture::decode(&bytes, &LIMITS).unwrap()
}

fn assert_same(name: &str, picture: &Picture, expected: &Picture) {
    let size = |picture: &Picture| (picture.width, picture.height);
    assert_eq!(size(picture), size(expected), "{name}");
    let first = (0..picture.samples.len()).find(|at| picture.samples[*at] != expected.samples[*at]);
    if let Some(at) = first {
        let (pixel, channel) = (at / 3, at % 3);
        panic!(
            "{name}: channel {channel} of column {}, row {} is {}, not {}",
            pixel % picture.width,
            pixel / picture.width,
            picture.samples[at],
            expected.samples[at]
        );
    }
}

/// A refusal must be ours: neither a defect of a decoder nor without a reason.
fn assert_refusal(name: &str, error: &ModelError) {
    let known = matches!(
        error.kind,
        ErrorKind::InvalidImage | ErrorKind::ImageTooLarge
    );
    let detail = error.detail.as_deref().unwrap_or_default();
    assert!(known && error.hint.is_some(), "{name}: {error}");
    assert!(detail.ends_with('.'), "{name}: {detail}");
    assert!(!detail.contains("unexpectedly"), "{name}: {detail}");
}

#[test]
fn pixels_are_those_of_pillow() {
    for entry in entries() {
        match Picture::decode(&entry.bytes(), &LIMITS) {
            Ok(_) if entry.has_gaps() => {}
            Ok(picture) => {
                assert!(!entry.refused, "{} is not refused", entry.file);
                assert_same(&entry.file, &picture, &entry.expected());
            }
            Err(error) => {
                assert!(entry.refused, "{}: {error}", entry.file);
                assert_eq!(error.kind, ErrorKind::InvalidImage);
                assert_refusal(&entry.file, &error);
            }
        }
    }
}

fn processor(side: usize, settings: &Value) -> ImageProcessor {
    let mut config = settings.clone();
    config["size"] = serde_json::json!({"height": side, "width": side});
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("preprocessor_config.json");
    fs::write(file, config.to_string()).unwrap();
    ImageProcessor::open(folder.path(), side).unwrap()
}

/// Compares the pictures with those in `strip`, which are below each other.
fn assert_resized(side: usize, strip: &str, entries: &[Entry]) {
    const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
    const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];
    let processor = processor(side, &serde_json::json!({}));
    let strip = read(strip);
    assert_eq!((strip.width, strip.height), (side, side * entries.len()));
    for (entry, expected) in entries.iter().zip(strip.samples.chunks(side * side * 3)) {
        let pixels = processor.preprocess(&entry.bytes(), &LIMITS).unwrap();
        for (at, value) in pixels.values().iter().enumerate() {
            let (channel, place) = (at / (side * side), at % (side * side));
            let sample = (f64::from(*value) * STD[channel] + MEAN[channel]) * 255.0;
            let difference = (sample - f64::from(expected[place * 3 + channel])).abs();
            assert!(difference < 1e-3, "{}: {sample} at {place}", entry.file);
        }
    }
}

#[test]
fn tensors_are_those_of_the_image_processor() {
    let mut entries = entries();
    entries.retain(|entry| !entry.refused);
    assert_resized(24, "resized-24.png", &entries);
    entries.retain(|entry| entry.large);
    assert_resized(96, "resized-96.png", &entries);
}

#[test]
fn settings_of_the_processor_are_followed() {
    let variants = fs::read(folder().join("variants.json")).unwrap();
    let variants: Vec<Value> = serde_json::from_slice(&variants).unwrap();
    let picture = fs::read(folder().join("rgb.png")).unwrap();
    for variant in variants {
        let processor = processor(3, &variant["settings"]);
        let pixels = processor.preprocess(&picture, &LIMITS).unwrap();
        let expected = variant["values"].as_array().unwrap();
        assert_eq!(pixels.values().len(), expected.len());
        for (value, expected) in pixels.values().iter().zip(expected) {
            let expected = expected.as_f64().unwrap();
            let bound = 1e-6 * expected.abs().max(1.0);
            let difference = (f64::from(*value) - expected).abs();
            assert!(difference < bound, "{}: {value}", variant["settings"]);
        }
    }
}

#[test]
fn a_file_that_ends_too_early_is_refused_or_whole() {
    let mut refused = 0;
    for entry in entries().iter().filter(|entry| !entry.refused) {
        let (bytes, expected) = (entry.bytes(), entry.expected());
        // Every length of small files, some of larger ones.
        let step = bytes.len().div_ceil(400);
        for length in (0..bytes.len()).step_by(step) {
            let name = format!("{} to {length}", entry.file);
            match Picture::decode(&bytes[..length], &LIMITS) {
                Ok(picture) if entry.turns_late() => assert!(picture.width > 0),
                Ok(picture) => assert_same(&name, &picture, &expected),
                Err(error) => {
                    assert_refusal(&name, &error);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 10_000, "{refused}");
}

/// Where these bytes are in others for the last time.
fn last_place(bytes: &[u8], wanted: &[u8]) -> usize {
    let found = bytes
        .windows(wanted.len())
        .rposition(|window| window == wanted);
    found.unwrap_or_else(|| panic!("{wanted:?} is absent"))
}

#[test]
fn a_file_of_very_many_scans_is_refused() {
    let bytes = fs::read(folder().join("420-progressive.jpg")).unwrap();
    // The first scan, which gives the same however often it is there, ends with the
    // tables of the second.
    let is_scan = |pair: &[u8]| pair == [0xff, 0xda];
    let begin = bytes.windows(2).position(is_scan).unwrap();
    let is_marker = |pair: &[u8]| pair[0] == 0xff && pair[1] >= 0xc0;
    let end = begin + 2 + bytes[begin + 2..].windows(2).position(is_marker).unwrap();
    let scans = bytes[begin..end].repeat(200);
    let bomb = [&bytes[..begin], scans.as_slice(), &bytes[end..]].concat();
    let error = Picture::decode(&bomb, &LIMITS).unwrap_err();
    let detail = error.detail.unwrap();
    assert!(detail.contains("scans"), "{detail}");
}

#[test]
fn a_frame_larger_than_its_picture_is_refused_before_it_is_decoded() {
    let mut bytes = fs::read(folder().join("lossy-alpha.webp")).unwrap();
    let size = last_place(&bytes, &[0x9d, 0x01, 0x2a]) + 3;
    bytes[size..size + 4].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
    let error = Picture::decode(&bytes, &LIMITS).unwrap_err();
    assert!(error.detail.unwrap().contains("larger than the picture"));
}

#[test]
fn damaged_bytes_do_no_harm() {
    // A generator of pseudo-random numbers (Marsaglia's xorshift).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for entry in entries() {
        let bytes = entry.bytes();
        for _ in 0..40 {
            let mut damaged = bytes.clone();
            // Headers are hit more often than their share.
            let range = [bytes.len(), bytes.len().min(80)][random(2)];
            for _ in 0..=random(3) {
                damaged[random(range)] = [0, 1, 0x7f, 0x80, 0xff, random(256) as u8][random(6)];
            }
            if let Err(error) = Picture::decode(&damaged, &LIMITS) {
                assert_refusal(&entry.file, &error);
            }
        }
    }
}

/// A picture of the fixtures whose bytes at some places are others.
fn patched(name: &str, patches: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = fs::read(folder().join(name)).unwrap();
    for (at, patch) in patches {
        bytes[*at..at + patch.len()].copy_from_slice(patch);
    }
    bytes
}

/// The checksum of PNG chunks.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// Files that declare 60000 x 60000 pixels.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let (big, little) = (60_000_u16.to_be_bytes(), 60_000_u16.to_le_bytes());
    let long = 60_000_u32.to_le_bytes();
    let mut png = patched("rgb.png", &[(18, &big), (22, &big)]);
    let sum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&sum.to_be_bytes());
    let jpeg = fs::read(folder().join("420.jpg")).unwrap();
    let frame = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    let part = fs::read(folder().join("animated-part.webp")).unwrap();
    let canvas = part.windows(4).position(|name| name == b"VP8X").unwrap() + 12;
    // Entries 0, 1 and 7 of the directory: width, height and the rows of a strip.
    let tiff = patched("rgb-16.tif", &[(18, &big), (30, &big), (102, &big)]);
    vec![
        ("PNG", png),
        (
            "JPEG",
            patched("420.jpg", &[(frame + 5, &big), (frame + 7, &big)]),
        ),
        ("GIF", patched("plain.gif", &[(6, &little), (8, &little)])),
        ("BMP", patched("24.bmp", &[(18, &long), (22, &long)])),
        (
            "WebP",
            patched(
                "animated-part.webp",
                &[(canvas, &long[..3]), (canvas + 3, &long[..3])],
            ),
        ),
        ("TIFF", tiff),
    ]
}

#[test]
fn a_header_that_declares_too_much_is_refused() {
    let limits = ImageLimits {
        max_pixels: 100_000_000,
        ..LIMITS
    };
    for (format, bytes) in bombs() {
        let error = Picture::decode(&bytes, &limits).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ImageTooLarge, "{format}: {error}");
        let detail = error.detail.unwrap();
        let size = if format == "WebP" { "60001" } else { "60000" };
        assert!(detail.contains(format) && detail.contains(size), "{detail}");
        assert!(detail.contains("100000000"), "{detail}");
    }
}

#[test]
fn limits_hold_to_the_pixel_and_the_byte() {
    let bytes = fs::read(folder().join("rgb.png")).unwrap();
    let (size, pixels) = (bytes.len() as u64, 45 * 31);
    for (max_bytes, max_pixels, fits) in [
        (size, pixels, true),
        (size - 1, pixels, false),
        (size, pixels - 1, false),
    ] {
        let limits = ImageLimits {
            max_bytes,
            max_pixels,
        };
        match Picture::decode(&bytes, &limits) {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && error.kind == ErrorKind::ImageTooLarge),
        }
    }
}

#[test]
fn a_jpeg_is_too_short_for_what_it_declares() {
    let mut bytes = fs::read(folder().join("420.jpg")).unwrap();
    let frame = bytes
        .windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap();
    bytes[frame + 5..frame + 9].copy_from_slice(&[0x0c, 0, 0x0c, 0]);
    let error = Picture::decode(&bytes, &LIMITS).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidImage);
    assert!(
        error
            .detail
            .unwrap()
            .contains("too short for the 3072 x 3072 pixels")
    );
}

#[test]
fn what_is_no_picture_is_refused() {
    let pdf = b"%PDF-1.7 and so on".as_slice();
    for bytes in [b"plain text".as_slice(), pdf, &[0; 64], &[0xff, 0xd8, 0xff]] {
        let error = Picture::decode(bytes, &LIMITS).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidImage);
        assert_eq!(error.message, "image cannot be decoded");
        assert_refusal("no picture", &error);
    }
    let error = Picture::decode(b"", &LIMITS).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidImage);
    assert_eq!(error.message, "image is empty");
}
