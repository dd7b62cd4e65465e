//! The file of quantized weights; see the module above for what is in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::blocks::{BlockBytes, Mapped};
use crate::error::ModelError;
use crate::projection::ProjectionSpec;

/// The name begins with a dot, so that the file is no part of the model's revision.
pub(super) const FILE_NAME: &str = ".pg_sight-4bit.safetensors";
pub(super) const UNFINISHED_NAME: &str = ".pg_sight-4bit.safetensors.tmp";
/// Changes when the content of the file does for the same checkpoint.
const VERSION: &str = "1";
/// Longest header that is read.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// What is read of a layer at a time; whole words of its checksum.
const PART_BYTES: usize = 1 << 20;
/// How often a file is locked that loses its name meanwhile.
const LOCK_ATTEMPTS: usize = 10;

/// The file that is about to be written, which only one process has at a time. Links are
/// not followed: what they lead to is not ours to write.
///
/// Errors: [`io::ErrorKind::WouldBlock`] where another process has it.
pub(super) fn lock_unfinished(folder: &Path) -> io::Result<File> {
    let path = folder.join(UNFINISHED_NAME);
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        // The latter, so that a pipe without a reader is an error at once.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    for _ in 0..LOCK_ATTEMPTS {
        let file = options.open(&path)?;
        match file.try_lock() {
            Ok(()) if is_at(&file, &path)? => return Ok(file),
            // Another process has just finished with it.
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => break,
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::WouldBlock,
        "another process writes it",
    ))
}

/// Whether an open file is the one that has this name now.
///
/// Errors: what has the name is no regular file.
pub(super) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let named = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        named => named?,
    };
    if !named.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "there is no regular file of its temporary name",
        ));
    }
    let open = file.metadata()?;
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// Writes all layers under a temporary name, and gives the file its own when it is
/// whole; `quantize` makes the blocks of a layer. The outer error is of that, the inner of
/// the file.
pub(super) fn write_file(
    folder: &Path,
    unfinished: File,
    layers: &[ProjectionSpec],
    header: &Header,
    quantize: impl Fn(&ProjectionSpec) -> Result<Vec<u8>, ModelError>,
) -> Result<io::Result<()>, ModelError> {
    let temporary = folder.join(UNFINISHED_NAME);
    let mut header = header.clone();
    let mut write = || -> Result<io::Result<()>, ModelError> {
        let mut out = BufWriter::new(&unfinished);
        let begun = unfinished
            .set_len(0)
            .and_then(|()| out.write_all(&header.to_bytes()));
        if let Err(error) = begun {
            return Ok(Err(error));
        }
        for spec in layers
            .iter()
            .filter(|spec| spec.quantized_bytes().is_some())
        {
            let blocks = quantize(spec)?;
            header.set_checksum(spec.name(), Checksum::of(&blocks));
            if let Err(error) = out.write_all(&blocks) {
                return Ok(Err(error));
            }
        }
        // Checksums are of equal length whatever they are: the layers stay in place.
        Ok(out
            .seek(SeekFrom::Start(0))
            .and_then(|_| out.write_all(&header.to_bytes()))
            .and_then(|()| out.flush())
            .and_then(|()| unfinished.sync_all())
            .and_then(|()| fs::rename(&temporary, folder.join(FILE_NAME))))
    };
    let written = write();
    if !matches!(written, Ok(Ok(()))) {
        // What is left is only in the way.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// FNV-1a over words of 8 bytes, which is as good against damage and faster.
struct Checksum(u64);

impl Checksum {
    fn of(bytes: &[u8]) -> u64 {
        let mut checksum = Self::new();
        checksum.add(bytes);
        checksum.0
    }

    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    /// Of several parts all but the last must be of whole words.
    fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        let words = words.chain(rest.iter().map(|byte| u64::from(*byte)));
        self.0 = words.fold(self.0, |hash, word| {
            (hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23)
        });
    }
}

/// The header of the file: what must be in it, and where.
#[derive(Debug, Clone)]
pub(super) struct Header {
    metadata: BTreeMap<String, String>,
    layers: Vec<(String, Entry)>,
}

/// As the safetensors format has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

const VERSION_KEY: &str = "pg_sight.version";
const SOURCE_KEY: &str = "pg_sight.source";
const METADATA: &str = "__metadata__";

impl Header {
    pub(super) fn new(layers: &[ProjectionSpec], source: String) -> Self {
        let mut end = 0;
        let quantized = layers.iter().filter_map(|spec| {
            let bytes = spec.quantized_bytes()?;
            let data_offsets = (end, end + bytes);
            end += bytes;
            let entry = Entry {
                dtype: "U8".to_owned(),
                shape: vec![bytes],
                data_offsets,
            };
            Some((spec.name().to_owned(), entry))
        });
        let layers: Vec<(String, Entry)> = quantized.collect();
        let mut metadata = BTreeMap::from([
            (VERSION_KEY.to_owned(), VERSION.to_owned()),
            (SOURCE_KEY.to_owned(), source),
        ]);
        metadata.extend(layers.iter().map(|(name, _)| (name.clone(), hex(0))));
        Self { metadata, layers }
    }

    fn set_checksum(&mut self, name: &str, checksum: u64) {
        self.metadata.insert(name.to_owned(), hex(checksum));
    }

    /// Length and header, as the file begins.
    fn to_bytes(&self) -> Vec<u8> {
        let mut all = serde_json::Map::new();
        let json = |value| serde_json::to_value(value).unwrap_or_default();
        all.insert(METADATA.to_owned(), json(&self.metadata));
        for (name, entry) in &self.layers {
            let entry = serde_json::to_value(entry).unwrap_or_default();
            all.insert(name.clone(), entry);
        }
        let mut text = serde_json::Value::Object(all).to_string().into_bytes();
        // Layers begin at a multiple of 8, as the format advises.
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes
    }
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

/// A file that was opened, and is the one of the checkpoint.
pub(super) struct QuantizedFile {
    pub(super) path: PathBuf,
    /// Stays open, so that all layers are of one file whatever happens to its name.
    file: File,
    /// `None` on file systems that map nothing.
    mapped: Option<Mapped>,
    /// Where the layers begin.
    start: u64,
    entries: BTreeMap<String, Entry>,
    checksums: BTreeMap<String, String>,
}

/// Why a file is not used.
pub(super) enum Unusable {
    Absent,
    Because(String),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Absent,
            _ => Self::Because(error.to_string()),
        }
    }
}

impl QuantizedFile {
    pub(super) fn open(path: &Path, expected: &Header) -> Result<Self, Unusable> {
        let because = |reason: &str| Unusable::Because(reason.to_owned());
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut header_length = [0; 8];
        file.read_exact(&mut header_length)
            .map_err(|_| because("it is cut off"))?;
        let header_length = u64::from_le_bytes(header_length);
        // Blocks must begin at even addresses.
        if header_length > MAX_HEADER_BYTES.min(length) || !header_length.is_multiple_of(8) {
            return Err(because("its header is damaged"));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header)
            .map_err(|_| because("it is cut off"))?;
        let mut all: BTreeMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|_| because("its header is damaged"))?;
        let checksums: BTreeMap<String, String> = all
            .remove(METADATA)
            .and_then(|metadata| serde_json::from_value(metadata).ok())
            .ok_or_else(|| because("it has no metadata"))?;
        for key in [VERSION_KEY, SOURCE_KEY] {
            if checksums.get(key) != expected.metadata.get(key) {
                return Err(because("it was made of other weights, or in another way"));
            }
        }
        let entries: BTreeMap<String, Entry> = all
            .into_iter()
            .map(|(name, entry)| Ok((name, serde_json::from_value(entry)?)))
            .collect::<Result<_, serde_json::Error>>()
            .map_err(|_| because("its header is damaged"))?;
        if entries != expected.layers.iter().cloned().collect() {
            return Err(because("it has other layers"));
        }
        let start = 8 + header_length;
        let end = expected.layers.last();
        let end = start + end.map_or(0, |(_, entry)| entry.data_offsets.1);
        if length != end {
            return Err(Unusable::Because(format!(
                "it has {length} bytes instead of {end}"
            )));
        }
        Ok(Self {
            path: path.to_owned(),
            mapped: Mapped::new(&file).ok(),
            file,
            start,
            entries,
            checksums,
        })
    }

    /// As on a file system that maps nothing.
    #[cfg(test)]
    pub(super) fn unmap(&mut self) {
        self.mapped = None;
    }

    /// The blocks of a layer; the error says what is wrong with them.
    ///
    /// They are read first, since a file that cannot be read is then an error, which it is not
    /// where it is mapped; what is mapped is then in memory.
    pub(super) fn read(&self, spec: &ProjectionSpec, bytes: u64) -> Result<BlockBytes, String> {
        let entry = self.entries.get(spec.name()).ok_or("a layer is missing")?;
        let start = self.start + entry.data_offsets.0;
        let mut made = match self.mapped {
            Some(_) => Vec::new(),
            None => Vec::with_capacity(bytes as usize),
        };
        let mut checksum = Checksum::new();
        let mut part = vec![0; PART_BYTES.min(bytes as usize)];
        for first in (0..bytes).step_by(PART_BYTES) {
            let part = &mut part[..PART_BYTES.min((bytes - first) as usize)];
            let read = self.file.read_exact_at(part, start + first);
            read.map_err(|error| error.to_string())?;
            checksum.add(part);
            if self.mapped.is_none() {
                made.extend_from_slice(part);
            }
        }
        if self.checksums.get(spec.name()) != Some(&hex(checksum.0)) {
            return Err(format!("the checksum of \"{}\" is wrong", spec.name()));
        }
        let Some(mapped) = &self.mapped else {
            return Ok(BlockBytes::Made(made));
        };
        let start = start as usize;
        let part = mapped.part(start..start + bytes as usize);
        part.ok_or_else(|| "a layer is missing".to_owned())
    }
}
