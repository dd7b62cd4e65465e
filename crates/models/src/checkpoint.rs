//! Weights in the safetensors format, or as PyTorch saves them, in one file or in
//! shards. Of several layouts safetensors come first, as in transformers.
//!
//! The header is read and checked against the length of the file before any
//! tensor is; tensors are then read one at a time, so that a model is in memory
//! once. The layout (a length of 8 bytes, little endian, a JSON header of that
//! length, then the data) is described by the safetensors project.

mod pickle;
mod torch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::device::Placement;
use crate::error::ModelError;
use crate::files::{ModelDirectory, damaged, unsupported};

const SINGLE_FILE: &str = "model.safetensors";
const SHARD_INDEX: &str = "model.safetensors.index.json";
/// All files that weights begin with, the first that exists winning.
const FILES: [&str; 4] = [
    SINGLE_FILE,
    SHARD_INDEX,
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];
/// The format's own limit of a header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The shape of a tensor that a model needs, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

impl TensorSpec {
    pub(crate) fn new(name: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
        }
    }
}

/// The weights of a model: where each tensor lies.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    directory: ModelDirectory,
    /// The file of all weights, or the index of the shards.
    file: String,
    /// See [`Checkpoint::fingerprint`].
    fingerprint: String,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    file: String,
    dtype: String,
    shape: Vec<usize>,
    /// First byte in the file.
    start: u64,
    bytes: u64,
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Reads the headers of all weight files and checks them against the files.
    pub(crate) fn open(directory: &ModelDirectory) -> Result<Self, ModelError> {
        Self::open_in(directory, "")
    }

    /// The same for weights in a folder of the model; it ends with a slash.
    pub(crate) fn open_in(directory: &ModelDirectory, folder: &str) -> Result<Self, ModelError> {
        let mut files = FILES.iter().map(|file| format!("{folder}{file}"));
        let file = files.find(|file| directory.has(file));
        let file = file.unwrap_or_else(|| format!("{folder}{SINGLE_FILE}"));
        let files = if file.ends_with(".json") {
            shards(directory, folder, &file)?
        } else {
            vec![file.clone()]
        };
        let names: Vec<&str> = files.iter().map(String::as_str).collect();
        let mut checkpoint = Self {
            directory: directory.clone(),
            file,
            // Before anything is read: files that are replaced later have another one.
            fingerprint: directory.fingerprint(&names)?,
            tensors: BTreeMap::new(),
        };
        for file in &files {
            checkpoint.read_file(file)?;
        }
        Ok(checkpoint)
    }

    fn read_file(&mut self, name: &str) -> Result<(), ModelError> {
        let entries = if name.ends_with(".safetensors") {
            self.read_header(name)?
        } else {
            torch::read_entries(&self.directory, name)?
        };
        let entries = entries.into_iter();
        self.tensors
            .extend(entries.map(|(name, entry)| (current_name(name), entry)));
        Ok(())
    }

    fn read_header(&self, name: &str) -> Result<BTreeMap<String, Entry>, ModelError> {
        let unreadable = |error| self.directory.unreadable(name, &error);
        let mut file = File::open(self.directory.path().join(name)).map_err(unreadable)?;
        let file_bytes = file.metadata().map_err(unreadable)?.len();
        if file_bytes < 8 {
            return Err(damaged(
                name,
                format!("It has {file_bytes} bytes, fewer than its header needs."),
            ));
        }
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(unreadable)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > file_bytes - 8 {
            return Err(damaged(
                name,
                format!(
                    "It declares a header of {header_bytes} bytes, but the file has {file_bytes}."
                ),
            ));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(unreadable)?;
        parse_header(name, &header, file_bytes)
    }

    /// Parameters of the model: elements of all floating-point tensors.
    pub(crate) fn parameters(&self) -> u64 {
        self.tensors
            .values()
            .filter(|entry| dtype(&entry.dtype).is_some_and(|dtype| dtype.is_float()))
            .map(|entry| entry.shape.iter().product::<usize>() as u64)
            .sum()
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Checks that each of these tensors exists with its shape, in a type that can be read.
    pub(crate) fn check(&self, specs: &[TensorSpec]) -> Result<(), ModelError> {
        specs.iter().try_for_each(|spec| self.entry(spec).map(drop))
    }

    fn entry(&self, spec: &TensorSpec) -> Result<(&Entry, DType), ModelError> {
        let Some(entry) = self.tensors.get(&spec.name) else {
            return Err(damaged(
                &self.file,
                format!(
                    "Tensor \"{}\" of shape {:?}, which config.json asks for, is not in it.",
                    spec.name, spec.shape
                ),
            ));
        };
        if entry.shape != spec.shape {
            return Err(damaged(
                &entry.file,
                format!(
                    "Tensor \"{}\" has the shape {:?}, but config.json asks for {:?}.",
                    spec.name, entry.shape, spec.shape
                ),
            )
            .with_hint("The weights and config.json must come from the same model."));
        }
        let dtype = dtype(&entry.dtype)
            .filter(|dtype| dtype.is_float())
            .ok_or_else(|| {
                unsupported(
                    &entry.file,
                    format!("Tensor \"{}\" has the type {}.", spec.name, entry.dtype),
                )
                .with_hint("Supported types of weights are F32, F16, BF16 and F64.")
            })?;
        Ok((entry, dtype))
    }

    /// Reads one tensor to where it is used, as the type that is computed with.
    pub(crate) fn read(
        &self,
        name: impl Into<String>,
        shape: &[usize],
        place: &Placement,
    ) -> Result<Tensor, ModelError> {
        let tensor = self.read_stored(&TensorSpec::new(name, shape))?;
        Ok(tensor.to_dtype(place.dtype)?.to_device(&place.device)?)
    }

    /// The same in the type that it is stored in, where that is none of the longest.
    pub(crate) fn read_as_stored(
        &self,
        spec: &TensorSpec,
        place: &Placement,
    ) -> Result<Tensor, ModelError> {
        let tensor = self.read_stored(spec)?;
        let tensor = match tensor.dtype() {
            DType::F64 => tensor.to_dtype(DType::F32)?,
            _ => tensor,
        };
        Ok(tensor.to_device(&place.device)?)
    }

    /// The directory of the model.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A hash of the directory's path, 16 hexadecimal digits.
    pub(crate) fn path_hash(&self) -> String {
        self.directory.path_hash()
    }

    /// A hash of the files that tensors are read from, which changes when one of them
    /// does. It is of their state before they were read.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    fn read_stored(&self, spec: &TensorSpec) -> Result<Tensor, ModelError> {
        let (entry, dtype) = self.entry(spec)?;
        let unreadable = |error| self.directory.unreadable(&entry.file, &error);
        let mut file = File::open(self.directory.path().join(&entry.file)).map_err(unreadable)?;
        file.seek(SeekFrom::Start(entry.start))
            .map_err(unreadable)?;
        let mut bytes = vec![0; entry.bytes as usize];
        file.read_exact(&mut bytes).map_err(unreadable)?;
        let shape = spec.shape.as_slice();
        Ok(Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)?)
    }
}

/// The shards that an index names, in their order.
fn shards(
    directory: &ModelDirectory,
    folder: &str,
    index: &str,
) -> Result<Vec<String>, ModelError> {
    let ShardIndex { weight_map } = directory.json(index)?;
    let shards: BTreeSet<String> = weight_map.into_values().collect();
    if let Some(shard) = shards.iter().find(|shard| shard.contains(['/', '\\'])) {
        return Err(damaged(
            index,
            format!("The shard \"{shard}\" is not a plain file name."),
        ));
    }
    let path = |shard| format!("{folder}{shard}");
    Ok(shards.into_iter().map(path).collect())
}

/// The name that a tensor has today: checkpoints that came from TensorFlow call
/// the parameters of a normalisation gamma and beta.
fn current_name(name: String) -> String {
    match name.rsplit_once('.') {
        Some((norm, "gamma")) if norm.ends_with("LayerNorm") => format!("{norm}.weight"),
        Some((norm, "beta")) if norm.ends_with("LayerNorm") => format!("{norm}.bias"),
        _ => name,
    }
}

/// Bytes of an element, for the types that can be read.
fn dtype_bytes(name: &str) -> Option<usize> {
    dtype(name).map(|dtype| dtype.size_in_bytes())
}

fn dtype(name: &str) -> Option<DType> {
    match name {
        "F64" => Some(DType::F64),
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        "I64" => Some(DType::I64),
        "U32" => Some(DType::U32),
        "U8" => Some(DType::U8),
        _ => None,
    }
}

fn parse_header(
    name: &str,
    header: &[u8],
    file_bytes: u64,
) -> Result<BTreeMap<String, Entry>, ModelError> {
    let raw: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header)
        .map_err(|error| damaged(name, format!("Its header is not JSON: {error}.")))?;
    let data_start = 8 + header.len() as u64;
    let data_bytes = file_bytes - data_start;
    let mut entries = BTreeMap::new();
    for (tensor, value) in raw {
        if tensor == "__metadata__" {
            continue;
        }
        let entry: HeaderEntry = serde_json::from_value(value).map_err(|error| {
            damaged(
                name,
                format!("The header of tensor \"{tensor}\" is wrong: {error}."),
            )
        })?;
        let (begin, end) = entry.data_offsets;
        if begin > end || end > data_bytes {
            return Err(damaged(
                name,
                format!(
                    "Tensor \"{tensor}\" ends at byte {}, but the file has {file_bytes} bytes.",
                    data_start.saturating_add(end)
                ),
            ));
        }
        let declared = entry
            .shape
            .iter()
            .try_fold(1_usize, |product, side| product.checked_mul(*side));
        let size = dtype_bytes(&entry.dtype);
        if let Some(size) = size
            && declared.and_then(|count| count.checked_mul(size)) != Some((end - begin) as usize)
        {
            return Err(damaged(
                name,
                format!(
                    "Tensor \"{tensor}\" of shape {:?} and type {} has {} bytes.",
                    entry.shape,
                    entry.dtype,
                    end - begin
                ),
            ));
        }
        entries.insert(
            tensor,
            Entry {
                file: name.to_owned(),
                dtype: entry.dtype,
                shape: entry.shape,
                start: data_start + begin,
                bytes: end - begin,
            },
        );
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::fs;

    use super::*;
    use crate::error::ErrorKind;

    fn model(folder: &tempfile::TempDir) -> ModelDirectory {
        ModelDirectory::open(folder.path()).unwrap()
    }

    fn save(folder: &tempfile::TempDir, file: &str, name: &str, values: &[f32]) {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        let tensors = HashMap::from([(name.to_owned(), tensor)]);
        candle_core::safetensors::save(&tensors, folder.path().join(file)).unwrap();
    }

    #[test]
    fn reads_what_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder, SINGLE_FILE, "a", &[1.0, 2.0, 3.0]);
        let checkpoint = Checkpoint::open(&model(&folder)).unwrap();
        assert_eq!(checkpoint.parameters(), 3);
        let tensor = checkpoint.read("a", &[3], &Placement::default()).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn half_precision_is_widened() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = Tensor::new(&[0.5_f32, -2.0], &Device::Cpu).unwrap();
        for dtype in [DType::F16, DType::BF16, DType::F64] {
            let tensors = HashMap::from([("a", tensor.to_dtype(dtype).unwrap())]);
            candle_core::safetensors::save(&tensors, folder.path().join(SINGLE_FILE)).unwrap();
            let checkpoint = Checkpoint::open(&model(&folder)).unwrap();
            let read = checkpoint.read("a", &[2], &Placement::default()).unwrap();
            assert_eq!(read.to_vec1::<f32>().unwrap(), [0.5, -2.0]);
        }
    }

    #[test]
    fn shards_are_found_through_their_index() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder, "model-1.safetensors", "a", &[1.0]);
        save(&folder, "model-2.safetensors", "b", &[2.0, 3.0]);
        let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
        fs::write(folder.path().join(SHARD_INDEX), index).unwrap();
        let checkpoint = Checkpoint::open(&model(&folder)).unwrap();
        assert_eq!(checkpoint.parameters(), 3);
        let tensor = checkpoint.read("b", &[2], &Placement::default()).unwrap();
        assert_eq!(tensor.to_vec1::<f32>().unwrap(), [2.0, 3.0]);
        fs::remove_file(folder.path().join("model-2.safetensors")).unwrap();
        let error = Checkpoint::open(&model(&folder)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelMissing);
        assert!(error.message.contains("model-2.safetensors"));
    }

    #[test]
    fn a_shard_outside_the_directory_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let index = r#"{"weight_map": {"a": "../model.safetensors"}}"#;
        fs::write(folder.path().join(SHARD_INDEX), index).unwrap();
        let error = Checkpoint::open(&model(&folder)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelInvalid);
    }

    #[test]
    fn every_truncation_is_found() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder, SINGLE_FILE, "a", &[1.0; 16]);
        let path = folder.path().join(SINGLE_FILE);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Checkpoint::open(&model(&folder)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::ModelInvalid, "{length} bytes");
            assert!(error.message.contains(SINGLE_FILE) && error.detail.is_some());
        }
    }

    #[test]
    fn wrong_and_missing_tensors_are_named() {
        let folder = tempfile::tempdir().unwrap();
        save(&folder, SINGLE_FILE, "a", &[1.0, 2.0, 3.0]);
        let checkpoint = Checkpoint::open(&model(&folder)).unwrap();
        let error = checkpoint.check(&[TensorSpec::new("a", [4])]).unwrap_err();
        let detail = error.detail.unwrap();
        assert!(detail.contains("\"a\"") && detail.contains("[3]") && detail.contains("[4]"));
        let error = checkpoint.check(&[TensorSpec::new("b", [4])]).unwrap_err();
        assert!(error.detail.unwrap().contains("\"b\""));
    }

    #[test]
    fn a_type_that_is_no_float_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tensor = Tensor::new(&[1_i64, 2], &Device::Cpu).unwrap();
        let tensors = HashMap::from([("a", tensor)]);
        candle_core::safetensors::save(&tensors, folder.path().join(SINGLE_FILE)).unwrap();
        let checkpoint = Checkpoint::open(&model(&folder)).unwrap();
        assert_eq!(checkpoint.parameters(), 0);
        let error = checkpoint
            .read("a", &[2], &Placement::default())
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotSupported);
    }
}
