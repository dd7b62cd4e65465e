//! One file: gathered beside the cache's blobs, gone on with after a cut, and a
//! blob only when all of it is there and is what the commit names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use futures_util::StreamExt;
use hf_hub::{HFRepository, RepoTypeModel};

use crate::cache::RepositoryCache;
use crate::content::{Hasher, RemoteFile};
use crate::error::{HubError, HubErrorKind};
use crate::progress::{Phase, Progress};
use crate::pull::bounded;

/// Cuts in a row, each after some bytes, that a download survives.
const MAX_CUTS: u32 = 5;
const READ_BYTES: usize = 1 << 20;
const GO_ON: &str = "Call it again: the download goes on from there.";

pub(crate) struct Download<'a> {
    pub(crate) remote: &'a HFRepository<RepoTypeModel>,
    pub(crate) cache: &'a RepositoryCache,
    pub(crate) commit: &'a str,
    pub(crate) progress: &'a Progress,
}

/// How one attempt ended that met no error.
enum Gathered {
    /// The name of the blob that the partial file is.
    Whole(String),
    /// It is not the file that the commit names.
    Wrong,
}

impl Download<'_> {
    /// Sees to it that the cache holds a file; returns the name of its blob.
    pub(crate) async fn file(&self, file: &RemoteFile) -> Result<String, HubError> {
        let before = self.progress.state().bytes_done;
        self.progress.change(|state| {
            state.phase = Phase::Downloading;
            state.file = Some(file.path.clone());
        });
        let on_wait = || self.progress.enter(Phase::Waiting);
        let _lock = self.cache.lock(file, on_wait).await?;
        self.progress.enter(Phase::Downloading);
        let blob = match self.cache.find_blob(file) {
            Some(blob) => blob,
            None => self.fetch(file, before).await?,
        };
        self.progress
            .change(|state| state.bytes_done = before + file.size);
        Ok(blob)
    }

    async fn fetch(&self, file: &RemoteFile, before: u64) -> Result<String, HubError> {
        let partial = self.cache.partial(file)?;
        let mut cuts = 0;
        loop {
            let had = length(&partial);
            match self.gather(file, &partial, before).await {
                Ok(Gathered::Whole(blob)) => {
                    self.cache.finish(&partial, &blob)?;
                    return Ok(blob);
                }
                Ok(Gathered::Wrong) => {
                    remove(&partial)?;
                    // What was there before may be to blame, or a hub that
                    // sends a file from its start whatever it is asked for.
                    if had == 0 {
                        return Err(wrong_content(file));
                    }
                }
                Err(error) if error.kind == HubErrorKind::Download => {
                    cuts += 1;
                    let has = length(&partial);
                    if has <= had || cuts > MAX_CUTS {
                        return Err(cut_off(file, has, error));
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds what is missing to the partial file.
    async fn gather(
        &self,
        file: &RemoteFile,
        partial: &Path,
        before: u64,
    ) -> Result<Gathered, HubError> {
        let storage = |error: io::Error| HubError::storage(partial, &error);
        let mut hasher = Hasher::new(file);
        let mut output = open(partial).map_err(storage)?;
        let mut have = hash_all(&mut output, &mut hasher).map_err(storage)?;
        if have < file.size || file.size == 0 {
            let what = format!("file \"{}\"", file.path);
            let range = (have > 0).then_some(have..file.size);
            let request = self
                .remote
                .download_file_stream()
                .filename(&file.path)
                .revision(self.commit)
                .maybe_range(range);
            let (_, mut stream) = bounded(&what, request.send()).await?;
            loop {
                let next = bounded(&what, async { stream.next().await.transpose() }).await;
                let Some(piece) = next.map_err(|error| error.hint(GO_ON))? else {
                    break;
                };
                have += piece.len() as u64;
                if have > file.size {
                    return Ok(Gathered::Wrong);
                }
                output.write_all(&piece).map_err(storage)?;
                hasher.update(&piece);
                self.progress
                    .change(|state| state.bytes_done = before + have);
            }
        }
        if have < file.size {
            return Err(HubError::new(
                HubErrorKind::Download,
                format!("could not download file \"{}\"", file.path),
            )
            .detail("The hub sent less than it announced.")
            .hint(GO_ON));
        }
        let blob = hasher.finish();
        if have > file.size || !file.is_blob(&blob) {
            return Ok(Gathered::Wrong);
        }
        output.sync_all().map_err(storage)?;
        Ok(Gathered::Whole(blob))
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .open(path)
}

/// Hashes what a file holds; returns its length in bytes.
fn hash_all(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut length = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(length),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Bytes of a file; 0 where there is none.
fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn remove(path: &Path) -> Result<(), HubError> {
    fs::remove_file(path).map_err(|error| HubError::storage(path, &error))
}

/// An error of a file's download, with how far it came.
fn cut_off(file: &RemoteFile, has: u64, error: HubError) -> HubError {
    let cause = error.detail.clone().unwrap_or_default();
    error.detail(format!("{has} of {} bytes arrived. {cause}", file.size))
}

fn wrong_content(file: &RemoteFile) -> HubError {
    HubError::new(
        HubErrorKind::Download,
        format!("file \"{}\" is not what the hub announced", file.path),
    )
    .detail(format!(
        "Its {} bytes do not have the hash that the repository's commit names.",
        file.size
    ))
    .hint("Try again. If it stays so, a mirror or proxy on the way changes files.")
}
