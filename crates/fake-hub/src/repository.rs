//! A repository's files, with the hashes by which git and the hub name them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;

const LARGE_BYTES: usize = 1000;

pub struct Content {
    pub bytes: Vec<u8>,
    /// Git's object id: of the content, or of its pointer if it is large.
    pub oid: String,
    pub sha256: String,
}

/// The files of one commit by their paths.
pub struct Snapshot {
    pub commit: String,
    pub files: BTreeMap<String, Content>,
}

impl Content {
    fn new(bytes: Vec<u8>) -> Self {
        let sha256 = hexadecimal(&Sha256::digest(&bytes));
        let oid = if bytes.len() >= LARGE_BYTES {
            let size = bytes.len();
            let version = "version https://git-lfs.github.com/spec/v1";
            object_id(format!("{version}\noid sha256:{sha256}\nsize {size}\n").as_bytes())
        } else {
            object_id(&bytes)
        };
        Self { bytes, oid, sha256 }
    }

    pub fn is_large(&self) -> bool {
        self.bytes.len() >= LARGE_BYTES
    }
}

impl Snapshot {
    /// Reads all files of a directory.
    pub fn read(directory: &Path) -> Self {
        let mut files = BTreeMap::new();
        collect(directory, "", &mut files);
        let names = files
            .iter()
            .map(|(path, content): (&String, &Content)| format!("{path} {}\n", content.oid));
        let commit = hexadecimal(&Sha1::digest(names.collect::<String>()));
        Self { commit, files }
    }
}

fn collect(folder: &Path, prefix: &str, files: &mut BTreeMap<String, Content>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    for entry in entries {
        let entry = entry.expect("an entry");
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{path}/"), files);
        } else {
            let bytes = fs::read(entry.path()).expect("a file");
            files.insert(path, Content::new(bytes));
        }
    }
}

fn object_id(bytes: &[u8]) -> String {
    let mut object = format!("blob {}\0", bytes.len()).into_bytes();
    object.extend_from_slice(bytes);
    hexadecimal(&Sha1::digest(&object))
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
