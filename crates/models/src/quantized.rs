//! Weights of 4 bits: made of those of a checkpoint, one layer after the other, and
//! kept in a file, which the next load maps.
//!
//! The file is in the safetensors format. Each layer is a tensor of bytes, blocks of
//! GGML's `Q4_K` or `Q6_K`, named after the first weight that it was made of. The
//! metadata have the version of this layout, a hash that changes when the checkpoint
//! does, and a checksum of each layer.

mod blocks;
mod file;

use std::cell::RefCell;
use std::path::PathBuf;
use std::{fs, io};

use candle_core::quantized::QTensor;
use candle_core::{Device, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSlice;

use crate::checkpoint::Checkpoint;
use crate::device::{Placement, compute};
use crate::error::ModelError;
use crate::projection::ProjectionSpec;
pub(crate) use blocks::{BlockBytes, Precision, QuantizedWeight};
use file::{FILE_NAME, Header, QuantizedFile, Unusable, lock_unfinished, write_file};

/// Rows that a thread quantizes at a time.
const ROWS_PER_TASK: usize = 64;

/// How a language model is loaded in 4 bits.
pub struct FourBits<'a> {
    /// Folders for the file of quantized weights, where the model's own directory
    /// cannot be written to.
    pub folders: Vec<PathBuf>,
    /// Gets sentences for the log: what is made, and why a file is not used.
    pub log: &'a (dyn Fn(&str) + Sync),
}

/// The quantized layers of one checkpoint.
pub(crate) struct QuantizedWeights<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a FourBits<'a>,
    /// Without one, layers are quantized when they are read.
    file: RefCell<Option<QuantizedFile>>,
}

impl<'a> QuantizedWeights<'a> {
    /// Finds the file of this checkpoint, or makes it.
    ///
    /// Errors: those of reading the checkpoint. A file that is damaged, of another
    /// checkpoint, or cannot be written is no error, but goes to the log.
    pub(crate) fn open(
        checkpoint: &'a Checkpoint,
        layers: &[ProjectionSpec],
        options: &'a FourBits<'a>,
    ) -> Result<Self, ModelError> {
        let header = Header::new(layers, checkpoint.fingerprint().to_owned());
        let own = checkpoint.directory().to_owned();
        // A folder of its own for each model, where they share one.
        let shared = |folder: &PathBuf| folder.join(checkpoint.path_hash());
        let folders: Vec<PathBuf> = std::iter::once(own.clone())
            .chain(options.folders.iter().map(shared))
            .collect();
        let mut file = None;
        for folder in &folders {
            let path = folder.join(FILE_NAME);
            match QuantizedFile::open(&path, &header) {
                Ok(found) => {
                    file = Some(found);
                    break;
                }
                Err(Unusable::Absent) => {}
                Err(Unusable::Because(reason)) => (options.log)(&format!(
                    "weights of 4 bits in \"{}\" are made again: {reason}",
                    path.display()
                )),
            }
        }
        if file.is_none() {
            file = make_in_any(&folders, checkpoint, layers, &header, options)?;
        }
        Ok(Self {
            checkpoint,
            options,
            file: RefCell::new(file),
        })
    }

    /// Reads a layer to where it is used; `None` where it stays as it is.
    pub(crate) fn read(
        &self,
        spec: &ProjectionSpec,
        device: &Device,
    ) -> Result<Option<QuantizedWeight>, ModelError> {
        let size = (spec.outputs(), spec.inputs());
        let Some(bytes) = spec.precision.bytes(size.0, size.1) else {
            return Ok(None);
        };
        let data = match self.stored(spec, bytes) {
            Some(data) => data,
            None => BlockBytes::Made(quantize(self.checkpoint, spec)?),
        };
        let weight = QuantizedWeight::new(data, spec.precision, size, device)?;
        Ok(Some(weight))
    }

    /// The blocks of a layer in the file. One that is damaged is not used any more: the
    /// next load makes it again, and this one makes the layers.
    fn stored(&self, spec: &ProjectionSpec, bytes: u64) -> Option<BlockBytes> {
        let mut kept = self.file.borrow_mut();
        let read = kept.as_ref()?.read(spec, bytes);
        if let Err(reason) = &read
            && let Some(file) = kept.take()
        {
            self.discard(&file, reason);
        }
        read.ok()
    }

    fn discard(&self, file: &QuantizedFile, reason: &str) {
        let removed = fs::remove_file(&file.path);
        (self.options.log)(&format!(
            "weights of 4 bits in \"{}\" are damaged: {reason}{}",
            file.path.display(),
            removed.map_or_else(
                |error| format!("; the file cannot be removed: {error}"),
                |()| "; the file is removed".to_owned()
            )
        ));
    }
}

/// The blocks of a layer.
fn quantize(checkpoint: &Checkpoint, spec: &ProjectionSpec) -> Result<Vec<u8>, ModelError> {
    let inputs = spec.inputs();
    let mut blocks = Vec::with_capacity(spec.quantized_bytes().unwrap_or(0) as usize);
    for part in &spec.parts {
        let weight = checkpoint.read(&part.name, &part.shape, &Placement::default())?;
        let values: Vec<f32> = weight.flatten_all()?.to_vec1()?;
        drop(weight);
        let task = |rows: &[f32]| -> candle_core::Result<Vec<u8>> {
            let rows = Tensor::from_slice(rows, (rows.len() / inputs, inputs), &Device::Cpu)?;
            let quantized = QTensor::quantize(&rows, spec.precision.format())?;
            Ok(quantized.data()?.into_owned())
        };
        let done: candle_core::Result<Vec<Vec<u8>>> = compute(|| {
            let tasks = values.par_chunks(ROWS_PER_TASK * inputs).with_max_len(1);
            tasks.map(task).collect()
        });
        done?.into_iter().for_each(|part| blocks.extend(part));
    }
    Ok(blocks)
}

/// Makes the file in the first folder that takes it; `None` where none does, or where
/// another process is making it.
fn make_in_any(
    folders: &[PathBuf],
    checkpoint: &Checkpoint,
    layers: &[ProjectionSpec],
    header: &Header,
    options: &FourBits<'_>,
) -> Result<Option<QuantizedFile>, ModelError> {
    for (index, folder) in folders.iter().enumerate() {
        // The first is the model's own, which must be there.
        let made = if index == 0 {
            Ok(())
        } else {
            fs::create_dir_all(folder)
        };
        let unfinished = made.and_then(|()| lock_unfinished(folder));
        let path = folder.join(FILE_NAME);
        let written = match unfinished {
            Ok(unfinished) => {
                (options.log)(&format!(
                    "quantizing weights to 4 bits into \"{}\"",
                    path.display()
                ));
                write_file(folder, unfinished, layers, header, |spec| {
                    quantize(checkpoint, spec)
                })?
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                (options.log)(&format!(
                    "weights of 4 bits are quantized for this load only: another process \
                     is writing \"{}\"",
                    path.display()
                ));
                return Ok(None);
            }
            Err(error) => Err(error),
        };
        let reason = match written {
            Ok(()) => match QuantizedFile::open(&path, header) {
                Ok(file) => return Ok(Some(file)),
                Err(Unusable::Absent) => "it is gone".to_owned(),
                Err(Unusable::Because(reason)) => reason,
            },
            Err(error) => error.to_string(),
        };
        (options.log)(&format!(
            "weights of 4 bits cannot be kept in \"{}\": {reason}",
            path.display()
        ));
    }
    (options.log)("weights of 4 bits are kept nowhere and quantized at each load");
    Ok(None)
}

#[cfg(test)]
mod tests;
