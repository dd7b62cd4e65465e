//! A hub for tests: it serves directories as Hugging Face's hub serves the
//! repositories of models, on a port of this machine, with faults on demand.
//!
//! Files of 1,000 bytes and more are "large": as at the hub, asking for them is
//! answered with a redirection to another host.
#![forbid(unsafe_code)]

mod http;
mod repository;

use std::collections::BTreeMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use http::{Answer, Request};
use repository::{Content, Snapshot};
use serde_json::json;

/// What goes wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Large files come with so many bytes a second.
    Slow(u64),
    /// The connection closes before this byte of a large file, counted from 0.
    CutAt(u64),
    /// Large files have a wrong byte in their middle.
    WrongByte,
    /// The range that a request asks for is not looked at.
    NoRanges,
    /// All requests are answered with this status.
    Status(u16),
    /// Files are given to those who show a token only.
    Gated,
}

/// Entries in one page of a listing.
const PAGE: usize = 4;

#[derive(Default)]
struct State {
    /// Commits by repository; the last one is the branch main.
    repositories: Mutex<BTreeMap<String, Vec<Snapshot>>>,
    fault: Mutex<Fault>,
    requests: Mutex<Vec<String>>,
    stopped: AtomicBool,
}

/// A hub that runs until it is dropped.
pub struct FakeHub {
    address: SocketAddr,
    state: Arc<State>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl FakeHub {
    /// A hub without repositories.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
        let address = listener.local_addr().expect("it has an address");
        let state = Arc::new(State::default());
        let serving = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&serving);
                thread::spawn(move || state.serve(&stream, address));
            }
        });
        Self { address, state }
    }

    /// What HF_ENDPOINT would be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes the files of a directory the new head of a repository's branch
    /// main; returns the commit. Earlier commits stay.
    pub fn publish(&self, repository: &str, directory: &Path) -> String {
        let snapshot = Snapshot::read(directory);
        let commit = snapshot.commit.clone();
        locked(&self.state.repositories)
            .entry(repository.to_owned())
            .or_default()
            .push(snapshot);
        commit
    }

    pub fn set_fault(&self, fault: Fault) {
        *locked(&self.state.fault) = fault;
    }

    /// The requests so far: method, path, and the headers `range` and
    /// `authorization` where they were sent.
    pub fn requests(&self) -> Vec<String> {
        locked(&self.state.requests).clone()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        // Wakes the thread that listens.
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn serve(&self, stream: &TcpStream, address: SocketAddr) {
        let Some(request) = Request::read(stream) else {
            return;
        };
        locked(&self.requests).push(request.to_string());
        let fault = *locked(&self.fault);
        let answer = self.answer(&request, address, fault);
        // The client may have gone.
        let _ = answer.write(stream, &request);
        let _ = stream.shutdown(Shutdown::Both);
    }

    fn answer(&self, request: &Request, address: SocketAddr, fault: Fault) -> Answer {
        if let Fault::Status(status) = fault {
            return Answer::error(status, "Planned", "planned");
        }
        let parts: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api", "models", owner, name, "revision", revision] => {
                self.with_snapshot(&format!("{owner}/{name}"), revision, |snapshot| {
                    let id = format!("{owner}/{name}");
                    Answer::json(&json!({ "id": id, "sha": snapshot.commit }))
                })
            }
            ["api", "models", owner, name, "tree", revision] => {
                self.with_snapshot(&format!("{owner}/{name}"), revision, |snapshot| {
                    listing(snapshot, request, address)
                })
            }
            [owner, name, "resolve", revision, path @ ..] => {
                if fault == Fault::Gated && request.authorization.is_none() {
                    return Answer::error(401, "GatedRepo", "Access to the model is restricted");
                }
                self.with_snapshot(&format!("{owner}/{name}"), revision, |snapshot| {
                    resolve(snapshot, &path.join("/"), address)
                })
            }
            ["storage", sha256] => self.storage(sha256, request, fault),
            _ => Answer::error(404, "NotFound", "There is nothing here"),
        }
    }

    fn with_snapshot(
        &self,
        repository: &str,
        revision: &str,
        answer: impl FnOnce(&Snapshot) -> Answer,
    ) -> Answer {
        let repositories = locked(&self.repositories);
        let Some(snapshots) = repositories.get(repository) else {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        };
        let found = match revision {
            "main" => snapshots.last(),
            commit => snapshots.iter().find(|snapshot| snapshot.commit == commit),
        };
        match found {
            Some(snapshot) => answer(snapshot),
            None => Answer::error(404, "RevisionNotFound", "Invalid rev id"),
        }
    }

    /// The other host, which has the large files.
    fn storage(&self, sha256: &str, request: &Request, fault: Fault) -> Answer {
        let repositories = locked(&self.repositories);
        let all = repositories.values().flatten();
        let mut files = all.flat_map(|snapshot| snapshot.files.values());
        let Some(file) = files.find(|file| file.sha256 == sha256) else {
            return Answer::error(404, "EntryNotFound", "Entry not found");
        };
        let mut bytes = file.bytes.clone();
        if fault == Fault::WrongByte {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        let mut answer = Answer::file(bytes);
        answer.range = request.range.filter(|_| fault != Fault::NoRanges);
        match fault {
            Fault::CutAt(byte) => answer.cut_at = Some(byte),
            Fault::Slow(bytes) => {
                answer.pause = Some(Duration::from_secs(1) / (bytes / 1000).max(1) as u32);
            }
            _ => {}
        }
        answer
    }
}

/// A page of the files of a commit.
fn listing(snapshot: &Snapshot, request: &Request, address: SocketAddr) -> Answer {
    let first: usize = request
        .query
        .split('&')
        .find_map(|pair| pair.strip_prefix("cursor="))
        .map_or(0, |cursor| cursor.parse().expect("a cursor of ours"));
    let entries: Vec<_> = snapshot.files.iter().skip(first).take(PAGE).collect();
    let listed: Vec<_> = entries
        .iter()
        .map(|(path, file)| {
            let mut entry = json!({
                "type": "file", "oid": file.oid, "size": file.bytes.len(), "path": path,
            });
            if file.is_large() {
                let size = file.bytes.len();
                entry["lfs"] = json!({ "oid": file.sha256, "size": size, "pointerSize": 130 });
            }
            entry
        })
        .collect();
    let mut answer = Answer::json(&json!(listed));
    let next = first + entries.len();
    if next < snapshot.files.len() {
        let url = format!(
            "http://{address}{}?recursive=true&cursor={next}",
            request.path
        );
        answer.header("Link", &format!("<{url}>; rel=\"next\""));
    }
    answer
}

fn resolve(snapshot: &Snapshot, path: &str, address: SocketAddr) -> Answer {
    let Some(file) = snapshot.files.get(path) else {
        return Answer::error(404, "EntryNotFound", "Entry not found");
    };
    let mut answer = if file.is_large() {
        // Another host, as far as a client can tell.
        let port = address.port();
        let url = format!(
            "http://localhost:{port}/storage/{}?X-Signature=signed",
            file.sha256
        );
        let mut answer = Answer::status(302);
        answer.header("Location", &url);
        answer.header("X-Linked-ETag", &format!("\"{}\"", file.sha256));
        answer.header("X-Linked-Size", &file.bytes.len().to_string());
        answer
    } else {
        Answer::file(file.bytes.clone())
    };
    answer.header("ETag", &format!("\"{}\"", etag(file)));
    answer.header("X-Repo-Commit", &snapshot.commit);
    answer
}

fn etag(file: &Content) -> &str {
    if file.is_large() {
        &file.sha256
    } else {
        &file.oid
    }
}
