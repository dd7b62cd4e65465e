//! Weights as `torch.save` writes them since PyTorch 1.6: a zip archive of a
//! pickled dictionary and one uncompressed file for each storage.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{PickleError, read_state_dict};
use super::{Entry, dtype_bytes};
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};

const ZIP: &[u8] = b"PK\x03\x04";
/// Far above the dictionary of any model: 200 bytes a tensor.
const MAX_PICKLE_BYTES: u64 = 8 << 20;
const CONVERT: &str = "Convert it with save_file of the Python package safetensors.";

/// Where a tensor lies in a storage; sizes are in elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StoredTensor {
    /// As safetensors names it.
    pub(super) dtype: &'static str,
    /// The name of the storage.
    pub(super) storage: String,
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    pub(super) strides: Vec<usize>,
}

impl StoredTensor {
    /// Elements; `None` for more than can be counted.
    fn elements(&self) -> Option<usize> {
        let product = |product: usize, side: &usize| product.checked_mul(*side);
        self.shape.iter().try_fold(1, product)
    }

    /// Whether its rows lie behind each other.
    fn is_contiguous(&self) -> bool {
        let mut step = 1;
        let sides = self.shape.iter().zip(&self.strides).rev();
        self.shape.len() == self.strides.len()
            && sides.filter(|(side, _)| **side != 1).all(|(side, stride)| {
                let matches = *stride == step;
                step = side.saturating_mul(step);
                matches
            })
    }
}

/// The tensors of a file, and where they lie in it.
pub(super) fn read_entries(
    directory: &ModelDirectory,
    name: &str,
) -> Result<BTreeMap<String, Entry>, ModelError> {
    let unreadable = |error| directory.unreadable(name, &error);
    let mut file = File::open(directory.path().join(name)).map_err(unreadable)?;
    let mut start = [0; 4];
    let is_zip = file.read_exact(&mut start).is_ok() && start == *ZIP;
    if !is_zip {
        return Err(not_an_archive(name, &start));
    }
    let broken = |error: zip::result::ZipError| {
        damaged(name, format!("It is not a whole zip archive: {error}."))
    };
    let file_bytes = file.metadata().map_err(unreadable)?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(broken)?;
    let mut pickle = None;
    let mut storages = HashMap::new();
    for index in 0..archive.len() {
        let member = archive.by_index_raw(index).map_err(broken)?;
        let path = member.name().map_err(broken)?.into_owned();
        // The first folder has the name that the file had when it was saved.
        let Some((_, path)) = path.split_once('/') else {
            continue;
        };
        if path == "data.pkl" {
            pickle = Some(index);
        } else if let Some(key) = path.strip_prefix("data/") {
            let start = member
                .data_start()
                .filter(|_| member.compression() == CompressionMethod::STORE);
            // The directory of the archive may claim anything.
            let fits = start
                .and_then(|start| start.checked_add(member.size()))
                .is_none_or(|end| end <= file_bytes);
            if !fits {
                return Err(damaged(name, format!("Its data/{key} is cut off.")));
            }
            storages.insert(key.to_owned(), (start, member.size()));
        }
    }
    let Some(pickle) = pickle else {
        return Err(damaged(name, "The zip archive has no data.pkl."));
    };
    let mut bytes = Vec::new();
    let member = archive.by_index(pickle).map_err(broken)?;
    let mut member = member.take(MAX_PICKLE_BYTES);
    member.read_to_end(&mut bytes).map_err(unreadable)?;
    let tensors = read_state_dict(&bytes).map_err(|error| not_tensors(name, error))?;
    tensors
        .into_iter()
        .map(|(tensor, stored)| {
            let entry = place(name, &tensor, stored, &storages)?;
            Ok((tensor, entry))
        })
        .collect()
}

/// Where a tensor lies in the file.
fn place(
    name: &str,
    tensor: &str,
    stored: StoredTensor,
    storages: &HashMap<String, (Option<u64>, u64)>,
) -> Result<Entry, ModelError> {
    if !stored.is_contiguous() {
        return Err(unsupported(
            name,
            format!(
                "Tensor \"{tensor}\" of shape {:?} is a view with the strides {:?}.",
                stored.shape, stored.strides
            ),
        )
        .with_hint(CONVERT));
    }
    let Some((start, storage_bytes)) = storages.get(&stored.storage) else {
        return Err(damaged(
            name,
            format!(
                "Tensor \"{tensor}\" is in data/{}, which the archive does not have.",
                stored.storage
            ),
        ));
    };
    let Some(start) = start else {
        return Err(
            unsupported(name, format!("Tensor \"{tensor}\" is compressed.")).with_hint(CONVERT),
        );
    };
    // Of other types nothing is read.
    let size = dtype_bytes(stored.dtype).unwrap_or(1);
    let bytes_of = |elements: usize| elements.checked_mul(size).map(|bytes| bytes as u64);
    let bytes = stored.elements().and_then(bytes_of);
    let within = bytes_of(stored.offset)
        .zip(bytes)
        .filter(|(offset, bytes)| {
            offset
                .checked_add(*bytes)
                .is_some_and(|end| end <= *storage_bytes)
        });
    let Some((offset, bytes)) = within else {
        return Err(damaged(
            name,
            format!(
                "Tensor \"{tensor}\" of shape {:?} and type {} does not fit into data/{} of {storage_bytes} bytes.",
                stored.shape, stored.dtype, stored.storage
            ),
        ));
    };
    Ok(Entry {
        file: name.to_owned(),
        dtype: stored.dtype.to_owned(),
        shape: stored.shape,
        start: start + offset,
        bytes,
    })
}

/// The error for a file that is no archive. Before version 1.6 PyTorch wrote
/// several pickles behind each other, the first of them a magic number.
fn not_an_archive(name: &str, start: &[u8; 4]) -> ModelError {
    if start[0] == 0x80 && start[1] <= 5 {
        return unsupported(
            name,
            "It is in the format that PyTorch wrote before version 1.6.",
        )
        .with_hint(
            "Load and save it again with torch.load and torch.save of a newer PyTorch, or convert \
             it with save_file of the Python package safetensors.",
        );
    }
    damaged(name, "It is not the zip archive that torch.save writes.")
}

fn not_tensors(name: &str, error: PickleError) -> ModelError {
    match error {
        PickleError::Code(what) => unsupported(
            name,
            format!(
                "It holds \"{what}\": a state dictionary has tensors only, and code is never run."
            ),
        )
        .with_hint(CONVERT),
        PickleError::Damaged(reason) => {
            damaged(name, format!("Its data.pkl cannot be read: {reason}."))
        }
        PickleError::NotADictionary => {
            unsupported(name, "It is no dictionary of tensors.").with_hint(CONVERT)
        }
    }
}
