//! `preprocessor_config.json`: how a picture becomes the input of a vision tower.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};
use crate::image::decode::ImageLimits;
use crate::image::resample::{CHANNELS, Filter, Picture, resize};

const FILE: &str = "preprocessor_config.json";
/// Mean and standard deviation of CLIP's training pictures, the defaults of BLIP.
const CLIP_MEAN: [f64; CHANNELS] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const CLIP_STD: [f64; CHANNELS] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// A preprocessed picture: (3, side, side), ready for the vision tower.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    values: Vec<f32>,
}

impl Pixels {
    /// Values by channel, row and column.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

#[derive(Debug, Deserialize)]
#[serde(default)]
struct Config {
    do_resize: bool,
    do_rescale: bool,
    do_normalize: bool,
    do_center_crop: Option<bool>,
    do_pad: Option<bool>,
    size: Value,
    resample: u64,
    rescale_factor: f64,
    image_mean: [f64; CHANNELS],
    image_std: [f64; CHANNELS],
}

impl Default for Config {
    fn default() -> Self {
        Self {
            do_resize: true,
            do_rescale: true,
            do_normalize: true,
            do_center_crop: None,
            do_pad: None,
            size: Value::from(384),
            resample: 3,
            rescale_factor: 1.0 / 255.0,
            image_mean: CLIP_MEAN,
            image_std: CLIP_STD,
        }
    }
}

/// The image processor of BLIP: resize to a square, rescale, normalise.
#[derive(Debug)]
pub struct ImageProcessor {
    side: usize,
    filter: Filter,
    /// The value of each sample of each channel after rescaling and normalising.
    table: Vec<[f32; 256]>,
}

impl ImageProcessor {
    /// Reads the processor of a model directory; `side` is what its vision tower takes.
    pub fn open(directory: &Path, side: usize) -> Result<Self, ModelError> {
        Self::read(&ModelDirectory::open(directory)?, side)
    }

    pub(crate) fn read(directory: &ModelDirectory, side: usize) -> Result<Self, ModelError> {
        let config: Config = directory.json(FILE)?;
        if !config.do_resize || config.do_center_crop == Some(true) || config.do_pad == Some(true) {
            return Err(unsupported(
                FILE,
                "It has do_resize off, or do_center_crop or do_pad on.",
            )
            .with_hint("Supported are resizing to a square, rescaling and normalising."));
        }
        let size = configured_size(&config.size)?;
        if size != (side, side) {
            return Err(damaged(
                FILE,
                format!(
                    "Its size is {} x {}, but the image_size in config.json is {side}.",
                    size.0, size.1
                ),
            ));
        }
        let filter = Filter::from_pillow(config.resample).ok_or_else(|| {
            unsupported(FILE, format!("Its resample is {}.", config.resample))
                .with_hint("Supported filters are 1 (Lanczos), 2 (bilinear) and 3 (bicubic).")
        })?;
        if config.image_std.contains(&0.0) {
            return Err(damaged(FILE, "Its image_std has a 0."));
        }
        let table = (0..CHANNELS)
            .map(|channel| table(&config, channel))
            .collect();
        Ok(Self {
            side,
            filter,
            table,
        })
    }

    pub(crate) fn side(&self) -> usize {
        self.side
    }

    /// A picture of nothing but zeros, which is the mean of pictures.
    pub(crate) fn blank(&self) -> Pixels {
        Pixels {
            values: vec![0.0; CHANNELS * self.side * self.side],
        }
    }

    /// Decodes, resizes and normalises an encoded picture.
    ///
    /// Errors: those of [`Picture::decode`].
    pub fn preprocess(&self, bytes: &[u8], limits: &ImageLimits) -> Result<Pixels, ModelError> {
        let picture = Picture::decode(bytes, limits)?;
        Ok(self.normalise(&resize(picture, self.side, self.side, self.filter)))
    }

    fn normalise(&self, picture: &Picture) -> Pixels {
        let mut values = Vec::with_capacity(picture.samples.len());
        for (channel, table) in self.table.iter().enumerate() {
            let samples = picture.samples.iter().skip(channel).step_by(CHANNELS);
            values.extend(samples.map(|sample| table[usize::from(*sample)]));
        }
        Pixels { values }
    }
}

/// Height and width; older configurations give one number for both.
fn configured_size(size: &Value) -> Result<(usize, usize), ModelError> {
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).map(|n| n as usize);
    let both = match size {
        Value::Number(_) => number(Some(size)).map(|side| (side, side)),
        _ => number(size.get("height")).zip(number(size.get("width"))),
    };
    both.ok_or_else(|| {
        unsupported(FILE, format!("Its size is {size}."))
            .with_hint("The size must have a height and a width.")
    })
}

/// Rescaling in double and normalising in single precision, as transformers does
/// with NumPy.
fn table(config: &Config, channel: usize) -> [f32; 256] {
    let (mean, std) = (
        config.image_mean[channel] as f32,
        config.image_std[channel] as f32,
    );
    std::array::from_fn(|sample| {
        let value = if config.do_rescale {
            (sample as f64 * config.rescale_factor) as f32
        } else {
            sample as f32
        };
        if config.do_normalize {
            (value - mean) / std
        } else {
            value
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::error::ErrorKind;

    fn read(json: &str) -> Result<ImageProcessor, ModelError> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), json).unwrap();
        ImageProcessor::read(&ModelDirectory::open(folder.path()).unwrap(), 32)
    }

    #[test]
    fn both_forms_of_the_size_are_read() {
        for json in [
            r#"{"size": 32}"#,
            r#"{"size": {"height": 32, "width": 32}}"#,
        ] {
            assert_eq!(read(json).unwrap().side(), 32);
        }
    }

    #[test]
    fn what_is_not_computed_is_refused() {
        for json in [
            r#"{"size": 32, "do_resize": false}"#,
            r#"{"size": 32, "do_center_crop": true}"#,
            r#"{"size": 32, "resample": 0}"#,
            r#"{"size": {"shortest_edge": 32}}"#,
        ] {
            assert_eq!(
                read(json).unwrap_err().kind,
                ErrorKind::NotSupported,
                "{json}"
            );
        }
        for json in [
            r#"{"size": 64}"#,
            r#"{"size": 32, "image_std": [1, 0, 1]}"#,
            r#"{"size": 32, "image_mean": [1, 0]}"#,
            "[",
        ] {
            assert_eq!(
                read(json).unwrap_err().kind,
                ErrorKind::ModelInvalid,
                "{json}"
            );
        }
    }

    #[test]
    fn samples_are_rescaled_and_normalised() {
        let processor = read(r#"{"size": 32}"#).unwrap();
        let black = processor.table[0][0];
        assert!((f64::from(black) + CLIP_MEAN[0] / CLIP_STD[0]).abs() < 1e-6);
        let white = processor.table[2][255];
        assert!((f64::from(white) - (1.0 - CLIP_MEAN[2]) / CLIP_STD[2]).abs() < 1e-6);
    }
}
