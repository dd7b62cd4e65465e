//! Pulls from a hub on this machine, whole and broken.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fake_hub::{FakeHub, Fault};
use sight_hub::{HubConfig, HubError, HubErrorKind, Phase, Progress, Pulled, pull};
use tempfile::TempDir;

const REPOSITORY: &str = "some-one/small-model";
const TOKEN: &str = "hf_secretsecret";
/// Bytes of the weights.
const WEIGHTS: usize = 200_000;

/// A hub with one repository, and an empty cache.
struct Place {
    hub: FakeHub,
    folder: TempDir,
    commit: String,
}

fn write(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn weights(seed: u8) -> Vec<u8> {
    (0..WEIGHTS)
        .map(|i| (i / 251) as u8 ^ i as u8 ^ seed)
        .collect()
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        for (path, content) in [
            (".gitattributes", &b"x"[..]),
            ("1_Pooling/config.json", b"{\"pooling\": 1}"),
            ("README.md", b"# Model"),
            ("config.json", b"{}"),
            ("modules.json", b"[]"),
            ("onnx/model.onnx", &[1; 5000]),
            ("pytorch_model.bin", &[2; 5000]),
            ("tokenizer.json", &[b'x'; 3000]),
            ("model.safetensors", &weights(0)),
        ] {
            write(&source.join(path), content);
        }
        let hub = FakeHub::start();
        let commit = hub.publish(REPOSITORY, &source);
        Self {
            hub,
            folder,
            commit,
        }
    }

    fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The repository's folder in the cache.
    fn cached(&self, path: &str) -> PathBuf {
        let folder = self.home().join("hub/models--some-one--small-model");
        folder.join(path)
    }

    fn config(&self, environment: &[(&str, &str)]) -> HubConfig {
        let variable = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        HubConfig::new(Some(&self.hub.endpoint()), Some(&self.home()), variable).unwrap()
    }

    async fn pull(&self) -> Result<Pulled, HubError> {
        pull(&self.config(&[]), REPOSITORY, "main", &Progress::default()).await
    }

    /// Bytes of the weights that an unfinished pull has left.
    fn partial_bytes(&self) -> u64 {
        let blobs = fs::read_dir(self.cached("blobs")).unwrap().flatten();
        let partial = blobs.filter(|entry| {
            let name = entry.file_name();
            name.to_str().unwrap().ends_with(".incomplete")
        });
        partial.map(|entry| entry.metadata().unwrap().len()).sum()
    }
}

fn files_below(folder: &Path, prefix: &str) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            files.extend(files_below(&entry.path(), &format!("{name}/")));
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

#[tokio::test]
async fn a_pull_brings_what_a_model_needs_in_the_caches_layout() {
    let place = Place::new();
    let progress = Progress::default();
    let pulled = pull(&place.config(&[]), REPOSITORY, "main", &progress)
        .await
        .unwrap();
    assert_eq!(pulled.commit, place.commit);
    let snapshot = place.cached(&format!("snapshots/{}", place.commit));
    assert_eq!(pulled.directory, snapshot);
    let names = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "tokenizer.json",
    ];
    assert_eq!(files_below(&snapshot, ""), names);
    for name in names {
        let pulled = fs::read(snapshot.join(name)).unwrap();
        let source = place.folder.path().join("source").join(name);
        assert!(pulled == fs::read(source).unwrap(), "{name}");
        let link = fs::read_link(snapshot.join(name)).unwrap();
        assert!(link.is_relative() && link.to_str().unwrap().contains("/blobs/"));
    }
    // A large file's blob has its SHA-256 for a name, as Hugging Face's tools
    // look for it; a small one's has git's object id.
    let blob = |name: &str| {
        let link = fs::read_link(snapshot.join(name)).unwrap();
        link.file_name().unwrap().len()
    };
    assert_eq!((blob("model.safetensors"), blob("config.json")), (64, 40));
    let reference = fs::read_to_string(place.cached("refs/main")).unwrap();
    assert_eq!(reference, place.commit);
    let state = progress.state();
    assert_eq!((state.files_done, state.files_total), (5, 5));
    assert_eq!(state.bytes_done, state.bytes_total);
    assert!(state.bytes_total > WEIGHTS as u64 && state.file.is_none());
}

#[tokio::test]
async fn what_is_there_is_not_downloaded_again() {
    let place = Place::new();
    place.pull().await.unwrap();
    let downloads = || {
        let requests = place.hub.requests();
        requests
            .iter()
            .filter(|line| line.contains("/resolve/"))
            .count()
    };
    let first = downloads();
    assert!(first > 0);
    place.pull().await.unwrap();
    assert_eq!(downloads(), first);
    // A new commit with the same weights and another configuration.
    write(
        &place.folder.path().join("source/config.json"),
        b"{\"a\": 1}",
    );
    let source = place.folder.path().join("source");
    let second = place.hub.publish(REPOSITORY, &source);
    let pulled = place.pull().await.unwrap();
    assert_eq!(pulled.commit, second);
    let requests = place.hub.requests();
    let later: Vec<_> = requests
        .iter()
        .filter(|line| line.contains(&second))
        .collect();
    assert!(later.iter().any(|line| line.contains("config.json")));
    assert!(!later.iter().any(|line| line.contains("model.safetensors")));
    // The first commit can still be had by its digits, and moves no branch.
    let config = place.config(&[]);
    let pinned = pull(&config, REPOSITORY, &place.commit, &Progress::default()).await;
    assert_eq!(pinned.unwrap().commit, place.commit);
    assert_eq!(
        fs::read_to_string(place.cached("refs/main")).unwrap(),
        second
    );
}

#[tokio::test]
async fn a_cut_names_file_and_bytes_and_is_mended_by_the_next_pull() {
    let place = Place::new();
    place.hub.set_fault(Fault::CutAt(150_000));
    let error = place.pull().await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Download);
    assert!(error.message.contains("\"model.safetensors\""), "{error:?}");
    let detail = error.detail.unwrap();
    assert!(detail.contains("150000 of 200000 bytes"), "{detail}");
    assert!(error.hint.unwrap().contains("Call it again"));
    let snapshot = place.cached(&format!("snapshots/{}", place.commit));
    assert!(!snapshot.join("model.safetensors").exists());
    assert!(!place.cached("refs/main").exists());
    assert_eq!(place.partial_bytes(), 150_000);

    place.hub.set_fault(Fault::None);
    let pulled = place.pull().await.unwrap();
    assert!(fs::read(pulled.directory.join("model.safetensors")).unwrap() == weights(0));
    let resumed = |line: &String| line.ends_with(" range=150000-199999");
    assert!(place.hub.requests().iter().any(resumed));
    assert_eq!(place.partial_bytes(), 0);
}

#[tokio::test]
async fn a_refusal_after_a_cut_says_what_to_do_about_the_refusal() {
    let place = Place::new();
    place.hub.set_fault(Fault::CutAt(150_000));
    place.pull().await.unwrap_err();
    place.hub.set_fault(Fault::Gated);
    let error = place.pull().await.unwrap_err();
    let detail = error.detail.unwrap();
    assert!(
        detail.contains("150000 of 200000 bytes") && detail.contains("401"),
        "{detail}"
    );
    assert!(error.hint.unwrap().contains("HF_TOKEN"));
}

#[tokio::test]
async fn a_hub_without_ranges_sends_the_file_again() {
    let place = Place::new();
    place.hub.set_fault(Fault::CutAt(150_000));
    place.pull().await.unwrap_err();
    place.hub.set_fault(Fault::NoRanges);
    let pulled = place.pull().await.unwrap();
    assert!(fs::read(pulled.directory.join("model.safetensors")).unwrap() == weights(0));
}

#[tokio::test]
async fn wrong_content_never_becomes_a_file_of_the_cache() {
    let place = Place::new();
    place.hub.set_fault(Fault::WrongByte);
    let error = place.pull().await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Download);
    assert!(error.message.contains("is not what the hub announced"));
    let snapshot = place.cached(&format!("snapshots/{}", place.commit));
    assert!(!snapshot.join("tokenizer.json").exists());
    assert_eq!(place.partial_bytes(), 0);
    // What another program left half done and wrong is no hindrance.
    place.hub.set_fault(Fault::CutAt(150_000));
    place.pull().await.unwrap_err();
    let blobs = fs::read_dir(place.cached("blobs")).unwrap().flatten();
    for entry in blobs {
        if entry.file_name().to_str().unwrap().ends_with(".incomplete") {
            fs::write(entry.path(), [7; 1234]).unwrap();
        }
    }
    place.hub.set_fault(Fault::None);
    let pulled = place.pull().await.unwrap();
    assert!(fs::read(pulled.directory.join("model.safetensors")).unwrap() == weights(0));
}

#[tokio::test]
async fn dropping_a_pull_stops_it_and_the_next_goes_on() {
    let place = Place::new();
    place.hub.set_fault(Fault::Slow(100_000));
    let progress = Progress::default();
    let config = place.config(&[]);
    let slow = pull(&config, REPOSITORY, "main", &progress);
    let dropped = tokio::time::timeout(Duration::from_millis(800), slow).await;
    assert!(dropped.is_err());
    let state = progress.state();
    assert_eq!(state.phase, Phase::Downloading);
    assert_eq!(state.file.as_deref(), Some("model.safetensors"));
    assert_eq!((state.files_done, state.files_total), (4, 5));
    assert!(state.bytes_done > 0 && state.bytes_done < state.bytes_total);
    let left = place.partial_bytes();
    assert!(left > 0 && left < WEIGHTS as u64);
    place.hub.set_fault(Fault::None);
    place.pull().await.unwrap();
    let resumed = |line: &String| line.ends_with(&format!(" range={left}-199999"));
    assert!(place.hub.requests().iter().any(resumed));
}

#[tokio::test]
async fn two_pulls_at_once_download_once() {
    let place = Place::new();
    place.hub.set_fault(Fault::Slow(400_000));
    let progress = [Progress::default(), Progress::default()];
    let config = place.config(&[]);
    let waits = || {
        let mut phases = progress.iter().map(|progress| progress.state().phase);
        phases.any(|phase| phase == Phase::Waiting)
    };
    let (first, second, one_waited) = tokio::join!(
        pull(&config, REPOSITORY, "main", &progress[0]),
        pull(&config, REPOSITORY, "main", &progress[1]),
        async {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !waits() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Instant::now() < deadline
        }
    );
    assert_eq!(first.unwrap(), second.unwrap());
    assert!(one_waited);
    let requests = place.hub.requests();
    let gets = requests
        .iter()
        .filter(|line| line.starts_with("GET /storage/"));
    // The weights and the tokenizer.
    assert_eq!(gets.count(), 2);
}

#[tokio::test]
async fn offline_takes_what_the_cache_has_and_asks_nobody() {
    let place = Place::new();
    let offline = place.config(&[("HF_HUB_OFFLINE", "1")]);
    let ask =
        async |revision: &str| pull(&offline, REPOSITORY, revision, &Progress::default()).await;
    let error = ask("main").await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Offline);
    assert!(error.hint.is_some());
    assert_eq!(place.hub.requests(), Vec::<String>::new());
    let pulled = place.pull().await.unwrap();
    let asked = place.hub.requests().len();
    assert_eq!(ask("main").await.unwrap(), pulled);
    assert_eq!(ask(&place.commit).await.unwrap(), pulled);
    assert_eq!(ask("v2").await.unwrap_err().kind, HubErrorKind::Offline);
    // A snapshot that lacks a file's content is no model.
    fs::remove_file(fs::canonicalize(pulled.directory.join("model.safetensors")).unwrap()).unwrap();
    assert_eq!(ask("main").await.unwrap_err().kind, HubErrorKind::Offline);
    assert_eq!(place.hub.requests().len(), asked);
}

#[tokio::test]
async fn refusals_say_what_was_asked_and_what_to_do() {
    let place = Place::new();
    let config = place.config(&[]);
    let ask = async |repository: &str, revision: &str| {
        let result = pull(&config, repository, revision, &Progress::default()).await;
        let error = result.unwrap_err();
        assert_eq!(error.kind, HubErrorKind::Download);
        (error.detail.unwrap(), error.hint.unwrap())
    };
    let (detail, hint) = ask("some-one/else", "main").await;
    assert!(
        detail.contains("/api/models/some-one/else/revision/main"),
        "{detail}"
    );
    assert!(detail.contains("404") && detail.contains("Repository not found"));
    assert!(hint.contains("HF_TOKEN"));
    let (detail, _) = ask(REPOSITORY, "v9").await;
    assert!(detail.contains("404") && detail.contains("Invalid rev id"));
    place.hub.set_fault(Fault::Status(500));
    let (detail, hint) = ask(REPOSITORY, "main").await;
    assert!(detail.contains("500"), "{detail}");
    assert!(hint.contains("later"));
    // Nobody listens.
    let endpoint = place.hub.endpoint();
    drop(place);
    std::thread::sleep(Duration::from_millis(100));
    let (detail, hint) = ask(REPOSITORY, "main").await;
    assert!(detail.contains(&endpoint), "{detail}");
    assert!(hint.contains("pg_sight.hf_endpoint"));
}

#[tokio::test]
async fn a_gated_repository_wants_a_token_which_stays_with_the_hub() {
    let place = Place::new();
    place.hub.set_fault(Fault::Gated);
    let error = place.pull().await.unwrap_err();
    let (detail, hint) = (error.detail.unwrap(), error.hint.unwrap());
    assert!(detail.contains("401") && detail.contains("restricted"));
    assert!(hint.contains("HF_TOKEN"));
    let config = place.config(&[("HF_TOKEN", TOKEN)]);
    pull(&config, REPOSITORY, "main", &Progress::default())
        .await
        .unwrap();
    let requests = place.hub.requests();
    let shown = |start: &str| {
        let lines = requests.iter().filter(|line| line.contains(start));
        lines.filter(|line| line.contains(TOKEN)).count()
    };
    assert!(shown("/resolve/") > 0);
    // The host that large files come from is another.
    assert_eq!(shown("/storage/"), 0);
}

#[tokio::test]
async fn names_and_directories_that_cannot_be() {
    let place = Place::new();
    let config = place.config(&[]);
    for (repository, revision) in [("../x", "main"), (REPOSITORY, "../x"), ("", "main")] {
        let result = pull(&config, repository, revision, &Progress::default()).await;
        assert_eq!(result.unwrap_err().kind, HubErrorKind::Invalid);
    }
    assert_eq!(place.hub.requests(), Vec::<String>::new());
    fs::write(place.home(), "no directory").unwrap();
    let error = place.pull().await.unwrap_err();
    assert_eq!(error.kind, HubErrorKind::Storage);
    assert!(error.hint.unwrap().contains("pg_sight.hf_home"));
}
