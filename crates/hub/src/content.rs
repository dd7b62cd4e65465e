//! What a repository's commit says of the content of its files.
//!
//! A commit names each file by git's object id, the SHA-1 of a short header and
//! the content. For a large file the content in git is a pointer file of Git LFS
//! (<https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md>), which names
//! the size and the SHA-256 of the real content. Both are checked with the object
//! id alone, which every listing has.

use std::fmt::Write;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::names::is_hexadecimal;

/// Digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// A file of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    /// Path in the repository.
    pub(crate) path: String,
    /// Bytes of the real content.
    pub(crate) size: u64,
    /// Git's object id, 40 digits.
    pub(crate) oid: String,
    /// The object is a pointer of Git LFS.
    pub(crate) is_large: bool,
}

impl RemoteFile {
    /// Whether `blob`, the name of a blob in the cache, stands for this content.
    /// The cache names blobs by their SHA-256, or by git's object id.
    pub(crate) fn is_blob(&self, blob: &str) -> bool {
        if self.is_large {
            blob.len() == SHA256_DIGITS
                && is_hexadecimal(blob)
                && pointer_oid(blob, self.size) == self.oid
        } else {
            blob == self.oid
        }
    }
}

/// Computes a blob's name from its content.
pub(crate) enum Hasher {
    Plain(Sha1),
    Large(Sha256),
}

impl Hasher {
    pub(crate) fn new(file: &RemoteFile) -> Self {
        if file.is_large {
            Self::Large(Sha256::new())
        } else {
            Self::Plain(git_object(file.size))
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Plain(hash) => hash.update(bytes),
            Self::Large(hash) => hash.update(bytes),
        }
    }

    /// The name of the blob with the content so far.
    pub(crate) fn finish(self) -> String {
        match self {
            Self::Plain(hash) => hexadecimal(&hash.finalize()),
            Self::Large(hash) => hexadecimal(&hash.finalize()),
        }
    }
}

fn git_object(size: u64) -> Sha1 {
    let mut hash = Sha1::new();
    hash.update(format!("blob {size}\0").as_bytes());
    hash
}

/// The object id of the pointer to a large file.
fn pointer_oid(sha256: &str, size: u64) -> String {
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n");
    let mut hash = git_object(pointer.len() as u64);
    hash.update(pointer.as_bytes());
    hexadecimal(&hash.finalize())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Hasher, RemoteFile};

    fn file(size: u64, oid: &str, is_large: bool) -> RemoteFile {
        RemoteFile {
            path: "file".into(),
            size,
            oid: oid.into(),
            is_large,
        }
    }

    fn blob(file: &RemoteFile, content: &[u8]) -> String {
        let mut hasher = Hasher::new(file);
        for piece in content.chunks(3) {
            hasher.update(piece);
        }
        hasher.finish()
    }

    // The ids are those of `git hash-object`.
    #[test]
    fn a_plain_file_is_named_by_git() {
        let hello = file(6, "ce013625030ba8dba906f756967f9e9ca394464a", false);
        assert!(hello.is_blob(&blob(&hello, b"hello\n")));
        assert!(!hello.is_blob(&blob(&hello, b"hullo\n")));
    }

    #[test]
    fn a_large_file_is_named_by_its_hash_and_found_by_its_pointer() {
        let hello = file(6, "fa61e1ef71c9908c0926776a4aa3504b3a27f159", true);
        let name = blob(&hello, b"hello\n");
        assert_eq!(
            name,
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
        assert!(hello.is_blob(&name));
        assert!(!file(7, &hello.oid, true).is_blob(&name));
        assert!(!hello.is_blob(&blob(&hello, b"hullo\n")));
        assert!(!hello.is_blob(&hello.oid));
    }
}
