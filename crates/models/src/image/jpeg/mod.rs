//! JPEG: baseline, extended and progressive, with the pixels of libjpeg-turbo as
//! Pillow calls it, exactly. Decoders that are merely close differ by several
//! levels where chrominance is subsampled, which is nearly every photograph.

mod color;
mod entropy;
mod markers;
mod scan;
mod transform;

use std::fmt::Display;

use crate::error::ModelError;
use crate::image::decode::{Decoded, ImageLimits};
use crate::image::fault;
use crate::image::jpeg::color::{Colors, to_rgb};
use crate::image::jpeg::markers::{Event, Frame, Reader};
use crate::image::jpeg::scan::{Plane, decode_scan};
use crate::image::orientation::Orientation;
use crate::image::resample::Picture;

/// Programs write some ten scans. Each may go over all blocks and yet take a few
/// bytes, so that without a bound a small file could take hours.
const MAX_SCANS: usize = 100;

fn damaged(what: impl Display) -> ModelError {
    fault::damaged("JPEG", what)
}

/// Decodes a whole file. One without its end marker is refused, as Pillow does.
pub(super) fn decode(bytes: &[u8], limits: &ImageLimits) -> Result<Decoded, ModelError> {
    let mut reader = Reader::new(bytes);
    let mut planes: Option<Vec<Plane>> = None;
    let mut orientation = Orientation::default();
    let mut scans = 0;
    while let Event::Scan(scan) = reader.next(limits)? {
        scans += 1;
        if scans > MAX_SCANS {
            return Err(fault::unsupported_form(format_args!(
                "JPEG with more than {MAX_SCANS} scans"
            )));
        }
        let Some(frame) = &reader.frame else {
            return Err(damaged("a scan comes before the frame"));
        };
        let planes = planes.get_or_insert_with(|| {
            orientation = Orientation::from_metadata(reader.exif.as_deref(), reader.xmp);
            let plane = |component| Plane::new(component, frame.progressive);
            frame.components.iter().map(plane).collect()
        });
        reader.at = decode_scan(bytes, reader.at, frame, &scan, planes)?;
    }
    let (Some(frame), Some(mut planes)) = (&reader.frame, planes) else {
        return Err(damaged("it has no picture"));
    };
    for (plane, component) in planes.iter_mut().zip(&frame.components) {
        if component.quantisation.is_none() {
            return Err(damaged("a component is absent"));
        }
        plane.finish(component);
    }
    Ok(Decoded {
        picture: Picture {
            width: frame.width,
            height: frame.height,
            samples: to_rgb(frame, &planes, colors(&reader, frame)),
        },
        orientation,
    })
}

/// The meaning of the components by the rules of libjpeg: what JFIF or Adobe's
/// segment says, else what the components' names say.
fn colors(reader: &Reader, frame: &Frame) -> Colors {
    let names = frame
        .components
        .iter()
        .map(|component| component.identifier);
    match (frame.components.len(), reader.adobe) {
        (1, _) => Colors::Gray,
        (3, _) if reader.has_jfif => Colors::Ycc,
        (3, Some(0)) => Colors::Rgb,
        (3, None) if names.eq(*b"RGB") => Colors::Rgb,
        (3, _) => Colors::Ycc,
        (_, None | Some(0)) => Colors::Cmyk,
        _ => Colors::Ycck,
    }
}
