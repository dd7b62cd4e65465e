//! Weights of 4 bits: made of those of a checkpoint, one layer after the other, and
//! kept in a file, so that the next load only reads them.
//!
//! The file is in the safetensors format. Each layer is a tensor of bytes, blocks of
//! GGML's `Q4_K` or `Q6_K`, named after the first weight that it was made of. The
//! metadata have the version of this layout, a hash that changes when the checkpoint
//! does, and a checksum of each layer.

mod file;

use std::cell::RefCell;
use std::path::PathBuf;
use std::{fs, io};

use candle_core::quantized::{GgmlDType, QStorage, QTensor, QuantizedType};
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Shape, Tensor};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSlice;

use crate::checkpoint::Checkpoint;
use crate::device::{Placement, compute};
use crate::error::{ErrorKind, ModelError};
use crate::ops::floats;
use crate::projection::ProjectionSpec;
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

/// Errors where there are no products with weights of 4 bits.
pub(crate) fn check_place(place: &Placement) -> Result<(), ModelError> {
    if place.device.is_cpu() {
        return Ok(());
    }
    Err(ModelError::new(
        ErrorKind::NotSupported,
        format!("4 bits are not supported on {}", place.device_name()),
    )
    .with_hint(
        "Turn pg_sight.load_in_4bit off, which takes two bytes of the device's memory \
         for each parameter, or set pg_sight.device to \"cpu\".",
    ))
}

/// What a layer is quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// 4.5 bits an element.
    Weights,
    /// 6.6 bits: of an output layer the differences count.
    Output,
}

impl Precision {
    fn dtype(self) -> GgmlDType {
        match self {
            Self::Weights => GgmlDType::Q4K,
            Self::Output => GgmlDType::Q6K,
        }
    }

    /// Bytes of a layer; `None` where its inputs do not fill whole blocks, so that it
    /// stays as it is.
    pub(crate) fn bytes(self, outputs: usize, inputs: usize) -> Option<u64> {
        let dtype = self.dtype();
        let blocks = inputs / dtype.block_size() * outputs;
        inputs
            .is_multiple_of(dtype.block_size())
            .then(|| (blocks * dtype.type_size()) as u64)
    }
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

    /// Reads a layer; `None` where it stays as it is.
    pub(crate) fn read(
        &self,
        spec: &ProjectionSpec,
    ) -> Result<Option<QuantizedWeight>, ModelError> {
        let (outputs, inputs) = (spec.outputs(), spec.inputs());
        let Some(bytes) = spec.precision.bytes(outputs, inputs) else {
            return Ok(None);
        };
        let data = match self.stored(spec, bytes) {
            Some(data) => data,
            None => quantize(self.checkpoint, spec)?,
        };
        let dtype = spec.precision.dtype();
        let QStorage::Cpu(blocks) = QStorage::from_data(data.into(), &Device::Cpu, dtype)? else {
            return Err(ModelError::new(
                ErrorKind::Internal,
                "blocks for the CPU are elsewhere",
            ));
        };
        Ok(Some(QuantizedWeight {
            blocks,
            outputs,
            inputs,
        }))
    }

    /// The blocks of a layer in the file. One that is damaged is not used any more: the
    /// next load makes it again, and this one makes the layers.
    fn stored(&self, spec: &ProjectionSpec, bytes: u64) -> Option<Vec<u8>> {
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
    let mut blocks = Vec::new();
    for part in &spec.parts {
        let weight = checkpoint.read(&part.name, &part.shape, &Placement::default())?;
        let values: Vec<f32> = weight.flatten_all()?.to_vec1()?;
        drop(weight);
        let task = |rows: &[f32]| -> candle_core::Result<Vec<u8>> {
            let rows = Tensor::from_slice(rows, (rows.len() / inputs, inputs), &Device::Cpu)?;
            let quantized = QTensor::quantize(&rows, spec.precision.dtype())?;
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

/// A weight in 4 bits, on the CPU. Not as candle's own `QTensor`, which would keep a second,
/// larger copy of all blocks in another order.
pub(crate) struct QuantizedWeight {
    blocks: Box<dyn QuantizedType>,
    outputs: usize,
    inputs: usize,
}

impl std::fmt::Debug for QuantizedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "blocks of ({}, {})", self.outputs, self.inputs)
    }
}

impl QuantizedWeight {
    /// `x W^T`: (rows, inputs) to (rows, outputs). The inputs are rounded to 8 bits.
    pub(crate) fn product(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let dtype = x.dtype();
        let x = x.to_dtype(DType::F32)?.contiguous()?;
        x.apply_op1_no_bwd(&BlockProduct(self))?.to_dtype(dtype)
    }
}

struct BlockProduct<'a>(&'a QuantizedWeight);

impl CustomOp1 for BlockProduct<'_> {
    fn name(&self) -> &'static str {
        "block-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let QuantizedWeight {
            blocks,
            outputs,
            inputs,
        } = self.0;
        let (rows, width) = layout.shape().dims2()?;
        if width != *inputs {
            candle_core::bail!("{width} inputs for a layer of {inputs}")
        }
        let mut values = vec![0.0; rows * outputs];
        blocks.matmul_t((rows, *inputs, *outputs), floats(x, layout)?, &mut values)?;
        Ok((CpuStorage::F32(values), Shape::from((rows, *outputs))))
    }
}

#[cfg(test)]
mod tests;
