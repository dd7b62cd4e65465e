//! The files of a model directory: reading configuration, and the revision that
//! tells one state of a directory from another.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::de::DeserializeOwned;

use crate::error::{ErrorKind, ModelError};

/// How deep the folders of a model are searched for the revision.
const MAX_DEPTH: usize = 3;

/// A directory that holds a model in the layout of Hugging Face.
#[derive(Debug, Clone)]
pub(crate) struct ModelDirectory {
    path: PathBuf,
}

impl ModelDirectory {
    /// Errors with [`ErrorKind::ModelMissing`] where there is no such directory.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let missing = |reason: String| {
            ModelError::new(
                ErrorKind::ModelMissing,
                format!("model directory \"{}\" does not exist", path.display()),
            )
            .with_detail(reason)
            .with_hint("Register the model with the directory that holds its config.json.")
        };
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self {
                path: path.to_owned(),
            }),
            Ok(_) => Err(missing("It is not a directory.".to_owned())),
            Err(error) => Err(missing(format!("It cannot be opened: {error}."))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.path.join(name).is_file()
    }

    /// Reads a whole file.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        fs::read(self.path.join(name)).map_err(|error| self.unreadable(name, &error))
    }

    /// The error for a file that cannot be opened or read.
    pub(crate) fn unreadable(&self, name: &str, error: &io::Error) -> ModelError {
        let looked = format!("Looked in directory \"{}\".", self.path.display());
        if error.kind() == io::ErrorKind::NotFound {
            return ModelError::new(
                ErrorKind::ModelMissing,
                format!("model file \"{name}\" does not exist"),
            )
            .with_detail(looked)
            .with_hint("Copy the model again, with all of its files.");
        }
        ModelError::new(
            ErrorKind::ModelMissing,
            format!("model file \"{name}\" cannot be read"),
        )
        .with_detail(format!("{looked} The system says: {error}."))
        .with_hint("The file must be readable for the user that runs the model server.")
    }

    /// Reads a JSON file that must exist.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, ModelError> {
        serde_json::from_slice(&self.read(name)?)
            .map_err(|error| damaged(name, format!("It is not the JSON expected: {error}.")))
    }

    /// Reads a JSON file that may be absent.
    pub(crate) fn optional_json<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<T>, ModelError> {
        if self.has(name) {
            self.json(name).map(Some)
        } else {
            Ok(None)
        }
    }

    /// A hash of the names, sizes and modification times of all files, 16
    /// hexadecimal digits: it changes when a file of the model is replaced.
    pub(crate) fn revision(&self) -> Result<String, ModelError> {
        let mut entries = Vec::new();
        collect(&self.path, "", 0, &mut entries).map_err(|error| {
            ModelError::new(
                ErrorKind::ModelMissing,
                format!("model directory \"{}\" cannot be read", self.path.display()),
            )
            .with_detail(format!("The system says: {error}."))
        })?;
        entries.sort();
        Ok(hash_of(&entries))
    }

    /// The same of some files only.
    pub(crate) fn fingerprint(&self, files: &[&str]) -> Result<String, ModelError> {
        let entry = |name: &&str| {
            let state = state_of(&self.path.join(name));
            let (size, modified_ns) = state.map_err(|error| self.unreadable(name, &error))?;
            Ok::<_, ModelError>(((*name).to_owned(), size, modified_ns))
        };
        let entries = files.iter().map(entry).collect::<Result<Vec<_>, _>>()?;
        Ok(hash_of(&entries))
    }

    /// A hash of the path, 16 hexadecimal digits: another for each model.
    pub(crate) fn path_hash(&self) -> String {
        let mut hash = Fnv1a::new();
        hash.write(self.path.as_os_str().as_encoded_bytes());
        format!("{:016x}", hash.0)
    }
}

/// The error for a file whose content is wrong.
pub(crate) fn damaged(name: &str, detail: impl Into<String>) -> ModelError {
    ModelError::new(
        ErrorKind::ModelInvalid,
        format!("file \"{name}\" of the model is damaged"),
    )
    .with_detail(detail)
    .with_hint("Copy the file again from where the model came from.")
}

/// The error for a model that is whole, but of a kind that is not supported.
pub(crate) fn unsupported(name: &str, detail: impl Into<String>) -> ModelError {
    ModelError::new(
        ErrorKind::NotSupported,
        format!("model is not supported: \"{name}\" asks for what is not implemented"),
    )
    .with_detail(detail)
}

/// Size in bytes and modification time in ns. Follows links: a hub cache links its
/// files to blobs.
fn state_of(path: &Path) -> io::Result<(u64, u128)> {
    let metadata = fs::metadata(path)?;
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH);
    let modified_ns = modified.map_or(0, |since| since.as_nanos());
    Ok((metadata.len(), modified_ns))
}

/// A hash of (name, size in bytes, modification time in ns), 16 hexadecimal digits.
fn hash_of(entries: &[(String, u64, u128)]) -> String {
    let mut hash = Fnv1a::new();
    for (name, size, modified_ns) in entries {
        hash.write(name.as_bytes());
        hash.write(&[0]);
        hash.write(&size.to_le_bytes());
        hash.write(&modified_ns.to_le_bytes());
    }
    format!("{:016x}", hash.0)
}

/// Gathers (relative name, size in bytes, modification time in ns).
fn collect(
    folder: &Path,
    prefix: &str,
    depth: usize,
    entries: &mut Vec<(String, u64, u128)>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let relative = format!("{prefix}{name}");
        if fs::metadata(entry.path())?.is_dir() {
            if depth < MAX_DEPTH {
                collect(&entry.path(), &format!("{relative}/"), depth + 1, entries)?;
            }
            continue;
        }
        let (size, modified_ns) = state_of(&entry.path())?;
        entries.push((relative, size, modified_ns));
    }
    Ok(())
}

/// FNV-1a with 64 bits: its values stay the same over releases of the compiler,
/// unlike those of the standard hasher.
struct Fnv1a(u64);

impl Fnv1a {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u64::from(*byte);
            self.0 = self.0.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_named() {
        let error = ModelDirectory::open(Path::new("/no/such/model")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::ModelMissing);
        assert!(error.message.contains("/no/such/model"));
        assert!(error.detail.is_some() && error.hint.is_some());
    }

    #[test]
    fn a_file_is_no_directory() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model");
        fs::write(&file, "x").unwrap();
        let error = ModelDirectory::open(&file).unwrap_err();
        assert_eq!(error.detail.as_deref(), Some("It is not a directory."));
    }

    #[test]
    fn the_revision_changes_with_any_file() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("1_Pooling")).unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("1_Pooling/config.json"), "{}").unwrap();
        let directory = ModelDirectory::open(folder.path()).unwrap();
        let first = directory.revision().unwrap();
        assert_eq!(first, directory.revision().unwrap());
        fs::write(folder.path().join("1_Pooling/config.json"), "{ }").unwrap();
        let second = directory.revision().unwrap();
        assert_ne!(first, second);
        fs::write(folder.path().join("vocab.txt"), "").unwrap();
        assert_ne!(second, directory.revision().unwrap());
    }
}
