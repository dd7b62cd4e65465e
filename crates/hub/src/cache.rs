//! One repository's folder in the hub's cache, in the layout that Hugging Face's
//! tools share:
//!
//! ```text
//! models--owner--name/blobs/HASH          the content of files
//! models--owner--name/refs/REVISION       the commit of a branch or tag
//! models--owner--name/snapshots/COMMIT/   links into blobs, by the files' paths
//! .locks/models--owner--name/             locks of files in work
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::content::RemoteFile;
use crate::error::HubError;
use crate::names::{Repository, is_commit};

const LOCK_RETRY: Duration = Duration::from_millis(100);

pub(crate) struct RepositoryCache {
    folder: PathBuf,
    locks: PathBuf,
}

/// The lock of a file in work; it ends with the open file.
pub(crate) struct FileLock {
    _file: File,
}

impl RepositoryCache {
    pub(crate) fn new(cache: &Path, repository: &Repository) -> Self {
        let name = repository.folder();
        Self {
            locks: cache.join(".locks").join(&name),
            folder: cache.join(name),
        }
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was pulled last.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers which commit a revision stands for.
    pub(crate) fn write_reference(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.folder.join("refs").join(revision);
        create_parent(&path)?;
        let write = |new: &Path| {
            let mut file = File::create(new)?;
            file.write_all(commit.as_bytes())?;
            file.sync_all()
        };
        replace(&path, write)
    }

    /// A blob with the content of a file, if the cache holds one.
    pub(crate) fn find_blob(&self, file: &RemoteFile) -> Option<String> {
        let is_whole = |name: &str| {
            let metadata = fs::metadata(self.blob(name));
            metadata.is_ok_and(|metadata| metadata.is_file() && metadata.len() == file.size)
        };
        if !file.is_large {
            return Some(file.oid.clone()).filter(|name| is_whole(name));
        }
        // A large file's blob has a name that the listing does not tell.
        let entries = fs::read_dir(self.folder.join("blobs")).ok()?;
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(|name| file.is_blob(name) && is_whole(name))
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.folder.join("blobs").join(name)
    }

    /// Where the content of a file is gathered until it is whole.
    pub(crate) fn partial(&self, file: &RemoteFile) -> Result<PathBuf, HubError> {
        let path = self.blob(&format!("{}.incomplete", file.oid));
        create_parent(&path)?;
        Ok(path)
    }

    /// Makes a whole partial file the blob `name`.
    pub(crate) fn finish(&self, partial: &Path, name: &str) -> Result<(), HubError> {
        let blob = self.blob(name);
        fs::rename(partial, &blob).map_err(|error| HubError::storage(&blob, &error))
    }

    /// Links a file of a commit to its blob.
    pub(crate) fn link(&self, commit: &str, path: &str, blob: &str) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(path);
        // From snapshots/COMMIT/, and one more for each folder in the path.
        let up = "../".repeat(2 + path.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{blob}"));
        if fs::read_link(&pointer).is_ok_and(|found| found == target) {
            return Ok(());
        }
        create_parent(&pointer)?;
        replace(&pointer, |new| symlink(&target, new))
    }

    /// Waits until no other pull works on a file; `on_wait` is called if one does.
    pub(crate) async fn lock(
        &self,
        file: &RemoteFile,
        on_wait: impl Fn(),
    ) -> Result<FileLock, HubError> {
        let path = self.locks.join(format!("{}.lock", file.oid));
        create_parent(&path)?;
        let open = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        let lock = open.map_err(|error| HubError::storage(&path, &error))?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(FileLock { _file: lock }),
                Err(TryLockError::WouldBlock) => {
                    on_wait();
                    tokio::time::sleep(LOCK_RETRY).await;
                }
                Err(TryLockError::Error(error)) => return Err(HubError::storage(&path, &error)),
            }
        }
    }
}

/// Puts a new file in the place of `path` in one step.
fn replace(path: &Path, create: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), HubError> {
    let mut new = path.as_os_str().to_owned();
    // Two pulls may do the same at a time, in this process or in two.
    new.push(format!(
        ".{}-{:?}.new",
        std::process::id(),
        std::thread::current().id()
    ));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    create(&new)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| {
            let _ = fs::remove_file(&new);
            HubError::storage(path, &error)
        })
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    match path.parent() {
        Some(parent) => {
            fs::create_dir_all(parent).map_err(|error| HubError::storage(parent, &error))
        }
        None => Ok(()),
    }
}
