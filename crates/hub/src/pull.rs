//! A pull: from the name of a repository to a directory with its model.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFRepository, RepoTypeModel};

use crate::cache::RepositoryCache;
use crate::config::HubConfig;
use crate::content::RemoteFile;
use crate::download::Download;
use crate::error::{HubError, HubErrorKind};
use crate::names::{Repository, check_revision, is_commit};
use crate::progress::{Phase, Progress};
use crate::select;

/// Without a byte for so long a hub is given up.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// Times that a request is made again, with growing pauses, when the hub has
/// trouble (5xx, 429) or cannot be reached.
const RETRIES: usize = 3;

/// A model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The directory with its files.
    pub directory: PathBuf,
    /// The commit that the files are of, 40 digits.
    pub commit: String,
}

/// Downloads what a model needs of a repository, as it is at `revision` (a
/// branch, a tag or a commit), unless the cache holds it. Dropping the future
/// stops the download; the next pull goes on from there.
///
/// It writes files without giving way, so it is best run on a thread of its own.
///
/// # Errors
/// See [`HubErrorKind`].
pub async fn pull(
    config: &HubConfig,
    repository: &str,
    revision: &str,
    progress: &Progress,
) -> Result<Pulled, HubError> {
    let parsed = Repository::parse(repository)?;
    check_revision(revision)?;
    let cache = RepositoryCache::new(&config.cache, &parsed);
    let pulled = if config.offline {
        find_in_cache(&cache, repository, revision)
    } else {
        let result = download(config, &parsed, revision, &cache, progress).await;
        result.map_err(|error| error.without(config.token.as_deref()))
    };
    progress.change(|state| state.file = None);
    pulled
}

/// The model as it was pulled before.
fn find_in_cache(
    cache: &RepositoryCache,
    repository: &str,
    revision: &str,
) -> Result<Pulled, HubError> {
    let offline = || {
        HubError::new(
            HubErrorKind::Offline,
            format!("model \"{repository}\" is not in the cache, and the hub may not be asked"),
        )
        .detail(format!(
            "HF_HUB_OFFLINE is set, and the cache does not hold revision \"{revision}\"."
        ))
        .hint("Start PostgreSQL without HF_HUB_OFFLINE, or register a directory with sight_model_register().")
    };
    let commit = cache.commit(revision).ok_or_else(offline)?;
    let directory = cache.snapshot(&commit);
    let mut paths = Vec::new();
    list(&directory, "", &mut paths);
    select::needed(repository, paths.iter().map(String::as_str)).map_err(|_| offline())?;
    Ok(Pulled { directory, commit })
}

/// The files of a snapshot and of its folders; links to nothing are left out.
fn list(folder: &Path, prefix: &str, paths: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_file() {
            paths.push(path);
        } else if prefix.is_empty() && entry.path().is_dir() {
            list(&entry.path(), &format!("{path}/"), paths);
        }
    }
}

async fn download(
    config: &HubConfig,
    repository: &Repository,
    revision: &str,
    cache: &RepositoryCache,
    progress: &Progress,
) -> Result<Pulled, HubError> {
    let remote = connect(config, repository)?;
    let commit = resolve(&remote, revision).await?;
    let files = needed_files(&remote, &commit).await?;
    progress.change(|state| {
        state.phase = Phase::Downloading;
        state.files_total = u32::try_from(files.len()).unwrap_or(u32::MAX);
        state.bytes_total = files.iter().map(|file| file.size).sum();
    });
    let download = Download {
        remote: &remote,
        cache,
        commit: &commit,
        progress,
    };
    for file in &files {
        let blob = download.file(file).await?;
        cache.link(&commit, &file.path, &blob)?;
        progress.change(|state| state.files_done += 1);
    }
    // Last, so that a revision never stands for a commit without its files.
    if !is_commit(revision) {
        cache.write_reference(revision, &commit)?;
    }
    Ok(Pulled {
        directory: cache.snapshot(&commit),
        commit,
    })
}

fn connect(
    config: &HubConfig,
    repository: &Repository,
) -> Result<HFRepository<RepoTypeModel>, HubError> {
    let mut builder = HFClient::builder()
        .endpoint(&config.endpoint)
        .cache_dir(&config.cache)
        .user_agent(concat!("pg_sight/", env!("CARGO_PKG_VERSION")))
        .retry_max_attempts(RETRIES);
    if let Some(token) = &config.token {
        builder = builder.token(token);
    }
    let client = builder.build();
    let client = client.map_err(|error| HubError::from_client("a model", error))?;
    Ok(client.model(&repository.owner, &repository.name))
}

/// `work`, unless it takes too long.
pub(crate) async fn bounded<T>(
    what: &str,
    work: impl Future<Output = hf_hub::HFResult<T>>,
) -> Result<T, HubError> {
    match tokio::time::timeout(SILENCE, work).await {
        Ok(result) => result.map_err(|error| HubError::from_client(what, error)),
        Err(_) => Err(HubError::silent(what, SILENCE.as_secs())),
    }
}

/// The commit that a revision stands for now.
async fn resolve(remote: &HFRepository<RepoTypeModel>, revision: &str) -> Result<String, HubError> {
    let what = format!("revision \"{revision}\" of \"{}\"", remote.repo_path());
    let info = bounded(&what, remote.info().revision(revision).send()).await?;
    info.sha
        .filter(|commit| is_commit(commit))
        .ok_or_else(|| malformed(&what, "It names no commit."))
}

fn malformed(what: &str, detail: &str) -> HubError {
    HubError::new(HubErrorKind::Download, format!("could not download {what}"))
        .detail(format!("The hub's answer was not understood. {detail}"))
        .hint("Check that pg_sight.hf_endpoint or HF_ENDPOINT names a hub.")
}

/// The files of a commit that a model needs, the small ones first: what is wrong
/// with a repository shows early.
async fn needed_files(
    remote: &HFRepository<RepoTypeModel>,
    commit: &str,
) -> Result<Vec<RemoteFile>, HubError> {
    let what = format!("the list of files of \"{}\"", remote.repo_path());
    let entries = remote.list_tree().revision(commit).recursive(true).send();
    let entries = entries.map_err(|error| HubError::from_client(&what, error))?;
    let mut entries = std::pin::pin!(entries);
    let mut files = Vec::new();
    while let Some(entry) = bounded(&what, async { entries.next().await.transpose() }).await? {
        let RepoTreeEntry::File {
            oid,
            size,
            path,
            lfs,
            ..
        } = entry
        else {
            continue;
        };
        files.push(RemoteFile {
            path,
            size,
            oid,
            is_large: lfs.is_some(),
        });
    }
    let paths = files.iter().map(|file| file.path.as_str());
    let needed: HashSet<String> = select::needed(&remote.repo_path(), paths)?
        .into_iter()
        .collect();
    files.retain(|file| needed.contains(&file.path));
    // The object id becomes part of a path.
    if let Some(file) = files.iter().find(|file| !is_commit(&file.oid)) {
        return Err(malformed(
            &what,
            &format!("The object id of \"{}\" is not one.", file.path),
        ));
    }
    files.sort_by(|a, b| (a.size, &a.path).cmp(&(b.size, &b.path)));
    Ok(files)
}
